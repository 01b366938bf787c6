"""Functions that the client defines: their definitions, the choice between them, and the parser of calls."""
