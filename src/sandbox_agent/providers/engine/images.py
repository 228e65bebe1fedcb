"""The image of a sandbox: whether the engine has it, and pulling it."""

from __future__ import annotations

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.engine.api import EngineApi
from sandbox_agent.providers.engine.container import DEFAULT_IMAGE, Pull


async def ensure_image(api: EngineApi, image: str, pull: Pull) -> str:
    """Pull an image if that is wanted, and return its id.

    Raises:
        SandboxAgentError: The engine does not have the image, and it is not to be pulled or cannot be.
    """
    is_ours = image == DEFAULT_IMAGE  # no registry has it
    if (pull != "always" or is_ours) and (found := await api.find_image(image)) is not None:
        return found
    if is_ours:
        raise SandboxAgentError(
            f"{api.engine} does not have the image '{image}': build it with 'sandbox-agent image build "
            f"--engine {api.engine}', or pass image="
        )
    if pull == "never":
        raise SandboxAgentError(
            f"{api.engine} does not have the image '{image}': build it, or pass pull='missing'"
        )
    repository, tag = split_tag(image)
    try:
        async for _ in api.stream_lines("/images/create", params={"fromImage": repository, "tag": tag}):
            pass
    except SandboxAgentError as error:
        raise SandboxAgentError(
            f"the image '{image}' could not be pulled ({error}): check its name, run '{api.engine} pull "
            f"{image}' if its registry needs a login, or build it with 'sandbox-agent image build --tag'"
        ) from error
    found = await api.find_image(image)
    if found is None:
        raise SandboxAgentError(
            f"{api.engine} pulled the image '{image}' and does not have it: pull it again"
        )
    return found


def split_tag(image: str) -> tuple[str, str]:
    """Return the repository of an image and its tag or digest, by default "latest"."""
    if "@" in image:
        repository, _, digest = image.partition("@")
        return repository, digest
    folder, slash, name = image.rpartition("/")
    base, _, tag = name.partition(":")
    return f"{folder}{slash}{base}", tag or "latest"
