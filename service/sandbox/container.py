"""One sandbox container: created, attached to, started, and in the end removed."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from requests.exceptions import RequestException

from .base import SandboxError
from .docker_settings import DockerSandboxSettings
from .frames import MAX_FRAME_BYTES, DockerStream, Ready
from .hostconfig import create_arguments
from .worker import Channel

T = TypeVar("T")


class Daemon:
    """docker-py from asyncio: each blocking call runs in a thread, with a time limit."""

    def __init__(self, settings: DockerSandboxSettings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(
            max_workers=2 * settings.start_concurrency + 4, thread_name_prefix="docker"
        )
        self._client: docker.APIClient | None = None

    async def call(self, request: Callable[[docker.APIClient], T]) -> T:
        """Run ``request`` with the client.

        Raises:
            SandboxError: the daemon does not answer, or says no.
        """
        loop = asyncio.get_running_loop()
        try:
            # The client has a time limit of its own for each socket operation; this one is for all of them.
            async with asyncio.timeout(2 * self._settings.daemon_timeout_s):
                return await loop.run_in_executor(self._threads, lambda: request(self._connected()))
        except TimeoutError as error:
            raise SandboxError(f"Docker at {self._settings.docker_host} did not answer in time") from error
        except ImageNotFound as error:
            raise SandboxError(
                f"Docker has no image {self._settings.image!r}: build it with scripts/ensure-sandbox-image"
            ) from error
        except (DockerException, RequestException, OSError) as error:
            raise SandboxError(f"Docker at {self._settings.docker_host}: {error}") from error

    def _connected(self) -> docker.APIClient:
        if self._client is None:
            self._client = docker.APIClient(
                base_url=self._settings.docker_host, version="auto", timeout=self._settings.daemon_timeout_s
            )
        return self._client

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()


class Container(Channel):
    """A worker in a Docker container. The channel is one attached stream; there is no ``docker exec``."""

    def __init__(
        self, daemon: Daemon, container_id: str, name: str, stream: DockerStream, writer: asyncio.StreamWriter
    ) -> None:
        super().__init__(name, stream, writer)
        self.id = container_id
        self._daemon = daemon

    @classmethod
    async def start(
        cls, daemon: Daemon, settings: DockerSandboxSettings, labels: dict[str, str]
    ) -> Container:
        """A container whose supervisor is ready.

        Raises:
            SandboxError: it did not come up; nothing is left of it.
        """
        name = f"ih-grpo-{secrets.token_hex(6)}"
        arguments = create_arguments(settings, name, labels)
        # Not cancellable in the middle: a container that exists must be known, or nobody removes it.
        creation = asyncio.ensure_future(daemon.call(lambda client: _create(client, name, arguments)))
        try:
            container_id, connection = await asyncio.shield(creation)
        except asyncio.CancelledError:
            with contextlib.suppress(SandboxError):
                container_id, connection = await creation
                connection.close()
                await _remove(daemon, container_id)
            raise
        close = connection.close
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=2 * MAX_FRAME_BYTES)
            close = writer.close  # the socket is the transport's from here on
            container = cls(daemon, container_id, name, DockerStream(reader), writer)
            async with asyncio.timeout(settings.start_timeout_s):
                await daemon.call(lambda client: client.start(container_id))
                frame = await container.receive()
            if not isinstance(frame, Ready):
                raise SandboxError(f"worker {name}: the first frame was {frame.op!r}, not 'ready'")
        except BaseException as error:
            close()
            await _remove(daemon, container_id)
            if isinstance(error, TimeoutError):
                raise SandboxError(
                    f"container {name} was not ready after {settings.start_timeout_s} s"
                ) from error
            raise
        return container

    async def destroy(self) -> None:
        self.close()
        await _remove(self._daemon, self.id)


async def _remove(daemon: Daemon, container_id: str) -> None:
    """Kill and remove; a container that is gone, or being removed by the daemon, is no error."""
    with contextlib.suppress(SandboxError):
        await asyncio.shield(daemon.call(lambda client: remove_container(client, container_id)))


def remove_container(client: docker.APIClient, container_id: str) -> None:
    """Kill and remove one container, whatever its state; blocking.

    Raises:
        APIError: the daemon refused.
    """
    try:
        client.remove_container(container_id, v=True, force=True)
    except NotFound:
        return
    except APIError as error:
        if error.response is None or error.response.status_code != 409:  # 409: removal is already in progress
            raise


def _create(client: docker.APIClient, name: str, arguments: dict[str, Any]) -> tuple[str, socket.socket]:
    """Create a container and attach to it, before it starts: so not a byte is missed."""
    created = client.create_container_from_config(arguments, name=name)
    container_id: str = created["Id"]
    try:
        attached = client.attach_socket(
            container_id, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        )
        # docker-py gives a file object around the socket and ties it to the HTTP response: take a copy.
        original = getattr(attached, "_sock", attached)
        connection = original.dup()
        connection.settimeout(None)
        connection.setblocking(False)
        attached.close()
        original.close()
        return container_id, connection
    except BaseException:
        remove_container(client, container_id)
        raise
