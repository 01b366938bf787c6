"""`ih-grpo doctor`: check whether this machine can serve."""
