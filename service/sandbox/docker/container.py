"""Life cycle of one sandbox container, and access to the Docker daemon from asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import docker
import structlog
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from requests.exceptions import RequestException

from service.sandbox.base import SandboxError
from service.sandbox.docker.container_config import DaemonKind, create_arguments
from service.sandbox.docker.freezer import Freezer, FreezerCgroup
from service.sandbox.docker.settings import DockerSandboxSettings, build_command
from service.sandbox.worker_protocol import MAX_FRAME_BYTES, Channel, DockerStream, Ready, Reply

_FREEZE_S: Final = 1.0
"""Time within which all processes of a container must be frozen, also on a busy machine."""
T = TypeVar("T")
log = structlog.get_logger(__name__)


class Daemon:
    """Async access to the Docker daemon: each blocking call of docker-py runs in a thread, with a timeout."""

    def __init__(self, settings: DockerSandboxSettings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(
            max_workers=2 * settings.start_concurrency + 4, thread_name_prefix="docker"
        )
        self._client: docker.APIClient | None = None
        self._unremoved: set[str] = set()
        self._kind: DaemonKind | None = None

    async def kind(self) -> DaemonKind:
        """Return the kind of the daemon, which is read once.

        Raises:
            SandboxError: the daemon does not answer.
        """
        if self._kind is None:
            self._kind = await self.call(lambda client: DaemonKind.read(client.version(), client.info()))
        return self._kind

    async def call(self, request: Callable[[docker.APIClient], T]) -> T:
        """Run ``request`` with the client.

        Raises:
            SandboxError: the daemon does not answer, or rejects the request.
        """
        loop = asyncio.get_running_loop()
        try:
            # The client's own timeout is per socket operation; this one covers the whole request.
            async with asyncio.timeout(2 * self._settings.daemon_timeout_s):
                return await loop.run_in_executor(self._threads, lambda: request(self._connected()))
        except TimeoutError as error:
            raise SandboxError(f"Docker at {self._settings.docker_host} did not answer in time") from error
        except ImageNotFound as error:
            image = self._settings.image
            raise SandboxError(f"Docker has no image {image!r}. Build it: {build_command(image)}") from error
        except (DockerException, RequestException, OSError) as error:
            _drop_sockets(error)
            raise SandboxError(f"Docker at {self._settings.docker_host}: {error}") from error

    async def remove(self, container: str) -> None:
        """Kill and remove a container, by name or id. Failures are retried by ``remove_leftovers``."""
        await asyncio.shield(self._remove(container))

    async def _remove(self, container: str) -> None:
        self._unremoved.add(container)
        try:
            await self.call(lambda client: remove_container(client, container))
        except SandboxError as error:
            log.warning("sandbox_not_removed", container=container, error=str(error))
        else:
            self._unremoved.discard(container)

    async def remove_leftovers(self) -> None:
        """Remove the containers that could not be removed before, for example while the daemon was down."""
        for container in tuple(self._unremoved):
            await self.remove(container)

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


def _drop_sockets(error: BaseException | None) -> None:
    """Clear the frames of ``error``: docker-py leaves the socket of a refused connection in one of them."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


class Container(Channel):
    """A worker in a Docker container. Its channel is one attached stream; ``docker exec`` is not used."""

    def __init__(
        self, daemon: Daemon, container_id: str, name: str, stream: DockerStream, writer: asyncio.StreamWriter
    ) -> None:
        super().__init__(name, stream, writer)
        self.id = container_id
        self._daemon = daemon
        self._stream = stream
        self._freezer: Freezer | None = None
        self._cgroup: FreezerCgroup | None = None
        self._frozen_at: float | None = None
        """Time of ``freeze``, on the monotonic clock; None if the container runs."""

    @classmethod
    async def start(
        cls,
        daemon: Daemon,
        settings: DockerSandboxSettings,
        labels: dict[str, str],
        freezer: Freezer | None = None,
    ) -> Container:
        """Start a container and wait until its supervisor is ready.

        Raises:
            SandboxError: it did not start. It is removed again.
        """
        name = f"ih-grpo-{secrets.token_hex(6)}"
        arguments = create_arguments(settings, name, labels, await daemon.kind())
        # Shielded from cancellation: a container that was created must be known, or it is never removed.
        creation = asyncio.ensure_future(daemon.call(lambda client: _create(client, name, arguments)))
        try:
            container_id, connection = await asyncio.shield(creation)
        except SandboxError:
            await daemon.remove(name)  # it may exist although the reply was lost
            raise
        except asyncio.CancelledError:
            with contextlib.suppress(SandboxError):
                _, connection = await creation
                connection.close()
            await daemon.remove(name)
            raise
        close = connection.close
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=2 * MAX_FRAME_BYTES)
            close = writer.close  # from here on the transport owns the socket
            container = cls(daemon, container_id, name, DockerStream(reader), writer)
            async with asyncio.timeout(settings.start_timeout_s):
                await daemon.call(lambda client: client.start(container_id))
                frame = await container.receive()
            if not isinstance(frame, Ready):
                raise SandboxError(f"worker {name}: the first frame was {frame.op!r}, not 'ready'")
            if freezer is not None:
                container._freezer, container._cgroup = freezer, await freezer.attach(container_id)
        except BaseException as error:
            close()
            await daemon.remove(container_id)
            if isinstance(error, TimeoutError):
                raise SandboxError(
                    f"container {name} was not ready after {settings.start_timeout_s} s"
                ) from error
            raise
        await daemon.remove_leftovers()  # the daemon works, so earlier removals can be retried
        return container

    @property
    def freezable(self) -> bool:  # type: ignore[override]
        return self._cgroup is not None

    async def send(self, message: dict[str, Any]) -> None:
        self._thaw()
        await super().send(message)

    def freeze(self) -> None:
        if self._cgroup is not None:
            self._frozen_at = time.monotonic()
            with contextlib.suppress(OSError):  # the container has ended, which the next ``receive`` reports
                self._cgroup.freeze()

    def freezing_failed(self, reason: str) -> None:
        if self._freezer is not None and self._cgroup is not None:
            self._freezer.disable(reason)
            self._freezer.detach(self._cgroup)
        self._cgroup = None

    def _thaw(self) -> None:
        if self._frozen_at is None or self._cgroup is None:
            return
        with contextlib.suppress(OSError):
            if time.monotonic() - self._frozen_at > _FREEZE_S and not self._cgroup.is_frozen():
                log.warning("sandbox_was_not_frozen", container=self.name)
            self._cgroup.thaw()
        self._frozen_at = None

    async def receive(self) -> Reply:
        try:
            return await super().receive()
        except SandboxError as error:
            if not (lines := self._stream.diagnostics.strip().splitlines()):
                raise
            raise SandboxError(f"{error}; the last line of its stderr: {lines[-1]}") from error

    async def resize(self, memory_mb: int) -> None:
        limit = memory_mb << 20
        if (await self._daemon.kind()).is_podman:
            await self._daemon.call(lambda client: _resize_on_podman(client, self.id, limit))
        else:
            options = {"mem_limit": limit, "memswap_limit": limit}  # together: no swap
            await self._daemon.call(lambda client: client.update_container(self.id, **options))

    def close(self) -> None:
        self._thaw()  # a frozen supervisor would not notice that its channel is closed
        super().close()

    async def destroy(self) -> None:
        self.close()
        await self._daemon.remove(self.id)
        if self._freezer is not None and self._cgroup is not None:
            self._freezer.detach(self._cgroup)


def remove_container(client: docker.APIClient, container: str) -> None:
    """Kill and remove one container, by name or id, in any state. Blocks.

    Raises:
        APIError: the daemon rejected the request.
    """
    try:
        client.remove_container(container, v=True, force=True)
    except NotFound:
        return
    except APIError as error:
        if error.response is None or error.response.status_code != 409:  # 409: removal is already in progress
            raise


def _resize_on_podman(client: docker.APIClient, container: str, limit: int) -> None:
    """Set the memory limit through Podman's own API: older versions can't do it through Docker's."""
    url = f"{client.base_url}/v4.0.0/libpod/containers/{container}/update"
    limits = {"memory": {"limit": limit, "swap": limit}}
    client.post(url, json=limits, timeout=client.timeout).raise_for_status()


def _create(client: docker.APIClient, name: str, arguments: dict[str, Any]) -> tuple[str, socket.socket]:
    """Create a container and attach to it before it starts, so that no output is missed."""
    created = client.create_container_from_config(arguments, name=name)
    container_id: str = created["Id"]
    attached = client.attach_socket(container_id, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    # docker-py wraps the socket and ties it to the HTTP response, so duplicate the descriptor.
    original = getattr(attached, "_sock", attached)
    connection = original.dup()
    connection.settimeout(None)
    connection.setblocking(False)
    attached.close()
    original.close()
    return container_id, connection
