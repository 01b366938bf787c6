"""Training: recipes, rollouts, filtering, advantages, loss and checkpoints."""
