"""``sandbox-agent image``: the image of sandboxes in containers."""

from __future__ import annotations

import asyncio

import click

from sandbox_agent.providers.engine.api import EngineApi
from sandbox_agent.providers.engine.build import AGENTS_BASE, BASE, build_image
from sandbox_agent.providers.engine.container import DEFAULT_IMAGE
from sandbox_agent.providers.engine.endpoints import EngineName


@click.group()
def image() -> None:
    """Build the image that docker() and podman() start."""


@image.command()
@click.option(
    "--engine", type=click.Choice(["docker", "podman"]), default="docker", help="Which engine builds it."
)
@click.option("--tag", default=DEFAULT_IMAGE, metavar="NAME", help="Name of the image.")
@click.option(
    "--base",
    metavar="IMAGE",
    help=f"Image to build from, with apt, or with Python 3.11 and, for agents, Node.js. Default: {BASE}, or "
    f"{AGENTS_BASE} with agents.",
)
@click.option("--agents", default="", metavar="IDS", help="Agents to install in it, such as claude,codex.")
@click.option("--network", metavar="NAME", help="Network of the build, such as host. Default: the engine's.")
@click.option("--quiet", "-q", is_flag=True, help="Do not show the output of the build.")
def build(
    engine: EngineName, tag: str, base: str | None, agents: str, network: str | None, quiet: bool
) -> None:
    """Build an image with this version of sandbox-agent.

    pip and npm use the package indexes and proxies of this machine. The image does not have their passwords.
    """
    wanted = [agent.strip() for agent in agents.split(",") if agent.strip()]
    asyncio.run(
        build_image(
            EngineApi(engine),
            tag=tag,
            base=base,
            agents=wanted,
            network=network,
            on_output=None if quiet else lambda text: click.echo(text, nl=False, err=True),
        )
    )
    click.echo(tag)
