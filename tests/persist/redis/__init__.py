"""Redis and Valkey, real ones."""
