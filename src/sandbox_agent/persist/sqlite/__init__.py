"""SQLite: one file, a thread that writes it and others that read it."""
