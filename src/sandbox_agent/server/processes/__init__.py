"""The processes of the sandbox: commands that clients start, their output, and how they are restarted."""

__all__: list[str] = []
