"""A forward proxy that reaches the hosts of a list and no others, and the relay to it inside of a sandbox."""
