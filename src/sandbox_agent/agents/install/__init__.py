"""Installs agents from npm and PyPI: each in a folder of its own, with a launcher that starts it."""

__all__: list[str] = []
