"""Sandbox providers: the protocol, and one module per provider."""

__all__: list[str] = []
