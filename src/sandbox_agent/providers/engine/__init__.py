"""Sandboxes in containers: the providers ``docker()`` and ``podman()``, over the Docker Engine API."""

__all__: list[str] = []
