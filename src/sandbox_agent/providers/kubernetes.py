"""The provider of Kubernetes: a pod for each sandbox, by the API of the cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, ClassVar, Final, Literal, Unpack
from urllib.parse import quote, urlencode

import httpx2
import msgspec

from sandbox_agent.errors import SandboxAgentError, SandboxDestroyedError
from sandbox_agent.providers.http_service import RawOutput, SocketProvider, open_socket, run_command
from sandbox_agent.providers.kubernetes_access import Access, read_access
from sandbox_agent.providers.kubernetes_forward import ForwardTransport
from sandbox_agent.providers.remote import Address, RemoteOptions, SandboxListing
from sandbox_agent.providers.service import Service

_IMAGE = "docker.io/library/python:3.13-slim"
_CONTAINER = "sandbox"
# Seconds, for a request to the API server. A command has no limit.
_TIMEOUT = 60.0
# Seconds until a pod runs, whose image may have to be pulled.
READY_TIMEOUT = 300.0
_POLL_INTERVAL = 0.5
_USER = 1000
# A container that waits for one of these starts after somebody has changed something.
_HOPELESS = (
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
)
_SUBPROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")


class KubernetesOptions(RemoteOptions, total=False):
    """The options of ``kubernetes()``, which explains them."""

    namespace: str | None
    labels: Mapping[str, str]
    limits: Mapping[str, str]
    requests: Mapping[str, str]
    runtime_class: str | None
    connect: Literal["forward", "pod"] | None
    kubeconfig: str | os.PathLike[str] | None
    context: str | None


# Of the limits, the requests of a pod are the scheduler's.
_LIMITS: Final = {"cpu": "2", "memory": "2Gi", "ephemeral-storage": "10Gi"}
_REQUESTS: Final = {"cpu": "250m", "memory": "512Mi"}


class KubernetesProvider(SocketProvider):
    """Runs each sandbox in a pod. Created by ``kubernetes``."""

    name: str = "kubernetes"
    service: ClassVar[Service] = Service(
        "Kubernetes",
        "kubernetes",
        "KUBECONFIG",
        "kubeconfig=...",
        module="yaml",
        needs=("websockets",),
        permission="Give it the rights that docs/sandboxes/kubernetes.md lists.",
    )
    options_type: ClassVar[type[RemoteOptions]] = KubernetesOptions
    default_home: ClassVar[str] = "/home/agent"
    # The variables of a pod can be read by all who can read pods.
    has_env_file: ClassVar[bool] = True
    never_ends: ClassVar[bool] = True
    has_timeout: ClassVar[bool] = False

    def __init__(self, image: str | None = None, **options: Unpack[KubernetesOptions]) -> None:
        """Store the options. See ``kubernetes`` for the arguments."""
        super().__init__(options)
        self._image = image or _IMAGE
        self._home = options.get("home", self.default_home)
        self._namespace = options.get("namespace")
        self._labels = dict(options.get("labels", {}))
        self._limits = {**_LIMITS, **options.get("limits", {})}
        self._requests = {**_REQUESTS, **options.get("requests", {})}
        self._runtime_class = options.get("runtime_class")
        self._connection = options.get("connect")
        if self._connection not in (None, "forward", "pod"):
            raise ValueError(f"connect must be 'forward' or 'pod', not {self._connection!r}")
        self._kubeconfig = options.get("kubeconfig")
        self._context = options.get("context")
        self._access: Access | None = None

    async def _reach(self) -> Access:
        if self._access is None or time.monotonic() >= self._access.until:
            self._access = await asyncio.to_thread(read_access, self._kubeconfig, self._context)
        return self._access

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncGenerator[httpx2.AsyncClient]:
        access = await self._reach()
        namespace = quote(self._namespace or access.namespace, safe="")
        async with httpx2.AsyncClient(
            base_url=f"{access.url}/api/v1/namespaces/{namespace}/",
            headers=access.headers,
            verify=access.tls or False,
            timeout=_TIMEOUT,
        ) as client:
            yield client

    def _pod(self, name: str, metadata: Mapping[str, str]) -> dict[str, Any]:
        """Return the pod. Its container has no capabilities and no token of the cluster."""
        container = {
            "name": _CONTAINER,
            "image": self._image,
            "command": ["sleep", "infinity"],
            "env": [{"name": "HOME", "value": self._home}],
            "workingDir": self._home,
            "ports": [{"containerPort": self._agent_port}],
            "resources": {"limits": self._limits, "requests": self._requests},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "privileged": False,
            },
            "volumeMounts": [{"name": "home", "mountPath": self._home}],
        }
        spec: dict[str, Any] = {
            "containers": [container],
            "volumes": [{"name": "home", "emptyDir": {}}],
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            # The first process of the pod then reaps what ends, which sleep does not.
            "shareProcessNamespace": True,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "fsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
        if self._runtime_class is not None:
            spec["runtimeClassName"] = self._runtime_class
        # A label has fewer characters than a version, such as 1.0+local.
        metadata = {key: re.sub(r"[^A-Za-z0-9._-]", "-", value) for key, value in metadata.items()}
        labels = {**self._labels, **metadata}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
        pod = self._native(pod)
        pod["metadata"] = {**pod["metadata"], "name": name, "labels": {**labels, **metadata}}
        return pod

    async def _create_sandbox(
        self, client: httpx2.AsyncClient, name: str, metadata: Mapping[str, str]
    ) -> str:
        await self._send(client, "POST", "pods", json=self._pod(name, metadata))
        return name

    async def _set_up(self, client: httpx2.AsyncClient, sandbox_id: str) -> None:
        await self._wait_running(client, sandbox_id)
        await super()._set_up(client, sandbox_id)

    async def _get(self, client: httpx2.AsyncClient, sandbox_id: str) -> dict[str, Any]:
        """Return a pod that has not ended."""
        content = await self._send(client, "GET", _path(sandbox_id))
        pod = msgspec.json.decode(content, type=dict[str, Any])
        has_ended = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if has_ended or pod["metadata"].get("deletionTimestamp"):
            raise SandboxDestroyedError(sandbox_id, self.name)
        return pod

    async def _wait_running(self, client: httpx2.AsyncClient, sandbox_id: str) -> None:
        waits_for = "nothing is known of it"
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                while True:
                    pod = await self._call(sandbox_id, lambda: self._get(client, sandbox_id))
                    waits_for = self._what_it_waits_for(pod, sandbox_id)
                    if not waits_for:
                        return
                    await asyncio.sleep(_POLL_INTERVAL)
        except TimeoutError:
            raise SandboxAgentError(
                f"pod '{sandbox_id}' does not run after {READY_TIMEOUT:g} s: {waits_for}. See "
                f"'kubectl describe pod {sandbox_id}'."
            ) from None

    def _what_it_waits_for(self, pod: Mapping[str, Any], sandbox_id: str) -> str:
        """Say why a pod does not run yet. Empty if it does.

        Raises:
            SandboxAgentError: It will not run.
        """
        status: dict[str, Any] = pod.get("status", {})
        found: list[dict[str, Any]] = [
            each for each in status.get("containerStatuses", ()) if each["name"] == _CONTAINER
        ]
        if found and "running" in found[0].get("state", {}):
            return ""
        waiting: dict[str, Any] = found[0].get("state", {}).get("waiting", {}) if found else {}
        text = f"{waiting.get('reason', '')}: {waiting.get('message', '')}" if waiting else ""
        if waiting.get("reason") in _HOPELESS:
            raise SandboxAgentError(
                f"pod '{sandbox_id}' cannot start with the image {self._image}: {text}. Use an image that "
                "the nodes can pull and that runs as a user that is not root."
            )
        unmet: list[dict[str, Any]] = [
            each for each in status.get("conditions", ()) if each.get("status") == "False"
        ]
        return text or "; ".join(str(each.get("message", each["type"])) for each in unmet) or "it is new"

    async def _destroy_sandbox(self, client: httpx2.AsyncClient, sandbox_id: str) -> None:
        # What runs in it has no use for the time that a pod usually gets to end.
        await self._send(client, "DELETE", _path(sandbox_id), params={"gracePeriodSeconds": 0})

    async def _wake_sandbox(self, client: httpx2.AsyncClient, sandbox_id: str) -> bool:
        await self._get(client, sandbox_id)
        return False

    async def _execute(
        self, client: httpx2.AsyncClient, sandbox_id: str, command: str, stdin: bytes = b""
    ) -> RawOutput:
        access = await self._reach()
        words = ["sh", "-c", command]
        query = urlencode(
            [
                *(("command", word) for word in words),
                ("container", _CONTAINER),
                ("stdin", "true" if stdin else "false"),
                ("stdout", "true"),
                ("stderr", "true"),
                ("tty", "false"),
            ]
        )
        url = f"{client.base_url}{_path(sandbox_id)}/exec?{query}"
        async with open_socket(url, access.headers, _SUBPROTOCOLS, access.tls) as socket:
            return await run_command(socket, _exit_code, stdin)

    async def _find_address(self, client: httpx2.AsyncClient, sandbox_id: str) -> Address:
        pod = await self._get(client, sandbox_id)
        if not await self._is_direct():
            return Address(f"http://{sandbox_id}")
        host = pod["status"]["podIP"]
        return Address(f"http://{f'[{host}]' if ':' in host else host}:{self._agent_port}")

    async def _is_direct(self) -> bool:
        return self._connection == "pod" or (self._connection is None and (await self._reach()).is_inside)

    async def get_transport(self, sandbox_id: str, /) -> httpx2.AsyncBaseTransport:
        """Return a transport to the pod: through the API server, or to the pod's address."""
        if await self._is_direct():
            return await super().get_transport(sandbox_id)
        namespace = quote(self._namespace or (await self._reach()).namespace, safe="")
        pod = f"/api/v1/namespaces/{namespace}/{_path(sandbox_id)}"
        return ForwardTransport(f"{pod}/portforward?ports={self._agent_port}", self._reach)

    async def _list_sandboxes(
        self, client: httpx2.AsyncClient, metadata: Mapping[str, str]
    ) -> list[SandboxListing]:
        selector = ",".join(f"{key}={value}" for key, value in metadata.items())
        query: dict[str, str] = {"labelSelector": selector}
        pods = msgspec.json.decode(await self._send(client, "GET", "pods", params=query))["items"]
        return [
            SandboxListing(
                pod["metadata"]["name"],
                pod["spec"]["containers"][0]["image"],
                pod.get("status", {}).get("phase", ""),
                pod["metadata"].get("creationTimestamp") or "",
            )
            for pod in pods
        ]


def kubernetes(image: str | None = None, **options: Unpack[KubernetesOptions]) -> KubernetesProvider:
    """Return a provider that runs each sandbox in a pod. Its ids are ``kubernetes/<name of the pod>``.

    The pod runs as user 1000, without capabilities, privilege escalation or a token of the cluster, with the
    runtime's seccomp profile and limits. The cluster's NetworkPolicies decide what it reaches on the network.
    The arguments that are not listed are those of ``e2b``. There is no ``timeout``: a pod runs until it is
    destroyed, and loses its files then. It does not pause.

    Args:
        image: An image with Python 3.11 or uv, or with ``sandbox-agent`` of this version. None for Python's.
        namespace: The namespace, or None for that of the configuration.
        labels: More labels of the pod, such as those that NetworkPolicies select.
        limits: Limits of the container, merged into 2 processors, ``2Gi`` of memory and ``10Gi`` of
            ephemeral storage.
        requests: What the scheduler reserves, merged into ``250m`` processors and ``512Mi`` of memory.
        runtime_class: A RuntimeClass, such as ``gvisor`` or ``kata``.
        connect: "forward" sends requests through the API server. "pod" sends them to the pod's address, which
            works in the cluster. None for "pod" if this program runs in a pod, and "forward" otherwise.
        kubeconfig: A kubeconfig file, or None for that of ``KUBECONFIG``, ``~/.kube/config``, or the service
            account of the pod in which this program runs.
        context: A context of the file, or None for its current one.
        create: Fields that replace those of the pod, or a function that gets the pod and returns the one to
            create.

    Raises:
        ImportError: The extra ``kubernetes`` is not installed.
        TypeError: There is no such argument.
        ValueError: An argument is invalid.
    """
    return KubernetesProvider(image, **options)


def _path(name: str) -> str:
    return f"pods/{quote(name, safe='')}"


def _exit_code(content: bytes) -> int:
    """Return the exit code of a status of the Kubernetes API."""
    status = msgspec.json.decode(content, type=dict[str, Any])
    if status.get("status") == "Success":
        return 0
    details: dict[str, Any] = status.get("details") or {}
    causes: list[dict[str, Any]] = details.get("causes") or []
    for cause in causes:
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise ConnectionError(f"the command did not run: {status.get('message', 'without a reason')}")
