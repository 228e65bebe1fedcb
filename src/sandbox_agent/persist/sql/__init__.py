"""The log in SQL without I/O: generators that yield queries and are sent their rows."""
