"""How a session is restored in another agent session: the requests, the replay, the reported history."""

__all__: list[str] = []
