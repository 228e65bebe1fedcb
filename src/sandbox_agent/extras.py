"""Optional dependencies: an error that names the extra of the package which brings them."""

from __future__ import annotations

from importlib.util import find_spec


class MissingExtraError(ImportError):
    """A feature needs an extra that is not installed; the message names it."""


def missing_extra(feature: str, extra: str) -> MissingExtraError:
    """Return the error of a feature whose extra is not installed."""
    return MissingExtraError(
        f"{feature} needs the extra '{extra}': install it with pip install \"sandbox-agent-py[{extra}]\""
    )


def require_extra(feature: str, extra: str, *modules: str) -> None:
    """Check that the modules of an extra are installed, without importing them.

    Raises:
        MissingExtraError: they are not.
    """
    if not all(_is_installed(module) for module in modules):
        raise missing_extra(feature, extra)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


def require_server(feature: str) -> None:
    """Check that the server's dependencies are installed.

    Raises:
        MissingExtraError: they are not.
    """
    require_extra(feature, "server", "starlette", "uvicorn", "jinja2", "markdown_it")


def require_websockets(feature: str) -> None:
    """Check that the library for WebSockets is installed.

    Raises:
        MissingExtraError: it is not.
    """
    require_extra(feature, "terminal", "websockets")


def require_otel(feature: str) -> None:
    """Check that OpenTelemetry and its exporter are installed.

    Raises:
        MissingExtraError: they are not.
    """
    require_extra(
        feature, "otel", "opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"
    )
