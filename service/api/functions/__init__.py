"""JSON that the model writes for the client: calls of its functions, and answers of a schema."""
