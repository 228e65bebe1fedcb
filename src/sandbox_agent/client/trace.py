"""The trace context of the caller's OpenTelemetry span, for the server and the agent.

OpenTelemetry is never imported here: without an import in the program there is no span.
"""

from __future__ import annotations

import sys
from typing import Any


def current_trace() -> dict[str, str]:
    """Return ``traceparent``, and ``tracestate`` if there is one, of the current span; else nothing."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    context: Any = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    found = {
        "traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
    }
    state: str = context.trace_state.to_header()
    return {**found, "tracestate": state} if state else found
