"""The GGUF engine: llama.cpp on a GGUF file, and the writer of such files."""
