"""Tools that code in a sandbox can call: their specification, the host that runs them, and MCP servers."""
