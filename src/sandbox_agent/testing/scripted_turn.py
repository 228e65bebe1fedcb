"""What a script of a ScriptedAgent can do in a turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from sandbox_agent.agents.mock.agent import Agent
from sandbox_agent.agents.mock.peer import RpcError
from sandbox_agent.agents.mock.turn import Cancelled, Turn
from sandbox_agent.testing.scripted_peer import ScriptedPeer
from sandbox_agent.wire.acp import AcpStruct, Diff, PlanEntry
from sandbox_agent.wire.jsonrpc import members

__all__ = ["PermissionOutcome", "ScriptedTurn"]

_OPTIONS = {
    "allow_once": "Allow",
    "allow_always": "Always allow",
    "reject_once": "Reject",
    "reject_always": "Always reject",
}


@dataclass(frozen=True, slots=True)
class PermissionOutcome:
    """The answer to a permission request of a script.

    Attributes:
        title: The title of the tool call that the permission was requested for.
        option: The option that was selected, such as "allow_once", or None: the request was cancelled.
    """

    title: str
    option: str | None

    @property
    def allowed(self) -> bool:
        """Whether the tool may run."""
        return self.option is not None and self.option.startswith("allow")


class ScriptedTurn:
    """A turn of a ScriptedAgent: what was prompted, and what the agent can do.

    Methods that return the turn can be chained. All raise an exception that ends the script when the client
    cancels the turn; do not catch it.

    Attributes:
        prompt: The text of the prompt.
        blocks: The prompt's content blocks, in ACP's shape.
        session_id: The agent's own id of the session.
        cwd: The session's working directory.
        settings: The session's settings: "model", "mode", "thought_level".
    """

    def __init__(
        self,
        turn: Turn,
        agent: Agent,
        peer: ScriptedPeer,
        prompt: str,
        blocks: list[dict[str, Any]],
        permissions: list[PermissionOutcome],
    ) -> None:
        self.prompt = prompt
        self.blocks = blocks
        self.session_id: str = turn.session.id
        self.cwd: str = turn.session.cwd
        self._turn = turn
        self._agent = agent
        self._peer = peer
        self._permissions = permissions

    @property
    def settings(self) -> Mapping[str, str]:
        """The session's settings."""
        return dict(self._turn.session.settings)

    @property
    def is_cancelled(self) -> bool:
        """Whether the client has cancelled the turn."""
        return self._turn.cancelled.is_set()

    # what agents say

    def say(self, text: str) -> Self:
        """Say something: the text is streamed in a few pieces, as one message."""
        self._turn.next_message()
        self._turn.say(text)
        return self

    def think(self, text: str) -> Self:
        """Send a thought."""
        self._turn.next_message()
        self._turn.say(text, "agent_thought_chunk")
        return self

    def plan(self, *entries: str | PlanEntry) -> Self:
        """Send the whole plan; an entry that is a text is pending."""
        sent = [PlanEntry(content=each) if isinstance(each, str) else each for each in entries]
        self._turn.update("plan", entries=[_entry(each) for each in sent])
        return self

    def usage(
        self,
        used: int,
        size: int = 200_000,
        *,
        cost: float | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> Self:
        """Report tokens and cost.

        Args:
            used: Tokens in the context window.
            size: Tokens that fit into it.
            cost: Cost of the session so far, in US dollars.
            input_tokens: Tokens of the turn's input, in the response of the prompt; None leaves them out.
            output_tokens: Tokens of the turn's output; None is the same as 0 if ``input_tokens`` is given.
        """
        priced = {} if cost is None else {"cost": {"amount": cost, "currency": "USD"}}
        self._turn.update("usage_update", keep=False, used=used, size=size, **priced)
        if input_tokens is not None or output_tokens is not None:
            read, written = input_tokens or 0, output_tokens or 0
            self._turn.usage = {"inputTokens": read, "outputTokens": written, "totalTokens": read + written}
        return self

    def set_title(self, title: str) -> Self:
        """Name the session."""
        self._turn.session.apply({"title": title})
        self._turn.update("session_info_update", keep=False, title=title)
        return self

    def set_commands(self, commands: Mapping[str, str]) -> Self:
        """Offer these slash commands: a description for each name."""
        offered = [{"name": name, "description": text} for name, text in commands.items()]
        self._turn.update("available_commands_update", keep=False, availableCommands=offered)
        return self

    def set_option(self, option: str, value: str) -> Self:
        """Change the session's "model", "mode" or "thought_level" by the agent itself."""
        self._turn.check()
        self._agent.set_option(self._turn.session, option, value)
        return self

    # tools, permissions and questions

    def tool(
        self,
        title: str,
        *,
        kind: str = "other",
        input: Any = None,  # noqa: A002 - what it is
        output: str | None = None,
        raw_output: Any = None,
        diffs: Sequence[Diff] = (),
        paths: Sequence[str] = (),
        failed: bool = False,
    ) -> Self:
        """Call a tool: the call is pending, in progress, and then completed or failed.

        Args:
            title: What it does, for users.
            kind: ACP's kind, such as "read", "edit", "search" or "execute".
            input: Its arguments, any JSON value.
            output: Its output as text.
            raw_output: Its output as any JSON value.
            diffs: The files that it changes.
            paths: The files that it works on, besides those of ``diffs``.
            failed: Whether it fails.
        """
        call = self._start(title, kind, input, diffs, paths)
        self._run(call, diffs, output, raw_output, "failed" if failed else "completed")
        return self

    def ask_permission(
        self,
        title: str,
        *,
        kind: str = "edit",
        input: Any = None,  # noqa: A002 - what it is
        output: str | None = None,
        diffs: Sequence[Diff] = (),
        paths: Sequence[str] = (),
        options: Sequence[str] = ("allow_once", "allow_always", "reject_once"),
    ) -> PermissionOutcome:
        """Call a tool that needs permission, and return the answer.

        The tool runs if it is allowed, and fails otherwise; its files are not really changed. Arguments are
        those of ``tool``.

        Args:
            title: What it does, for users.
            kind: ACP's kind.
            input: Its arguments, any JSON value.
            output: Its output as text, if it is allowed.
            diffs: The files that it changes.
            paths: The files that it works on.
            options: The possible answers, as ACP's kinds; they are the options' ids, too.
        """
        call = self._start(title, kind, input, diffs, paths)
        offered = [{"optionId": each, "name": _OPTIONS.get(each, each), "kind": each} for each in options]
        params = {"toolCall": call, "options": offered}
        response = self._turn.ask("session/request_permission", [params])[0]
        answer = members(members(response.get("result")).get("outcome"))
        selected: object = answer.get("optionId") if answer.get("outcome") == "selected" else None
        outcome = PermissionOutcome(title, selected if isinstance(selected, str) else None)
        self._permissions.append(outcome)
        if outcome.allowed:
            self._run(call, diffs, output, None, "completed")
        else:
            self._finish(call, [_text("The user did not allow it.")], None, "failed")
        return outcome

    def ask(
        self, message: str, fields: Mapping[str, Sequence[str] | Mapping[str, Any]]
    ) -> dict[str, Any] | None:
        """Ask the user a question, and return the answers, or None if the user declined or cancelled.

        Args:
            message: The question.
            fields: The JSON schema of each answer, such as ``{"size": {"type": "integer"}}``. A list of texts
                is a choice: ``{"color": ["red", "blue"]}``.

        Raises:
            RuntimeError: The client does not answer questions; see ``Session.on_question``.
        """
        if "form" not in members(self._peer.client_capabilities.get("elicitation")):
            raise RuntimeError(
                "the client does not answer questions: give the session a question_policy or a listener with "
                "on_question before its first prompt"
            )
        properties = {
            name: dict(field) if isinstance(field, Mapping) else {"type": "string", "enum": list(field)}
            for name, field in fields.items()
        }
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        response = self.request(
            "elicitation/create", {"mode": "form", "message": message, "requestedSchema": schema}
        )
        result = members(response.get("result"))
        return members(result.get("content")) if result.get("action") == "accept" else None

    # trouble

    def stall(self, seconds: float | None = None) -> Self:
        """Send nothing for some seconds, or until the client cancels."""
        if seconds is None:
            self._turn.cancelled.wait()
            self._turn.check()
        else:
            self._turn.sleep(seconds)
        return self

    def stop(self, reason: str) -> Self:
        """End the turn with another stop reason than "end_turn", such as "max_tokens" or "refusal"."""
        self._turn.stop_reason = reason
        return self

    def fail(self, message: str = "The agent failed", *, code: int = -32603, data: Any = None) -> NoReturn:
        """Answer the prompt with a JSON-RPC error."""
        raise RpcError(code, message, data)

    def crash(self, code: int = 1, *, stderr: str = "") -> NoReturn:
        """End the agent's process with an exit code from 0 to 255, in the middle of the turn."""
        if stderr:
            self.write_stderr(stderr)
        self._peer.exit(code)
        raise Cancelled

    def write(self, data: bytes) -> Self:
        """Write bytes to the agent's stdout, such as a line that is not JSON. It does not add a newline."""
        self._peer.write(data)
        return self

    def write_stderr(self, text: str) -> Self:
        """Write to the agent's stderr."""
        self._peer.write_stderr(text)
        return self

    # anything else

    def update(self, kind: str, /, **fields: Any) -> Self:
        """Send any other ``session/update``: its kind and its members, named as in ACP."""
        self._turn.update(kind, **fields)
        return self

    def request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Send any request to the client, with the session's id, and return the response's envelope."""
        return self._turn.ask(method, [dict(params)])[0]

    def _start(
        self, title: str, kind: str, arguments: Any, diffs: Sequence[Diff], paths: Sequence[str]
    ) -> dict[str, Any]:
        call: dict[str, Any] = {
            "toolCallId": self._turn.tool_call_id(),
            "title": title,
            "kind": kind,
            "status": "pending",
            "content": [each.to_dict() for each in diffs],
            "locations": [{"path": path} for path in dict.fromkeys([*paths, *(each.path for each in diffs)])],
            **({} if arguments is None else {"rawInput": arguments}),
        }
        self._turn.update("tool_call", **call)
        return call

    def _run(
        self, call: Mapping[str, Any], diffs: Iterable[Diff], output: str | None, raw: Any, status: str
    ) -> None:
        self._turn.update("tool_call_update", keep=False, toolCallId=call["toolCallId"], status="in_progress")
        content = [each.to_dict() for each in diffs]
        self._finish(call, [*content, *([] if output is None else [_text(output)])], raw, status)

    def _finish(self, call: Mapping[str, Any], content: list[dict[str, Any]], raw: Any, status: str) -> None:
        fields = {} if raw is None else {"rawOutput": raw}
        self._turn.update(
            "tool_call_update", toolCallId=call["toolCallId"], status=status, content=content, **fields
        )


def _text(text: str) -> dict[str, Any]:
    return {"type": "content", "content": {"type": "text", "text": text}}


def _entry(entry: AcpStruct) -> dict[str, Any]:
    # The agent's side of the schema requires the members that are defaults.
    return {field: getattr(entry, field) for field in ("content", "priority", "status")}
