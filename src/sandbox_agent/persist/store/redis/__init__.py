"""The server's store in Redis or Valkey."""
