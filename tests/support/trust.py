"""The certificate authorities of this machine, which are read once in each process that runs tests.

Each client of httpx2 reads them for itself, also one that only uses HTTP: a third of the time of many tests.
"""

from __future__ import annotations

import os
import ssl
from functools import cache
from typing import Any

import httpcore2

__all__ = ["share_authorities"]


def share_authorities() -> None:
    """Let all clients have the same authorities, unless the variables that name them change."""
    read: Any = httpcore2.default_ssl_context

    @cache
    def authorities(_file: str | None, _folder: str | None, trust_env: bool) -> ssl.SSLContext:
        return read(_trust_env=trust_env)

    def default_ssl_context(*, _trust_env: bool = True) -> ssl.SSLContext:
        return authorities(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"), _trust_env)

    httpcore2.default_ssl_context = default_ssl_context
