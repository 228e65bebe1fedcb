"""Permission requests and questions: policies, the inbox, automatic answers and timeouts."""

from __future__ import annotations
