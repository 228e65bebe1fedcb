"""How a request reaches its route: dispatch, authentication, errors, OpenAPI, the fast path."""

from __future__ import annotations
