"""The server process: settings, application factory, lifecycle."""
