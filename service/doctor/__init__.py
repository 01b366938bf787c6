"""``ih-grpo doctor``: can this machine serve, and if not, what is to be done."""
