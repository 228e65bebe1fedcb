"""The rules, without I/O: feed bytes or messages in, get results out; time is passed in."""

__all__: list[str] = []
