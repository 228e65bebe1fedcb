"""The known agents: the catalogue, how each is launched, its credentials, and the built-in mock agent."""

__all__: list[str] = []
