"""Engines for the tests of this folder."""

from tests.support.engines import docker_engine, engine, podman_engine

__all__ = ["docker_engine", "engine", "podman_engine"]
