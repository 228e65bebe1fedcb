"""The wire format: msgspec structs, without I/O."""

__all__: list[str] = []
