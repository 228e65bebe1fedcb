"""The routes, one file per path prefix."""

__all__: list[str] = []
