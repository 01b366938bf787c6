"""Chat completions, from the request's fields to the response's."""
