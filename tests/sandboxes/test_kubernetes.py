"""kubernetes() at an API server on loopback whose pods run the script and the server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner, Result

from sandbox_agent import (
    KubernetesProvider,
    SandboxAgent,
    SandboxAgentError,
    SandboxDestroyedError,
    kubernetes,
)
from sandbox_agent.cli.main import cli
from sandbox_agent.providers import kubernetes_access
from sandbox_agent.providers.kubernetes_access import read_access
from tests.sandboxes.fakes.kubernetes import TOKEN, FakeKubernetes
from tests.sandboxes.remote_suite import METADATA, Make, RemoteSuite
from tests.support.servers import free_port

pytest.importorskip("yaml", reason="KUBERNETES NOT TESTED: PyYAML is not installed")
pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]

WAITING = {"waiting": {"reason": "ContainerCreating", "message": ""}}


class TestKubernetes(RemoteSuite):
    fake = FakeKubernetes
    title = "Kubernetes"
    variable = "KUBECONFIG"
    has_timeout = False
    has_pause = False

    @pytest.fixture
    def service(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
        monkeypatch.setattr("sandbox_agent.providers.kubernetes._POLL_INTERVAL", 0.01)
        with self.running_fake(tmp_path) as fake:
            assert isinstance(fake, FakeKubernetes)
            (tmp_path / "kubeconfig").write_text(json.dumps(fake.kubeconfig()))
            yield fake

    @staticmethod
    def provider_of(service: FakeKubernetes, options: dict[str, Any]) -> KubernetesProvider:
        return kubernetes(kubeconfig=service.home.parent / "kubeconfig", **options)

    async def test_the_requests_to_the_service_are_these(self, make: Make, service: FakeKubernetes) -> None:
        service.states = [WAITING, WAITING]
        provider = make(
            image="my/image:1",
            env={"A": "secret"},
            labels={"team": "a", "sandbox-agent": "no"},
            limits={"memory": "4Gi"},
            runtime_class="gvisor",
        )
        raw_id = await provider.create()
        [listed] = await provider.list_sandboxes()
        assert (listed.id, listed.image, listed.state) == (raw_id, "image", "Running")
        await provider.destroy(raw_id)
        port = provider._agent_port  # pyright: ignore[reportPrivateUsage]
        home = str(service.home)
        pods = "/api/v1/namespaces/agents/pods"
        pod: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": raw_id, "labels": {"team": "a", **METADATA}},
            "spec": {
                "containers": [
                    {
                        "name": "sandbox",
                        "image": "my/image:1",
                        "command": ["sleep", "infinity"],
                        "env": [{"name": "HOME", "value": home}],
                        "workingDir": home,
                        "ports": [{"containerPort": port}],
                        "resources": {
                            "limits": {"cpu": "2", "memory": "4Gi", "ephemeral-storage": "10Gi"},
                            "requests": {"cpu": "250m", "memory": "512Mi"},
                        },
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                            "privileged": False,
                        },
                        "volumeMounts": [{"name": "home", "mountPath": home}],
                    }
                ],
                "volumes": [{"name": "home", "emptyDir": {}}],
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "shareProcessNamespace": True,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 1000,
                    "runAsGroup": 1000,
                    "fsGroup": 1000,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "runtimeClassName": "gvisor",
            },
        }
        found = ("GET", f"{pods}/{raw_id}", None)
        assert service.requests == [
            ("POST", pods, pod),
            *[found] * 4,
            ("GET", pods, None),
            ("DELETE", f"{pods}/{raw_id}", None),
        ]

    async def test_a_function_changes_the_pod_and_not_what_finds_it(
        self, make: Make, service: FakeKubernetes
    ) -> None:
        def change(pod: dict[str, Any]) -> dict[str, Any]:
            pod["spec"]["nodeSelector"] = {"pool": "agents"}
            pod["metadata"] = {"annotations": {"a": "b"}}
            return pod

        provider = make(create=change, namespace="mine")
        raw_id = await provider.create()
        _, path, pod = service.requests[0]
        assert path == "/api/v1/namespaces/mine/pods"
        assert pod["spec"]["nodeSelector"] == {"pool": "agents"}
        assert pod["metadata"] == {"name": raw_id, "labels": METADATA, "annotations": {"a": "b"}}
        await provider.destroy(raw_id)

    async def test_requests_reach_the_pods_address_in_the_cluster(
        self, make: Make, service: FakeKubernetes
    ) -> None:
        provider = make(connect="pod")
        async with SandboxAgent.start(sandbox=provider) as sdk:
            assert (await sdk.get_health()).status == "ok"
            await sdk.destroy_sandbox()
        assert service.forwards == []
        provider = make()
        await provider.destroy(await provider.create())
        assert set(service.forwards) == {provider._agent_port}  # pyright: ignore[reportPrivateUsage]

    async def test_a_large_body_and_a_port_without_a_server_are_forwarded(
        self, make: Make, service: FakeKubernetes
    ) -> None:
        provider = make()
        async with SandboxAgent.start(sandbox=provider) as sdk:
            content = bytes(range(256)) * 4000
            await sdk.files.write("/tmp/large", content)
            assert await sdk.files.read("/tmp/large") == content
            raw_id = str(sdk.sandbox_id).partition("/")[2]
            service.kill_server()
            transport = await provider.get_transport(raw_id)
            async with httpx2.AsyncClient(transport=transport) as client:
                with pytest.raises(httpx2.ConnectError):
                    await client.get("http://pod/v1/health")
            await sdk.destroy_sandbox()

    async def test_a_pod_whose_image_cannot_be_pulled_fails_and_is_deleted(
        self, make: Make, service: FakeKubernetes
    ) -> None:
        service.states = [WAITING, {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}]
        with pytest.raises(SandboxAgentError, match="ImagePullBackOff: no such image"):
            await make().create()
        assert service.boxes == {}

    async def test_a_pod_that_does_not_run_in_time_says_why_and_is_deleted(
        self, make: Make, service: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sandbox_agent.providers.kubernetes.READY_TIMEOUT", 0.3)
        service.states = [WAITING] * 1000
        with pytest.raises(SandboxAgentError, match=r"does not run after 0.3 s: ContainerCreating"):
            await make().create()
        assert service.boxes == {}

    async def test_a_pod_that_has_ended_is_destroyed(self, make: Make, service: FakeKubernetes) -> None:
        provider = make()
        raw_id = await provider.create()
        service.phase = "Failed"
        with pytest.raises(SandboxDestroyedError):
            await provider.reconnect(raw_id)
        await provider.destroy(raw_id)
        assert service.boxes == {}

    async def test_a_version_that_is_no_label_is_changed(
        self, make: Make, service: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        provider = make()
        monkeypatch.setattr("sandbox_agent.providers.remote.package_version", lambda: "1.0+local")
        await provider.destroy(await provider.create())
        labels = service.requests[0][2]["metadata"]["labels"]
        assert labels == {"sandbox-agent": "1", "sandbox-agent-version": "1.0-local"}

    async def test_a_cluster_that_is_not_found_is_named(
        self, make: Make, service: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sandbox_agent.providers.service._FIRST_WAIT", 0.0)
        config = json.dumps(service.kubeconfig()).replace("127.0.0.1", "no-such-host.invalid")
        (service.home.parent / "kubeconfig").write_text(config)
        provider = make()
        for call in (provider.get_token, provider.reconnect):
            with pytest.raises(SandboxAgentError, match="could not be reached"):
                await call("sandbox-agent-0123")

    async def test_arguments_are_checked(self, make: Make) -> None:
        with pytest.raises(ValueError, match="'forward' or 'pod'"):
            make(connect="proxy")
        with pytest.raises(TypeError, match="unexpected keyword argument 'timeout'"):
            make(timeout=60)


def test_the_command_line_uses_pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sandbox-agent").symlink_to(Path(sys.executable).with_name("sandbox-agent"))
    (tmp_path / "file").write_text("of this machine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    port = free_port()

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, list(words))

    with FakeKubernetes(tmp_path / "home", programs) as fake:
        (tmp_path / "kubeconfig").write_text(json.dumps(fake.kubeconfig()))

        def make(image: str | None = None, **options: Any) -> KubernetesProvider:
            return kubernetes(image, home=str(fake.home), agent_port=port, **options)

        monkeypatch.setattr("sandbox_agent.providers.kubernetes.kubernetes", make)
        words = ("--agent", "mock", "--sandbox", "kubernetes", "--image", "my/image", "--keep")
        done = run("run", "echo hello", *words)
        assert done.exit_code == 0, done.stderr
        assert fake.requests[0][2]["spec"]["containers"][0]["image"] == "my/image"
        [raw_id] = fake.boxes
        sandbox_id = f"kubernetes/{raw_id}"
        assert sandbox_id in run("sandboxes", "list", "--provider", "kubernetes", "--json").stdout
        assert "listens on" in run("sandboxes", "logs", sandbox_id).stdout
        ended = run("sandboxes", "exec", sandbox_id, "--", "sh", "-c", "cat file; exit 3")
        assert (ended.exit_code, ended.stdout) == (3, "of this machine")
        assert run("sandboxes", "destroy", sandbox_id).exit_code == 0
        assert fake.boxes == {}


class TestAccess:
    """Which cluster is used, and with what."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> dict[str, Any]:
        with FakeKubernetes(tmp_path, tmp_path) as fake:
            return fake.kubeconfig()

    def read(self, folder: Path, config: dict[str, Any], context: str | None = None) -> Any:
        (folder / "config").write_text(json.dumps(config))
        return read_access(folder / "config", context)

    async def test_tokens_are_sent_and_not_shown(self, config: dict[str, Any], tmp_path: Path) -> None:
        access = self.read(tmp_path, config)
        assert access.headers == {"Authorization": f"Bearer {TOKEN}"}
        assert TOKEN not in repr(access)
        assert (access.namespace, access.is_inside, access.tls) == ("agents", False, None)
        (tmp_path / "token").write_text("of a file\n")
        config["users"][0]["user"] = {"tokenFile": "token"}
        assert self.read(tmp_path, config).headers == {"Authorization": "Bearer of a file"}
        config["users"][0]["user"] = {"username": "a", "password": "b"}
        assert self.read(tmp_path, config).headers == {"Authorization": "Basic YTpi"}

    async def test_a_program_brings_credentials(self, config: dict[str, Any], tmp_path: Path) -> None:
        program = tmp_path / "program"
        program.write_text(
            '#!/bin/sh\necho "{\\"status\\": {\\"token\\": \\"$1 $V\\", '
            '\\"expirationTimestamp\\": \\"2020-01-02T03:04:05Z\\"}}"'
        )
        program.chmod(0o755)
        user = {"command": "./program", "args": ["one"], "env": [{"name": "V", "value": "two"}]}
        config["users"][0]["user"] = {"exec": user}
        access = self.read(tmp_path, config)
        assert access.headers == {"Authorization": "Bearer one two"}
        # It has expired, and so is asked again.
        assert access.until <= kubernetes_access.time.monotonic()
        program.write_text("#!/bin/sh\necho log in first >&2; exit 1")
        with pytest.raises(SandboxAgentError, match="log in first"):
            self.read(tmp_path, config)
        for odd in ("null", "[]", '{"expirationTimestamp": "soon"}', '{"clientKeyData": 5}'):
            program.write_text(f"#!/bin/sh\necho '{{\"status\": {odd}}}'")
            with pytest.raises(SandboxAgentError, match="brought no credentials"):
                self.read(tmp_path, config)

    async def test_a_context_is_chosen_and_what_is_missing_is_named(
        self, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config["contexts"].append({"name": "other", "context": {"cluster": "c", "user": "u"}})
        assert self.read(tmp_path, config, "other").namespace == "default"
        with pytest.raises(SandboxAgentError, match="context none"):
            self.read(tmp_path, config, "none")
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'no'}:{tmp_path / 'config'}")
        assert read_access(None, "other").namespace == "default"
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no"))
        with pytest.raises(SandboxAgentError, match="there is no kubeconfig at"):
            read_access(None, None)

    async def test_the_certificates_of_a_cluster_and_a_user_are_used(
        self, config: dict[str, Any], tmp_path: Path
    ) -> None:
        make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=a -days 1"
        files = ["-keyout", "key", "-out", "cert"]
        done = await asyncio.create_subprocess_exec(
            *make.split(), *files, cwd=tmp_path, stderr=asyncio.subprocess.DEVNULL
        )
        assert await done.wait() == 0
        config["clusters"][0]["cluster"] = {"server": "https://a:6443/", "certificate-authority": "cert"}
        config["users"][0]["user"] = {"client-certificate": "cert", "client-key": "key"}
        access = self.read(tmp_path, config)
        assert access.url == "https://a:6443"
        [authority] = access.tls.get_ca_certs()
        assert authority["subject"] == (((("commonName", "a"),),))

    async def test_a_pod_uses_its_service_account(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kubernetes_access, "_SERVICE_ACCOUNT", tmp_path)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no"))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
        for name, text in (("token", "abc\n"), ("namespace", "mine")):
            (tmp_path / name).write_text(text)
        bundle = Path(sys.modules["certifi"].where()) if "certifi" in sys.modules else None
        (tmp_path / "ca.crt").write_bytes(b"" if bundle is None else bundle.read_bytes())
        access = read_access(None, None)
        assert access.url == "https://[fd00::1]:443"
        assert (access.namespace, access.is_inside) == ("mine", True)
        assert access.headers == {"Authorization": "Bearer abc"}
