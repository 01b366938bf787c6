"""The `ih-grpo` command."""
