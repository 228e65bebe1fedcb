"""How a Kubernetes cluster is reached: from a kubeconfig file, or from inside of a pod."""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sandbox_agent.errors import SandboxAgentError

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Seconds for which a token is used before it is read again, which a file or a program may have replaced.
_LIFETIME = 60.0
# Seconds for a program that brings credentials, which may ask a service.
_PROGRAM_TIMEOUT = 60.0
_EXEC_VERSION = "client.authentication.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class Access:
    """A cluster and the credentials for it.

    Attributes:
        url: The URL of the API server.
        headers: Headers with the credentials.
        tls: The TLS context, or None for one without TLS.
        namespace: The namespace that the configuration names.
        is_inside: Whether this program runs in a pod of the cluster.
        until: When it is to be read again, on the monotonic clock.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    tls: ssl.SSLContext | None
    namespace: str
    is_inside: bool
    until: float


def read_access(path: str | os.PathLike[str] | None, context: str | None) -> Access:
    """Read the configuration. This blocks.

    Args:
        path: A kubeconfig file. None for the first file of ``KUBECONFIG``, or ``~/.kube/config``, or, where
            there is none, the service account of the pod in which this program runs.
        context: A context of the file, or None for its current one.

    Raises:
        SandboxAgentError: There is no configuration, or it lacks something.
    """
    files = [Path(path)] if path is not None else _usual_files()
    for file in files:
        if file.is_file():
            return _read_file(file, context)
    if path is None and "KUBERNETES_SERVICE_HOST" in os.environ and _SERVICE_ACCOUNT.is_dir():
        return _read_service_account()
    raise SandboxAgentError(
        f"there is no kubeconfig at {', '.join(str(file) for file in files)}: set KUBECONFIG, pass "
        "kubeconfig=, or run in a pod with a service account"
    )


def _usual_files() -> list[Path]:
    names = [name for name in os.environ.get("KUBECONFIG", "").split(os.pathsep) if name]
    return [Path(name).expanduser() for name in names] or [Path.home() / ".kube/config"]


def _read_service_account() -> Access:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    token = (_SERVICE_ACCOUNT / "token").read_text().strip()
    return Access(
        url=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        headers={"Authorization": f"Bearer {token}"},
        tls=ssl.create_default_context(cafile=str(_SERVICE_ACCOUNT / "ca.crt")),
        namespace=(_SERVICE_ACCOUNT / "namespace").read_text().strip(),
        is_inside=True,
        until=time.monotonic() + _LIFETIME,
    )


def _read_file(file: Path, context_name: str | None) -> Access:
    import yaml

    try:
        config = yaml.safe_load(file.read_text())
        name = context_name or config["current-context"]
        context = _named(config, "context", name)
        cluster = _named(config, "cluster", context["cluster"])
        user = _named(config, "user", context["user"]) if context.get("user") else {}
        url = cluster["server"].rstrip("/")
    except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise SandboxAgentError(
            f"kubeconfig {file} is not complete: {type(error).__name__}: {error}. It needs a current context "
            "(or pass context=) with a cluster and a user."
        ) from error
    until = time.monotonic() + _LIFETIME
    if "exec" in user:
        user, until = _run_program(user["exec"], file, until)
    elif "auth-provider" in user:
        raise SandboxAgentError(
            f"kubeconfig {file} has an auth-provider, which Kubernetes no longer has: use an exec program "
            "or a token"
        )
    return Access(
        url=url,
        headers=_headers(user, file),
        tls=_tls(cluster, user, file) if url.startswith("https:") else None,
        namespace=context.get("namespace") or "default",
        is_inside=False,
        until=until,
    )


def _named(config: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    for each in config.get(f"{kind}s") or ():
        if each["name"] == name:
            return each[kind] or {}
    raise KeyError(f"{kind} {name}")


def _headers(user: Mapping[str, Any], file: Path) -> dict[str, str]:
    if "tokenFile" in user:
        return {"Authorization": f"Bearer {(file.parent / user['tokenFile']).read_text().strip()}"}
    if "token" in user:
        return {"Authorization": f"Bearer {user['token']}"}
    if "username" in user:
        pair = f"{user['username']}:{user.get('password', '')}".encode()
        return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
    return {}


def _data(entry: Mapping[str, Any], name: str, file: Path) -> str | None:
    """Return a PEM text that is in the configuration or in a file beside it."""
    if entry.get(f"{name}-data"):
        return base64.b64decode(entry[f"{name}-data"]).decode()
    return (file.parent / entry[name]).read_text() if entry.get(name) else None


def _tls(cluster: Mapping[str, Any], user: Mapping[str, Any], file: Path) -> ssl.SSLContext:
    tls = ssl.create_default_context(cadata=_data(cluster, "certificate-authority", file))
    if cluster.get("insecure-skip-tls-verify"):
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    certificate, key = _data(user, "client-certificate", file), _data(user, "client-key", file)
    if certificate and key:
        # OpenSSL reads them from files only.
        with tempfile.TemporaryDirectory() as folder:
            chain = Path(folder, "chain.pem")
            chain.touch(0o600)
            chain.write_text(f"{certificate}\n{key}")
            tls.load_cert_chain(chain)
    return tls


def _run_program(program: Mapping[str, Any], file: Path, until: float) -> tuple[dict[str, Any], float]:
    """Return the credentials that a program prints, and until when they are used."""
    version = program.get("apiVersion", _EXEC_VERSION)
    asked = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}}
    variables = {each["name"]: each["value"] for each in program.get("env") or ()}
    command = [program["command"], *(program.get("args") or ())]
    if os.sep in command[0]:
        command[0] = str(file.parent / command[0])
    try:
        done = subprocess.run(  # noqa: S603 - the user's configuration names it
            command,
            env={**os.environ, **variables, "KUBERNETES_EXEC_INFO": json.dumps(asked)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROGRAM_TIMEOUT,
            check=True,
        )
        return _read_credentials(json.loads(done.stdout)["status"], until)
    except (
        OSError,
        subprocess.SubprocessError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:
        said = getattr(error, "stderr", None) or b""
        raise SandboxAgentError(
            f"{command[0]}, which kubeconfig {file} names, brought no credentials: {type(error).__name__}: "
            f"{said.decode(errors='replace').strip()[-500:]}. Run it by hand, or log in again."
        ) from error


def _read_credentials(status: Mapping[str, Any], until: float) -> tuple[dict[str, Any], float]:
    user: dict[str, Any] = {}
    if status.get("token"):
        user["token"] = status["token"]
    for name, field_name in (
        ("client-certificate", "clientCertificateData"),
        ("client-key", "clientKeyData"),
    ):
        if status.get(field_name):
            user[f"{name}-data"] = base64.b64encode(status[field_name].encode()).decode()
    if status.get("expirationTimestamp"):
        left = datetime.fromisoformat(status["expirationTimestamp"]).timestamp() - time.time()
        until = time.monotonic() + max(0.0, left - _LIFETIME)
    return user, until
