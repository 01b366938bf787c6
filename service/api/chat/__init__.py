"""Chat completions: from the request's fields to the reply's."""
