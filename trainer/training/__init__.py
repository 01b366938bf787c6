"""Training: rollouts, filtering, advantages, loss, checkpoints."""
