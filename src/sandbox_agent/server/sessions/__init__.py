"""The server's own sessions: turns, restores, the permission inbox and its policies."""
