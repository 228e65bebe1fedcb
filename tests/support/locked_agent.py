"""An ACP agent that needs ``authenticate`` with a method that its environment has a key for, as Codex does.

It offers "chat-gpt", "openai-api-key" and "api-key", in that order; a method without its key is refused. With
the argument "late" it opens sessions without one, and refuses prompts, as Claude Code does.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

KEYS = {"openai-api-key": ["OPENAI_API_KEY"], "api-key": ["CODEX_API_KEY", "OPENAI_API_KEY"]}
REFUSED = {"code": -32000, "message": "Authentication required"}


def main() -> None:
    """Answer the client."""
    method_used = ""
    for line in sys.stdin:
        message: dict[str, Any] = json.loads(line)
        method: str = message["method"]
        params: dict[str, Any] = message.get("params") or {}
        answer: dict[str, Any] = {"result": {}}
        if method == "initialize":
            offered = [{"id": name, "name": name} for name in ("chat-gpt", *KEYS)]
            answer = {"result": {"protocolVersion": 1, "authMethods": offered}}
        elif method == "authenticate":
            if any(os.environ.get(name) for name in KEYS.get(params["methodId"], ())):
                method_used = params["methodId"]
            else:
                answer = {"error": REFUSED}
        elif not method_used and not (method == "session/new" and sys.argv[1:] == ["late"]):
            answer = {"error": REFUSED}
        elif method == "session/new":
            answer = {"result": {"sessionId": method_used or "no-key"}}
        elif method == "session/prompt":
            answer = {"result": {"stopReason": "end_turn"}}
        if "id" in message:
            print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}), flush=True)


main()
