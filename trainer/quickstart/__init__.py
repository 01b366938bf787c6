"""The quickstart checkpoint: a small Qwen3-architecture model trained from scratch on the protocol."""
