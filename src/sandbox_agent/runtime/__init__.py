"""The machine: processes, their pipes, their groups and their end."""

__all__: list[str] = []
