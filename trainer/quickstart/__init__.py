"""The quickstart checkpoint: a small Qwen3-architecture model taught the deferred protocol from nothing."""
