"""The embedded engine: Qwen models on PyTorch, in this process."""
