"""The providers of sandboxes at a service, by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.remote import RemoteProvider

# Each is made by the function of this name in the module of this name.
SERVICES: Final = (
    "cloudflare",
    "computesdk",
    "daytona",
    "e2b",
    "kubernetes",
    "microsandbox",
    "modal",
    "sprites",
    "vercel",
)
# Those whose first argument is an image, a template or a snapshot.
WITH_IMAGE: Final = ("computesdk", "daytona", "e2b", "kubernetes", "microsandbox", "modal", "vercel")


def open_service(name: str, image: str | None = None, **options: Any) -> RemoteProvider[Any]:
    """Return a provider that is configured by the environment.

    Args:
        name: One of ``SERVICES``.
        image: The image, template or snapshot, for those of ``WITH_IMAGE``.
        options: Options that all services share.

    Raises:
        ImportError: The service's extra is not installed.
        SandboxAgentError: The environment does not have what the provider needs.
    """
    make = getattr(import_module(f"sandbox_agent.providers.{name}"), name)
    try:
        return make(*([image] if name in WITH_IMAGE else []), **options)
    except ValueError as error:
        raise SandboxAgentError(f"{name}: {error}") from error
