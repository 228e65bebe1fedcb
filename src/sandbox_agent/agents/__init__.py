"""Which agents exist."""

__all__: list[str] = []
