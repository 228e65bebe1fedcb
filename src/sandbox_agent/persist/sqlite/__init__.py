"""The SQLite driver (seed 002): one file, a thread that writes and one that reads."""
