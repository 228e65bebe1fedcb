"""The SDK: it runs in the user's application and drives a sandbox-agent server over HTTP."""

__all__: list[str] = []
