"""Where ``sdk.sessions.mirror`` puts a session's events: the protocol, one file per sink."""
