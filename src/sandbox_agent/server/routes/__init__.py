"""The routes, one module per path prefix."""

__all__: list[str] = []
