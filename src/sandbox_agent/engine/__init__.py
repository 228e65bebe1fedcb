"""Protocol rules without I/O: bytes or messages go in, results come out, and the time is an argument."""

__all__: list[str] = []
