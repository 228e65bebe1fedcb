"""The known agents: catalogue, installation, launch and credentials of each, and the built-in mock agent."""

__all__: list[str] = []
