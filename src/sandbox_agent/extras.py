"""Optional dependencies: an error that names the extra of the package which brings them."""

from __future__ import annotations

from importlib.util import find_spec


class MissingExtraError(ImportError):
    """A feature needs an extra that is not installed; the message names it."""


def require_server(feature: str) -> None:
    """Check that the server's dependencies are installed.

    Raises:
        MissingExtraError: they are not.
    """
    if any(find_spec(module) is None for module in ("starlette", "uvicorn", "jinja2", "markdown_it")):
        raise MissingExtraError(
            f"{feature} needs the extra 'server': install it with pip install \"sandbox-agent-py[server]\""
        )


def require_websockets(feature: str) -> None:
    """Check that the library for WebSockets is installed.

    Raises:
        MissingExtraError: it is not.
    """
    if find_spec("websockets") is None:
        raise MissingExtraError(
            f"{feature} needs the extra 'terminal': install it with "
            'pip install "sandbox-agent-py[terminal]"'
        )


def require_otel(feature: str) -> None:
    """Check that OpenTelemetry and its exporter are installed.

    Raises:
        MissingExtraError: they are not.
    """
    for module in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        try:
            found = find_spec(module)
        except ModuleNotFoundError:  # of what it is in
            found = None
        if found is None:
            raise MissingExtraError(
                f"{feature} needs the extra 'otel': install it with pip install \"sandbox-agent-py[otel]\""
            )
