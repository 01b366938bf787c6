"""Tools of MCP servers, called with the official SDK. Start reading at ``connection``."""
