"""Training of models that decide when their code runs."""
