"""The server's store in SQLite."""
