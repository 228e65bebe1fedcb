"""Where sandboxes come from: the provider protocol, one file per provider."""

__all__: list[str] = []
