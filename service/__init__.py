"""An OpenAI-compatible service that lets a model decide when its code runs."""
