"""Public test kit."""

__all__: list[str] = []
