"""The server as a part of another program: an ASGI application for FastAPI and Starlette."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Literal

from sandbox_agent.agents.environment import AgentEnvironment
from sandbox_agent.server.app import Application
from sandbox_agent.server.config import CANCEL_GRACE, IDLE_TIMEOUT, CorsConfig, ServerConfig
from sandbox_agent.server.http.identities import Authenticate
from sandbox_agent.server.store import MEMORY_STORE, check_namespace, check_store, secrets_of

# An application that is mounted does not know the address under which it is served.
_ANY_HOST = "0.0.0.0"  # noqa: S104 - nothing is bound


def create_app(
    *,
    token: str | None = None,
    authenticate: Authenticate | None = None,
    no_token: bool = False,
    store: str = MEMORY_STORE,
    store_namespace: str | None = None,
    retain_days: float = 0,
    env_policy: Literal["default", "strict"] = "strict",
    env_allow: Sequence[str] = (),
    env_deny: Sequence[str] = (),
    fs_roots: Sequence[str | PathLike[str]] = (),
    require_preinstall: bool = False,
    request_timeout: float = 120.0,
    cancel_grace: float = CANCEL_GRACE,
    session_idle_timeout: float = IDLE_TIMEOUT,
    acp_idle_timeout: float = IDLE_TIMEOUT,
    max_body_bytes: int = 64 * 1024 * 1024,
    cors_allow_origins: Sequence[str] = (),
    cors_allow_credentials: bool = False,
) -> Application:
    """Return the server as an ASGI application, to mount in a FastAPI or Starlette application.

    Agents run as children of the program, on its machine and as its user: this is for a program that is in
    the sandbox, or for agents that you trust as much as the program. Only one process uses a store: run one
    worker.

    ```python
    agents = create_app(token="a-long-secret")
    app = FastAPI(lifespan=agents.lifespan)
    app.mount("/agents", agents)
    ```

    Args:
        token: The bearer token that clients send.
        authenticate: A function, sync or async, that is called in the event loop with the request, or the
            handshake of a WebSocket, as a Starlette ``HTTPConnection``. It returns the name of the user, or
            True; None and False refuse the request with the status 401, an ``HTTPException`` with its own. It
            is called if the request does not have the token. The name is in the log, and in ``answeredBy`` of
            permission requests. A ticket (``POST /v1/tickets``) opens its stream without another call.
        no_token: Whether requests need neither: something in front of the application authenticates them.
        store: "memory", "sqlite:PATH", "postgres://…" or "redis://…".
        store_namespace: Namespace of this server's sessions in a shared database; None for that of this
            machine.
        retain_days: Events older than this are erased; 0 keeps them.
        env_policy: What agents inherit of the program's environment: "strict" for what programs need and the
            credentials of the agent, "default" for everything but the secrets of the server.
        env_allow: Names of variables that agents inherit nevertheless; ``*`` is a wildcard.
        env_deny: Names of variables that agents do not inherit.
        fs_roots: The folders that ``/v1/fs`` gives access to; none for all.
        require_preinstall: Whether an agent that is not installed is refused; else its first use installs it.
        request_timeout: Seconds that an agent has to respond to a request other than a prompt.
        cancel_grace: Seconds that an agent has to end a turn that was cancelled; then it is stopped.
        session_idle_timeout: Seconds after which the agent of an idle session is stopped; 0 for never.
        acp_idle_timeout: Seconds after which an idle connection is ended; 0 for never.
        max_body_bytes: Bound on the body of a request, in bytes.
        cors_allow_origins: Origins whose pages may use the application; "*" for all.
        cors_allow_credentials: Whether they may send cookies.

    Returns:
        The application. Its ``lifespan`` has to be entered, see the example.

    Raises:
        MissingExtraError: The extra ``server`` is not installed.
        ValueError: Neither ``token`` nor ``authenticate`` nor ``no_token`` is given, or a value is invalid.
        InvalidRequestError: The store or its namespace is invalid.
    """
    if token == "" or (token is None and authenticate is None and not no_token):
        raise ValueError(
            "create_app needs token= or authenticate=: without, every client that reaches the application "
            "can run agents. Use no_token=True if something in front of it authenticates requests"
        )
    if no_token and (token is not None or authenticate is not None):
        raise ValueError("no_token=True accepts every request: omit it, or omit token= and authenticate=")
    for name, folder in (("fs_roots", fs_roots), ("cors_allow_origins", cors_allow_origins)):
        if isinstance(folder, str):
            raise ValueError(f"{name} must be a list of strings, not the string {folder!r}")
    if cors_allow_credentials and "*" in cors_allow_origins:
        raise ValueError(
            "cors_allow_credentials with the origin '*' would give the pages of every site the credentials "
            "of this server: name the origins"
        )
    store = check_store(store)
    config = ServerConfig(
        host=_ANY_HOST,
        token=token,
        store=store,
        store_namespace=None if store_namespace is None else check_namespace(store_namespace),
        retain_days=retain_days,
        agent_environment=AgentEnvironment(
            policy=env_policy,
            allow=tuple(env_allow),
            deny=tuple(env_deny),
            token=token,
            store_secrets=tuple(secrets_of(store)),
        ),
        fs_roots=tuple(Path(root).absolute() for root in fs_roots),
        require_preinstall=require_preinstall,
        request_timeout=request_timeout,
        cancel_grace=cancel_grace,
        session_idle_timeout=session_idle_timeout,
        acp_idle_timeout=acp_idle_timeout,
        max_body_bytes=max_body_bytes,
        cors=CorsConfig(allow_origins=tuple(cors_allow_origins), allow_credentials=cors_allow_credentials),
    )
    return Application(config, authenticate)
