"""HTTP inside the sandbox."""

__all__: list[str] = []
