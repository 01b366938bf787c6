"""Files: uploads of clients, and the containers that code uses them in."""
