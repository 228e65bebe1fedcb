"""What crosses the wire: msgspec structs, no I/O."""

__all__: list[str] = []
