"""The schema of a universal event, whose data is one of several structs that no tag tells apart."""

from __future__ import annotations

from typing import Any, get_args

from sandbox_agent.wire.universal import EventData, EventSource, EventType

__all__ = ["EVENT_DATA_TYPES", "EVENT_SCHEMAS"]

EVENT_DATA_TYPES: tuple[type, ...] = get_args(EventData)

EVENT_SCHEMAS: dict[str, dict[str, Any]] = {
    "UniversalEvent": {
        "type": "object",
        "description": "One event of a session; `type` says what its data is.",
        "required": ["event_id", "sequence", "time", "session_id", "synthetic", "source", "type", "data"],
        "properties": {
            "event_id": {"type": "string"},
            "sequence": {"type": "integer", "format": "int64", "minimum": 0},
            "time": {"type": "string"},
            "session_id": {"type": "string"},
            "native_session_id": {"type": "string", "nullable": True},
            "source": {"type": "string", "enum": list(get_args(EventSource))},
            "synthetic": {"type": "boolean"},
            "type": {"type": "string", "enum": list(get_args(EventType))},
            "data": {"$ref": "#/components/schemas/UniversalEventData"},
            "raw": {"nullable": True},
        },
    },
    "UniversalEventData": {
        "anyOf": [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in EVENT_DATA_TYPES]
    },
}
