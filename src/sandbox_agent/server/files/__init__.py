"""The files of the sandbox, as the HTTP API lists, reads and changes them."""
