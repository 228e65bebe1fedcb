"""The server's store in PostgreSQL."""
