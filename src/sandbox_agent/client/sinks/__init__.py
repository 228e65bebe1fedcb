"""Sinks into which ``sdk.sessions.mirror`` copies a session's events: the protocol, one file per sink."""
