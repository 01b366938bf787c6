"""Who gets in, and how many at once."""
