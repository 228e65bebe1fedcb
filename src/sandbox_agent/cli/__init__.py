"""Commands: one file per command group, imported when they are run."""

__all__: list[str] = []
