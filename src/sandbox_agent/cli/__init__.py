"""The ``sandbox-agent`` command: one module per command or command group, imported when the command runs."""

__all__: list[str] = []
