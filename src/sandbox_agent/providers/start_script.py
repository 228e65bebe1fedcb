"""The shell script that installs and starts the server in a sandbox.

It runs under any POSIX sh, and again at any time: it does nothing if the server answers.
"""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

# Exit codes of the script.
NEEDS_WHEEL = 21
INSTALL_FAILED = 22
AGENTS_FAILED = 23
START_FAILED = 24
NO_TOKEN = 25

# Seconds that the server has to answer, with agents and a package index out of the way.
START_TIMEOUT = 30
# The server that was killed has the store for a moment longer.
_STORE_WAIT = 6
_OUTPUT_LINES = 20


def package_version() -> str:
    """Return the version of this package."""
    return importlib.metadata.version("sandbox-agent-py")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartScript:
    """A script that starts the server, after installing it if necessary.

    It uses ``sandbox-agent`` from PATH or from its own virtual environment, if that is this version.
    Otherwise it installs the package from the package index, or the wheel in its folder (``own_wheel.py``).
    The token is read from the file ``token`` in its folder. With the argument ``install``, no server starts,
    and no token is needed.

    Attributes:
        port: The server's port.
        host: The address on which it listens.
        folder: The absolute path of its folder in the sandbox, or None for ``$HOME/.sandbox-agent``. It holds
            the token, the store, the log, the process id, and the virtual environment.
        cwd: The absolute path of the server's working directory, or None for the home.
        version: The version of the package that has to run.
        install_agents: Agents to install before.
        arguments: More arguments of ``sandbox-agent server``.
    """

    port: int
    host: str = "0.0.0.0"  # noqa: S104 - the sandbox's ports are reached through its service
    folder: str | None = None
    cwd: str | None = None
    version: str = field(default_factory=package_version)
    install_agents: Sequence[str] = ()
    arguments: Sequence[str] = ()

    def text(self) -> str:
        """Return the script. It has no secrets.

        Its exit code is 0 or one of:

        * ``NEEDS_WHEEL``: The package index does not have the package, and there is no wheel in the folder.
        * ``INSTALL_FAILED``: There is no Python 3.11, or the wheel or what it needs could not be installed.
        * ``AGENTS_FAILED``: An agent could not be installed.
        * ``START_FAILED``: The server ended at its start, or did not answer in time.
        * ``NO_TOKEN``: There is no token in the folder.

        Standard error then says why, and ends with the output of what failed.
        """
        home = '"${HOME:-/root}/.sandbox-agent"'
        folder = home if self.folder is None else shlex.quote(self.folder)
        server = shlex.join(
            [
                *("server", "--host", self.host, "--port", str(self.port)),
                *("--store-wait", str(_STORE_WAIT), *self.arguments),
            ]
        )
        return _SCRIPT.format(
            folder=folder,
            cwd='"${HOME:-/}"' if self.cwd is None else shlex.quote(self.cwd),
            version=shlex.quote(self.version),
            port=self.port,
            agents=shlex.join(self.install_agents),
            server=server,
            start_failed=START_FAILED,
            timeout=START_TIMEOUT,
            lines=_OUTPUT_LINES,
            needs_wheel=NEEDS_WHEEL,
            install_failed=INSTALL_FAILED,
            agents_failed=AGENTS_FAILED,
            no_token=NO_TOKEN,
        )


# Braces of the shell are doubled, for str.format().
_SCRIPT = """\
#!/bin/sh
set -u
umask 077
step=${{1:-}}
folder={folder}
version={version}
mkdir -p "$folder" || exit {install_failed}

fail() {{  # code, message, file with output
    echo "sandbox-agent: $2" >&2
    if [ -f "${{3:-}}" ]; then tail -n {lines} "$3" >&2; fi
    exit "$1"
}}

is_python() {{
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}}

python=
for name in python3 python3.14 python3.13 python3.12 python3.11 python "$folder/venv/bin/python"; do
    if is_python "$name"; then python=$name; break; fi
done

answers() {{
    if command -v curl >/dev/null 2>&1; then
        curl -fs --noproxy '*' -o /dev/null -m 5 http://127.0.0.1:{port}/v1/health
    elif [ -n "$python" ]; then
        "$python" -c 'import urllib.request as u
u.build_opener(u.ProxyHandler({{}})).open("http://127.0.0.1:{port}/v1/health", timeout=5)' >/dev/null 2>&1
    else
        return 1
    fi
}}

if answers; then exit 0; fi
# One at a time. The server must not inherit the lock.
if command -v flock >/dev/null 2>&1; then
    exec 9>"$folder/lock"
    flock 9
    if answers; then exit 0; fi
fi

if [ "$step" != install ]; then
    if [ ! -s "$folder/token" ]; then fail {no_token} "there is no token in $folder/token"; fi
    chmod 600 "$folder/token"
fi

is_this_version() {{
    [ "$("$1" --version 2>/dev/null)" = "sandbox-agent, version $version" ]
}}

install() {{  # requirement
    if [ ! -x "$folder/venv/bin/python" ]; then
        rm -rf "$folder/venv"
        if command -v uv >/dev/null 2>&1; then
            uv venv --no-project ${{python:+--python "$python"}} "$folder/venv"
        else
            "$python" -m venv "$folder/venv"
        fi || {{ rm -rf "$folder/venv"; return 1; }}
    fi
    if command -v uv >/dev/null 2>&1; then
        uv pip install --python "$folder/venv/bin/python" "$1"
    else
        "$folder/venv/bin/python" -m pip install --disable-pip-version-check --no-input "$1"
    fi
}}

has_installer() {{ [ -n "$python" ] || command -v uv >/dev/null 2>&1; }}

program=
for name in "$(command -v sandbox-agent 2>/dev/null)" "$folder/venv/bin/sandbox-agent"; do
    if [ -x "$name" ] && is_this_version "$name"; then program=$name; break; fi
done
if [ -z "$program" ]; then
    has_installer || fail {install_failed} \
        "neither sandbox-agent $version nor Python 3.11 or newer is installed: use an image that has one"
    log="$folder/install.log"
    : >"$log"
    program="$folder/venv/bin/sandbox-agent"
    wheel="$folder/sandbox_agent_py-$version-py3-none-any.whl"
    if [ -f "$wheel" ]; then
        install "$wheel[server]" >>"$log" 2>&1 ||
            fail {install_failed} "the uploaded wheel could not be installed:" "$log"
    else
        install "sandbox-agent-py[server]==$version" >>"$log" 2>&1 ||
            fail {needs_wheel} "version $version could not be installed from the package index:" "$log"
    fi
    is_this_version "$program" || fail {install_failed} "what was installed is not version $version:" "$log"
fi

set -- {agents}
if [ $# -gt 0 ]; then
    "$program" agents install "$@" >"$folder/agents.log" 2>&1 9>&- ||
        fail {agents_failed} "agents could not be installed: $*:" "$folder/agents.log"
fi

if [ "$step" = install ]; then exit 0; fi
set -- {server} --token-file "$folder/token"
case " $* " in *" --store "*|*" --store="*) ;; *) set -- "$@" --store "sqlite:$folder/server.db" ;; esac
unset SANDBOX_AGENT_TOKEN
cd {cwd} || cd /
# Its output goes to a file and its input is empty, so that what the service waits for is closed.
detach=
if command -v setsid >/dev/null 2>&1; then detach=setsid; fi
nohup $detach "$program" "$@" </dev/null >"$folder/server.log" 2>&1 9>&- &
pid=$!
echo "$pid" >"$folder/server.pid"
end=$(($(date +%s) + {timeout}))
while ! answers; do
    kill -0 "$pid" 2>/dev/null || fail {start_failed} "the server ended at its start:" "$folder/server.log"
    if [ "$(date +%s)" -gt "$end" ]; then
        kill "$pid"
        fail {start_failed} "the server did not answer within {timeout} s:" "$folder/server.log"
    fi
    sleep 0.1
done
"""
