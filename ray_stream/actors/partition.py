"""The Ray shell of a partition host: one loop thread that owns its logs, and two ways in.

Owns: the thread and the wiring. Refuses: everything else (`PartitionHost`, `PartitionControl`).
"""

import asyncio
import logging
import os
import resource
from collections.abc import Mapping
from typing import Any

import msgspec
import ray

from ray_stream.actors.door import Door, Handler
from ray_stream.actors.holders import end_orphan, in_use, this_process
from ray_stream.actors.listener import Listener
from ray_stream.actors.loop import HostLoop, Turning
from ray_stream.actors.partition_control import PartitionControl
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.actors.settings import HostSettings, packed
from ray_stream.actors.spawning import node_address
from ray_stream.boot import boot_id
from ray_stream.clock import SystemClock
from ray_stream.errors import RayStreamError
from ray_stream.log import locks
from ray_stream.log.directory import partition_name
from ray_stream.log.storage import DiskStorage, Lock, Storage
from ray_stream.rpc.endpoints import (
    Endpoint,
    endpoint_of,
    listen_far,
    listen_near,
    runtime_directory,
)
from ray_stream.rpc.hosting import (
    AlterPartitions,
    DescribeHost,
    HostDescribed,
    LeadPartitions,
    PartitionsPrepared,
    PreparePartitions,
    ReleasePartitions,
)
from ray_stream.rpc.messages import FetchRequest, ListOffsetsRequest, ProduceRequest
from ray_stream.rpc.services import Reply

LOG = logging.getLogger(__name__)


class PartitionShell:
    """One host and its control, driven by one loop."""

    def __init__(self, host: PartitionHost, control: PartitionControl) -> None:
        self._host = host
        self._control = control

    def end_turn(self) -> None:
        """Write, sync, answer."""
        self._host.end_turn()

    def on_time(self) -> None:
        """Answer fetches whose wait is over; write checkpoints."""
        self._host.expire()
        self._control.tick()

    def next_deadline_ms(self) -> int | None:
        """The earlier of both."""
        due = self._control.next_deadline_ms()
        fetch = self._host.next_deadline_ms()
        return due if fetch is None else min(due, fetch)


class PartitionActor:
    """Hosts one or more partitions of a node. Constructed cheaply; `start` does the work."""

    def __init__(self, settings: bytes) -> None:
        """Args: settings: a packed `HostSettings`."""
        self._settings = msgspec.json.decode(settings, type=HostSettings)
        self._clock = SystemClock()
        address = ray.get_runtime_context().gcs_address
        self._holder = this_process(self._settings.host, address)
        self._storage = DiskStorage()
        self._loop = HostLoop("partitions", self._clock)
        self._host = PartitionHost(self._clock, self._loop.sync, boot_id(), _open_logs_max())
        self._control = PartitionControl(
            self._host,
            self._storage,
            self._clock,
            boot_id=boot_id(),
            interval_ms=self._settings.config.checkpoint_interval_ms,
            locking=self._lock,
            spread=self._loop.spread,
        )
        self._clients = self._services()
        self._door = Door(self._loop, {**self._clients, **self._orders()})
        self._endpoint = Endpoint("", "", "", 0)
        self._is_started = False

    def _services(self) -> Mapping[type[msgspec.Struct], Handler]:
        """What clients are answered here, and by what."""
        return {
            ProduceRequest: self._host.produce,
            FetchRequest: self._host.fetch,
            ListOffsetsRequest: self._host.list_offsets,
        }

    def _orders(self) -> Mapping[type[msgspec.Struct], Handler]:
        """What the broker says."""
        return {
            PreparePartitions: self._prepare,
            LeadPartitions: self._control.lead,
            AlterPartitions: self._control.alter,
            ReleasePartitions: self._control.release,
            DescribeHost: self._describe,
        }

    def _start_loop(self) -> bool:
        """Whether this was the first call, which starts it."""
        if self._is_started:
            return False
        self._is_started = True
        self._loop.start(self._turning(PartitionShell(self._host, self._control)), self._listen())
        return True

    def _listen(self) -> Listener | None:
        """The way in over sockets, unless this cluster has no secret that clients could prove."""
        if not self._settings.secret:
            return None
        name = self._settings.host
        sockets = [
            listen_near(runtime_directory(), name),
            listen_far(node_address(), name),
        ]
        listening = [one for one in sockets if one is not None]
        self._endpoint = endpoint_of(boot_id(), listening)
        secret = bytes.fromhex(self._settings.secret)
        return Listener(name, secret, listening, self._clients, self._clock)

    def _turning(self, shell: PartitionShell) -> Turning:
        """What the loop drives."""
        return shell

    @ray.method
    async def start(self) -> int:
        """Start the loop thread, once; return the process id, for whoever may have to end it."""
        self._start_loop()
        return os.getpid()

    @ray.method
    async def call(self, *frames: Any) -> list[Any]:
        """Answer one request."""
        return list(await self._door.call(frames))

    @ray.method
    async def endpoint(self) -> bytes:
        """Where clients may connect: a packed `Endpoint`."""
        return packed(self._endpoint)

    @ray.method
    async def watch(self) -> None:
        """Never returns: its failure tells the caller of this process's death."""
        await asyncio.Event().wait()

    @ray.method
    async def ping(self) -> int:
        """A sign of life; how many logs went offline, so that a change is looked into."""
        return self._host.failures

    @ray.method
    async def stop(self) -> None:
        """Close every log cleanly; the process is ended by the caller."""
        await asyncio.to_thread(self._loop.stop, self._control.close)

    def _lock(self, storage: Storage, root: str, topic_id: str, partition: int) -> Lock:
        """Take a partition's lock; a holder without a right to it is ended, this is tried again."""
        name = partition_name(topic_id, partition)
        lock = locks.try_lock(storage, root, locks.partition_position(topic_id, partition))
        note = locks.holder_path(root, name)
        if lock is None:
            holder = locks.read_holder(storage, note)
            end_orphan(holder, self._holder)
            raise in_use(f"{root}/{name}", holder)
        if storage.exists(f"{root}/{name}"):
            try:
                locks.write_holder(storage, note, self._holder)
            except BaseException:
                lock.release()
                raise
        return lock

    def _prepare(self, request: PreparePartitions, reply: Reply[PartitionsPrepared]) -> None:
        """As the control's; new logs get the note for which `_lock` had no place yet."""

        def prepared(answer: PartitionsPrepared | RayStreamError) -> None:
            for spec in request.partitions:
                if spec.never_led and (spec.topic_id, spec.partition) in self._host.partitions:
                    root = request.directories[spec.directory_id]
                    name = partition_name(spec.topic_id, spec.partition)
                    try:
                        note = locks.holder_path(root, name)
                        locks.write_holder(self._storage, note, self._holder)
                    except RayStreamError as refused:  # it is locked; only messages read the note
                        LOG.warning("%s/%s: who holds it is not noted: %s", root, name, refused)
            reply(answer)

        self._control.prepare(request, prepared)

    def _describe(self, request: DescribeHost, reply: Reply[HostDescribed]) -> None:
        del request
        reply(
            HostDescribed(
                self._settings.host,
                self._settings.node_id,
                os.getpid(),
                self._loop.niceness,
                self._control.served(),
            )
        )


PartitionActorClass = ray.remote(PartitionActor)


def _open_logs_max() -> int:
    """An eighth of the descriptors, so a quarter while syncs are under way.

    Sockets may have a half; Ray, readers and syncs need some.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, soft // 8)
