"""The trainer that teaches models to decide when their code runs."""
