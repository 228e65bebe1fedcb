"""MCP servers and skills of folders."""
