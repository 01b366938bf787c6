"""The runner process, which holds the Docker socket, and its client."""
