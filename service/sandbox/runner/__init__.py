"""The runner, the only process with access to the Docker socket, and its client."""
