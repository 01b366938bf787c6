"""Containers that live across requests: who holds them, when they expire, and how many are kept.

A container belongs to a key. One request at a time holds it; between requests it is parked: its processes are
frozen and only its memory is used. It ends when it is idle for too long, when its key starts more containers
than it may have, or when all parked containers together exceed the memory budget (the least recently used one
ends first).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Literal

import structlog

from service.api import audit
from service.api.errors import ApiError
from service.api.files.held_session import HeldSession
from service.api.files.inputs import InputFile, named, prompt_note
from service.api.limits import Quotas
from service.api.telemetry.containers import ContainerCounts, EndReason
from service.common.json import Json
from service.sandbox.base import Sandbox, SandboxError, Session, SessionLimits
from service.sandbox.files import FileSandbox, FileSession
from service.store.containers import ACTIVE, EXPIRED, ContainerStore, StoredContainer, new_container_id
from service.store.files import FileStore, StoredFile
from service.tools.base import ToolHost

_log = structlog.get_logger(__name__)
_SWEEP_S: Final = 2.0
_ORPHANS_S: Final = 3600.0
"""Interval at which contents are removed that a crash left in the store of files."""
FROM_OLDER: Final = (
    "The conversation continues from an older response than its container's last, so it has a new container "
    "without the earlier variables and files."
)
GONE: Final = (
    "The container of this conversation has expired, so it has a new container without the earlier variables "
    "and files."
)


@dataclass(frozen=True, slots=True)
class ContainerLimits:
    """Limits on containers. Memory in MiB."""

    idle_minutes: float = 20.0
    """Minutes without a request after which a container expires; 0 turns these containers off."""
    freeze_after_s: float = 2.0
    """Seconds between the end of a request and the freezing of its container."""
    per_key: int = 8
    """Containers of one key."""
    parked_memory_mb: int = 4096
    """Memory limits of all parked containers together."""
    wait_s: float = 10.0
    """Seconds that a request waits for a container that another one holds."""
    default_memory_mb: int = 512
    max_memory_mb: int = 4096


@dataclass(slots=True, eq=False)
class LiveContainer:
    """A container of this process."""

    record: StoredContainer
    session: FileSession
    inputs: list[InputFile] = field(default_factory=list)
    """Inputs that are in the container."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by one request at a time."""
    used_at: float = field(default_factory=time.monotonic)
    is_frozen: bool = False
    is_stored: bool = False

    @property
    def memory_mb(self) -> int:
        """Highest memory use, with the inputs."""
        return self.record.memory_mb + sum(item.file.bytes for item in self.inputs) // (1 << 20)


@dataclass(frozen=True, slots=True)
class ContainerWish:
    """Fields of a request that determine its container."""

    container_id: str | None = None
    """An explicit container; None for one that the server assigns."""
    files: Sequence[StoredFile] = ()
    """Files of the request and of its conversation."""
    memory_mb: int | None = None
    previous: tuple[str, str] | None = None
    """Container and response of the last code that ran in the conversation."""
    fresh_if_expired: bool = False
    """Replace an explicit container that has expired."""
    param: str = "container"
    """Request field with the explicit container."""
    figures: Literal["png", "svg"] = "png"
    """Format of the figures of the request."""


@dataclass(slots=True)
class ContainerUse:
    """The container of one request, from the rendering of its prompt to its end."""

    containers: Containers
    owner: str
    wish: ContainerWish
    live: LiveContainer
    new_inputs: list[InputFile]
    notice: str | None = None
    """Message for the client if the container is not the one of the conversation."""
    _session: HeldSession | None = None

    @property
    def id(self) -> str:
        return self.live.record.id

    @property
    def note(self) -> str:
        """Text for the prompt: the files that code can read, and whether earlier state is lost."""
        inputs = [(item.name, item.file.bytes) for item in (*self.live.inputs, *self.new_inputs)]
        return prompt_note(inputs, restarted=self.notice is not None)

    @asynccontextmanager
    async def acquire(self, response_id: str) -> AsyncGenerator[None, None]:
        """Hold the container, and park it at the end of the context.

        Raises:
            ApiError: 409 if another request holds it for too long, 429 if the key has too many containers.
        """
        while True:
            live = self.live
            await self._acquire(live.lock)
            try:
                replacement = self._replacement()
            except BaseException:
                live.lock.release()
                raise
            if replacement is None:
                break
            live.lock.release()
            self.new_inputs = [*live.inputs, *self.new_inputs]
            self.live, self.notice = replacement, FROM_OLDER
        try:
            await self.containers.hold(live)
            self._session = HeldSession(
                live, self.new_inputs, self.containers, response_id, figures=self.wish.figures
            )
            yield
        finally:
            try:
                if self._session is not None:
                    await self._session.close()
                await self.containers.park(live)
            finally:
                live.lock.release()

    async def _acquire(self, lock: asyncio.Lock) -> None:
        try:
            async with asyncio.timeout(self.containers.limits.wait_s):
                await lock.acquire()
        except TimeoutError:
            raise ApiError(
                409,
                f"Container '{self.id}' is used by another request.",
                param=self.wish.param,
                code="container_busy",
                retry_after_s=1,
            ) from None

    def _replacement(self) -> LiveContainer | None:
        """Return a new container if another request has continued or lost this one in the meantime.

        Raises:
            ApiError: 400 if the request named a container that is lost.
        """
        record, previous = self.live.record, self.wish.previous
        is_explicit = self.wish.container_id == record.id
        if not self.containers.is_current(self.live):
            if is_explicit:
                raise expired(record.id, self.wish.param)
        elif is_explicit or previous is None or previous[0] != record.id:
            return None
        if self.containers.is_current(self.live) and record.last_response_id in (
            None,
            (previous or ("", ""))[1],
        ):
            return None
        return self.containers.new(self.owner, record.memory_mb)

    def continue_as(self, response_id: str) -> None:
        """Attribute the rest of the reply to another response."""
        if self._session is not None:
            self._session.continue_as(response_id)

    def session(self, limits: SessionLimits, tools: ToolHost | None = None) -> Session:
        """Return the session of the held container, whose code can call ``tools``."""
        assert self._session is not None  # noqa: S101  (called inside `acquire`)
        self._session.configure(limits, tools)
        return self._session


class Containers:
    """The containers of this process; ``app.state.containers``."""

    def __init__(
        self,
        sandbox: Sandbox,
        store: ContainerStore,
        files: FileStore,
        limits: ContainerLimits,
        quotas: Quotas,
    ) -> None:
        self._sandbox = sandbox
        self.store = store
        self.files = files
        self.limits = limits
        self.quotas = quotas
        self._live: dict[str, LiveContainer] = {}
        self._counts = ContainerCounts()
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def enabled(self) -> bool:
        """Whether the sandbox supports containers that live across requests."""
        return self.limits.idle_minutes > 0 and isinstance(self._sandbox, FileSandbox)

    def counts(self) -> ContainerCounts:
        """Return the present counts."""
        parked = [live for live in self._live.values() if not live.lock.locked()]
        return replace(
            self._counts,
            in_use=len(self._live) - len(parked),
            parked=len(parked),
            frozen=sum(live.is_frozen for live in parked),
            parked_bytes=sum(live.memory_mb << 20 for live in parked),
        )

    async def start(self) -> None:
        """Start the expiry of idle containers."""
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def stop(self) -> None:
        """End all containers."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await asyncio.gather(*(self.end(live, "shutdown") for live in list(self._live.values())))

    def is_current(self, live: LiveContainer) -> bool:
        """Return whether a container can still be used."""
        if live.is_stored and self._live.get(live.record.id) is not live:
            return False
        return not live.is_stored or live.session.is_alive

    def get(self, container_id: str, owner: str) -> LiveContainer | None:
        """Return a container of this process if it belongs to ``owner`` and can be used."""
        live = self._live.get(container_id)
        if live is None or live.record.owner != owner or not self.is_current(live):
            return None
        return live

    def new(
        self, owner: str, memory_mb: int | None, name: str = "", idle_minutes: float | None = None
    ) -> LiveContainer:
        """Return a new container, which leases nothing before it is used."""
        assert isinstance(self._sandbox, FileSandbox)  # noqa: S101  (see `enabled`)
        memory = min(max(memory_mb or 0, self.limits.default_memory_mb), self.limits.max_memory_mb)
        now = time.time()
        record = StoredContainer(
            id=new_container_id(),
            owner=owner,
            name=name,
            created_at=now,
            last_active_at=now,
            idle_minutes=min(idle_minutes or self.limits.idle_minutes, self.limits.idle_minutes),
            memory_mb=memory,
        )
        requested = None if memory == self.limits.default_memory_mb else memory
        limits = SessionLimits(figures="png", memory_mb=requested)
        return LiveContainer(record, self._sandbox.file_session(limits))

    async def use(self, owner: str, wish: ContainerWish) -> ContainerUse:
        """Choose the container of a request.

        Raises:
            ApiError: 404 for an unknown container, 400 for an expired one, 429 if the key has used up its
                seconds or its storage.
        """
        await self.quotas.check(owner, code=True, storage=True)
        live, notice = None, None
        files = list(wish.files)
        if wish.container_id is not None:
            live = self.get(wish.container_id, owner)
            if live is None:
                record = await self.store.get(wish.container_id, owner)
                if record is None:
                    raise not_found(wish.container_id, wish.param)
                if not wish.fresh_if_expired:
                    raise expired(wish.container_id, wish.param)
                notice = GONE
                files = [*await self._inputs_of(record), *files]
        elif wish.previous is not None:
            container_id, response_id = wish.previous
            live = self.get(container_id, owner)
            record = live.record if live is not None else await self.store.get(container_id, owner)
            if live is not None and live.record.last_response_id not in (None, response_id):
                live, notice = None, FROM_OLDER
            elif live is None:
                notice = GONE
            if live is None and record is not None:
                files = [*await self._inputs_of(record), *files]
        if live is None:
            live = self.new(owner, wish.memory_mb)
        known = {item.file.id for item in live.inputs}
        new_inputs = named(
            (file for file in files if file.id not in known), [item.name for item in live.inputs]
        )
        return ContainerUse(self, owner, wish, live, new_inputs, notice)

    async def _inputs_of(self, record: StoredContainer) -> list[StoredFile]:
        ids = [str(item["file_id"]) for item in record.inputs]
        found = {file.id: file for file in await self.files.get_all(ids, record.owner)}
        return [found[file_id] for file_id in ids if file_id in found]

    async def hold(self, live: LiveContainer) -> None:
        """Make room for a container that is about to be used.

        Raises:
            ApiError: 429 if the key has too many containers that are in use.
        """
        if live.is_stored:
            return
        mine = [other for other in self._live.values() if other.record.owner == live.record.owner]
        while len(mine) >= self.limits.per_key:
            idle = sorted((other for other in mine if not other.lock.locked()), key=lambda one: one.used_at)
            if not idle:
                message = f"This key uses {len(mine)} containers at the same time, the most that it may."
                raise ApiError(429, message, code="container_limit", retry_after_s=1)
            mine.remove(idle[0])
            await self.end(idle[0], "key_limit")

    async def register(self, live: LiveContainer) -> None:
        """Record a container that has been leased."""
        if not live.is_stored:
            live.is_stored = True
            self._live[live.record.id] = live
            self._counts.started += 1
            await self.store.put(live.record)
            audit.record("container.create", target=live.record.id)

    def count_seconds(self, seconds: float) -> None:
        """Count the run time of code for the metrics."""
        self._counts.run_s += seconds

    async def update(self, live: LiveContainer, **values: object) -> None:
        """Change columns of a container's record."""
        live.record = StoredContainer(**{**asdict(live.record), **values})
        if live.is_stored:
            await self.store.change(live.record.id, **values)

    async def park(self, live: LiveContainer) -> None:
        """Keep a container after a request; end it if it is lost or too large to be kept."""
        live.used_at = time.monotonic()
        if not live.is_stored:
            await live.session.close()
            return
        try:
            await live.session.park()
        except SandboxError as error:
            _log.warning("container_lost", container=live.record.id, error=str(error))
        if not live.session.is_alive:
            await self.end(live, "lost")
            return
        await self.update(live, last_active_at=time.time())
        parked = sorted(
            (other for other in self._live.values() if other is live or not other.lock.locked()),
            key=lambda one: one.used_at,
        )
        memory = sum(other.memory_mb for other in parked)
        for other in parked:
            if memory <= self.limits.parked_memory_mb:
                return
            memory -= other.memory_mb
            await self.end(other, "memory_limit")

    async def end(self, live: LiveContainer, reason: EndReason) -> None:
        """End a container. Its files stay available for a while."""
        if self._live.pop(live.record.id, None) is not None:
            self._counts.ended[reason] += 1
        await live.session.close()
        if live.is_stored and live.record.status == ACTIVE:
            await self.update(live, status=EXPIRED)

    async def end_deleted(self) -> None:
        """End containers whose records were deleted, for example with all data of their key."""
        mine = [live for live in self._live.values() if live.is_stored and not live.lock.locked()]
        existing = await self.store.existing([live.record.id for live in mine])
        for live in mine:
            if live.record.id not in existing and not live.lock.locked():
                await self.end(live, "deleted")

    async def _sweep_forever(self) -> None:
        orphans_at = time.monotonic()
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                await self.sweep()
                if time.monotonic() >= orphans_at:
                    orphans_at += _ORPHANS_S
                    await self.files.remove_orphans()
            except Exception:
                _log.exception("container_sweep_failed")  # retried at the next interval

    async def sweep(self) -> None:
        """End containers that are idle for too long, and freeze the others."""
        for live in list(self._live.values()):
            if live.lock.locked():
                continue
            async with live.lock:
                idle_s = time.monotonic() - live.used_at
                if not live.session.is_alive:
                    await self.end(live, "lost")
                elif idle_s > live.record.idle_minutes * 60:
                    await self.end(live, "idle")
                elif not live.is_frozen and idle_s >= self.limits.freeze_after_s:
                    try:
                        live.is_frozen = True
                        await live.session.freeze()
                    except SandboxError as error:
                        _log.warning("container_not_frozen", container=live.record.id, error=str(error))

    @asynccontextmanager
    async def acquire(self, live: LiveContainer, param: str = "container_id") -> AsyncGenerator[None, None]:
        """Hold a container for a change of its files.

        Raises:
            ApiError: 409 if another request holds it for too long, 400 if it is lost.
        """
        use = ContainerUse(self, live.record.owner, ContainerWish(live.record.id, param=param), live, [])
        async with use.acquire(""):
            try:
                yield
            except SandboxError:
                raise expired(live.record.id, param) from None


def not_found(container_id: str, param: str = "container_id") -> ApiError:
    """Return the error for a container that does not exist or belongs to another key."""
    return ApiError(
        404, f"Container with id '{container_id[:80]}' not found.", param=param, code="container_not_found"
    )


def expired(container_id: str, param: str = "container_id") -> ApiError:
    """Return the error for a container that has ended."""
    message = (
        f"Container '{container_id[:80]}' has expired. Use container {{'type': 'auto'}}, create a new one, "
        "or set deferral.on_expired to 'fresh'. Its files can still be downloaded for a while."
    )
    return ApiError(400, message, param=param, code="container_expired")


def container_object(record: StoredContainer) -> Json:
    """Return OpenAI's container object."""
    memory = record.memory_mb
    return {
        "id": record.id,
        "object": "container",
        "created_at": int(record.created_at),
        "status": record.status,
        "expires_after": {"anchor": "last_active_at", "minutes": max(round(record.idle_minutes), 1)},
        "last_active_at": int(record.last_active_at),
        "memory_limit": f"{memory // 1024}g" if memory % 1024 == 0 else f"{memory}m",
        "name": record.name,
        "network_policy": {"type": "disabled"},
    }
