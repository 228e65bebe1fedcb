"""``sandbox-agent credentials``: what agents on this machine would log in with."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from sandbox_agent.agents.credentials import VARIABLES, Credential, find_credentials
from sandbox_agent.cli.output import print_table
from sandbox_agent.errors import InvalidRequestError

# The provider whose credentials an agent uses; OpenCode uses any.
_PROVIDERS = {"claude": "anthropic", "codex": "openai", "amp": "anthropic"}
_NOTHING = "no credentials were found: set an API key in the environment, or log in with an agent"

_home = click.option(
    "--home-dir", "-d", type=click.Path(path_type=Path), help="The home folder. Default: the user's own."
)
_no_oauth = click.option("--no-oauth", is_flag=True, help="Leave out the tokens of logins.")
_reveal = click.option("--reveal", "-r", is_flag=True, help="Show keys and tokens in full.")


@click.group()
def credentials() -> None:
    """Show the credentials that agents find on this machine.

    They come from the environment and from the files in which Claude Code, Codex, OpenCode and Amp store
    their logins. Keys are shown in part, unless --reveal is given.
    """


@credentials.command(name="list")
@_home
@_no_oauth
@_reveal
def list_all(home_dir: Path | None, no_oauth: bool, reveal: bool) -> None:
    """List all credentials."""
    found = _find(home_dir, no_oauth)
    if not found:
        raise InvalidRequestError(_NOTHING)
    rows = [
        [each.provider, each.source, each.auth_type, _shown(each, reveal), _expires(each)] for each in found
    ]
    print_table(["PROVIDER", "SOURCE", "TYPE", "KEY", "EXPIRES"], rows)


@credentials.command()
@click.option(
    "--agent", "-a", type=click.Choice(["claude", "codex", "opencode", "amp"]), help="For an agent."
)
@click.option("--provider", "-p", help="For a provider, such as anthropic.")
@_home
@_no_oauth
@_reveal
def extract(
    agent: str | None, provider: str | None, home_dir: Path | None, no_oauth: bool, reveal: bool
) -> None:
    """Print the best credential of each provider as JSON.

    With --agent or --provider, print only that key or token.
    """
    best = _best(_find(home_dir, no_oauth))
    own = _PROVIDERS.get(agent or "")
    if own is not None and provider not in (None, own):
        raise InvalidRequestError(f"agent {agent} uses only the provider {own}: leave --provider out")
    wanted = provider or own or (next(iter(best), None) if agent else None)
    if agent == "opencode" and provider is None and len(best) > 1:
        raise InvalidRequestError(
            f"opencode can use several providers: choose one of {', '.join(best)} with --provider"
        )
    if wanted is not None or agent:
        if wanted not in best:
            raise InvalidRequestError(_NOTHING)
        click.echo(_shown(best[wanted], reveal))
        return
    named = {name: _document(best[name], reveal) if name in best else None for name in VARIABLES}
    others = {name: _document(each, reveal) for name, each in best.items() if name not in VARIABLES}
    click.echo(json.dumps({**named, "other": others}, indent=2))


@credentials.command()
@click.option("--export", "-e", is_flag=True, help="Write export in front of each assignment.")
@_home
@_no_oauth
@_reveal
def extract_env(export: bool, home_dir: Path | None, no_oauth: bool, reveal: bool) -> None:
    """Print assignments of environment variables, for a shell to read.

    On a terminal, keys are shown in part unless --reveal is given.
    """
    in_full = reveal or not sys.stdout.isatty()
    for provider, each in _best(_find(home_dir, no_oauth)).items():
        for name in VARIABLES.get(provider, (f"{provider.upper().replace('-', '_')}_API_KEY",)):
            click.echo(f"{'export ' if export else ''}{name}={shlex.quote(_shown(each, in_full))}")


def _find(home: Path | None, no_oauth: bool) -> list[Credential]:
    return find_credentials(home or Path.home(), oauth=not no_oauth)


def _best(found: list[Credential]) -> dict[str, Credential]:
    best: dict[str, Credential] = {}
    for each in found:
        if not each.is_expired:
            best.setdefault(each.provider, each)
    return best


def _shown(credential: Credential, reveal: bool) -> str:
    return credential.api_key if reveal else credential.redacted


def _expires(credential: Credential) -> str:
    if credential.expires_at is None:
        return ""
    when = datetime.fromtimestamp(credential.expires_at, UTC).strftime("%Y-%m-%d %H:%M")
    return f"{when} (expired)" if credential.is_expired else when


def _document(credential: Credential, reveal: bool) -> dict[str, object]:
    return {
        "provider": credential.provider,
        "source": credential.source,
        "auth_type": credential.auth_type,
        "api_key": _shown(credential, reveal),
        "redacted": not reveal,
    }
