"""The MCP servers and skills that are configured for a folder, and how sessions in that folder get them."""
