"""The operating system: child processes, their pipes and process groups, and how they are ended."""

__all__: list[str] = []
