"""The Ray shell of the controller: its log's lock, replay and claim; and a watch over every broker.

Owns: the loop thread of the controller host, and which nodes have a broker. Refuses: decisions
about metadata (`MetadataMachine`), partition actors (their broker's).

Its constructor does no I/O. `start` takes the lock of the metadata log, replays, claims an epoch
above every one seen, syncs, and only then answers (STORAGE sections 4 and 5).
"""

import asyncio
import logging
import os
from functools import partial
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError

from ray_stream.actors import registry, spawning
from ray_stream.actors.broker import BrokerActorClass
from ray_stream.actors.controller_host import ControllerHost
from ray_stream.actors.door import Door
from ray_stream.actors.heap import give_back_large_blocks
from ray_stream.actors.heartbeat import until_dead
from ray_stream.actors.holders import this_process, wait_for_lock
from ray_stream.actors.journal_watch import JournalWatch
from ray_stream.actors.loop import HostLoop
from ray_stream.actors.metadata_log import open_metadata
from ray_stream.actors.settings import ClusterSpec, Seat, packed
from ray_stream.boot import boot_id
from ray_stream.clock import SystemClock
from ray_stream.log import locks
from ray_stream.log.directory import METADATA_NAME
from ray_stream.log.storage import DiskStorage, Lock, Storage
from ray_stream.metadata.commands import (
    AlterTopic,
    BrokerLost,
    ClaimLeadership,
    ConfirmDeleted,
    CreateTopic,
    DeleteTopic,
    InitProducerId,
    PartitionRepaired,
    RegisterBroker,
    ReportServed,
)
from ray_stream.rpc.messages import MetadataRequest, WatchAssignment

LOG = logging.getLogger(__name__)
SILENT_TIMEOUTS = 3
"""A registered broker that does not watch its assignment for so many `actor_timeout_ms` is lost."""
LAST_WORDS_S = 1.0
"""A controller that could not start lives on for so long: its caller gets the error."""


class ControllerActor:
    """One per cluster, named, pinned to the node that has the metadata log."""

    def __init__(self, spec: bytes, seat: bytes, fresh: bool, directory_epochs: list[int]) -> None:
        """Make one that does nothing yet.

        Args:
            spec: a packed `ClusterSpec`.
            seat: a packed `Seat`.
            fresh: make the metadata log of a new cluster; else a missing one is an error.
            directory_epochs: highest controller epochs in reachable identity files.
        """
        self._spec = msgspec.json.decode(spec, type=ClusterSpec)
        self._seat = msgspec.json.decode(seat, type=Seat)
        self._fresh = fresh
        self._directory_epochs = directory_epochs
        give_back_large_blocks()
        self._clock = SystemClock()
        self._loop = HostLoop("controller", self._clock)
        self._starting = asyncio.Lock()
        self._host: ControllerHost | None = None
        self._door: Door | None = None
        self._journal_watch: JournalWatch | None = None
        self._close: Any = None
        self._started = asyncio.Event()
        self._watched: dict[str, asyncio.Task[None]] = {}
        self._main: asyncio.Task[None] | None = None

    @ray.method
    async def start(self) -> int:
        """Take over; a second call does nothing. Returns the process id.

        Whoever finds a controller calls it: the one who made it may have died before it could.
        """
        async with self._starting:
            if self._host is None:
                try:
                    await asyncio.to_thread(self._open)
                except BaseException:
                    # It has the name and would be waited for: its place is for another one.
                    asyncio.get_running_loop().call_later(LAST_WORDS_S, os._exit, 70)
                    raise
                self._started.set()
                self._main = asyncio.create_task(self._keep_brokers())
                self._main.add_done_callback(_end_if_broken)
        return os.getpid()

    @ray.method
    async def call(self, *frames: Any) -> list[Any]:
        """Answer one request; waits while the controller is still starting."""
        await self._started.wait()
        assert self._door is not None
        return list(await self._door.call(frames))

    @ray.method
    async def watch(self) -> None:
        """Never returns: its failure tells the caller of this process's death."""
        await asyncio.Event().wait()

    @ray.method
    async def ping(self) -> int:
        """A sign of life: the process id."""
        return os.getpid()

    @ray.method
    async def stop(self) -> None:
        """Stop watching brokers and close the metadata log cleanly."""
        if self._main is not None:
            self._main.cancel()
        for task in self._watched.values():
            task.cancel()
        if self._host is not None:
            await asyncio.to_thread(self._loop.stop, self._close)

    def _open(self) -> None:
        storage = DiskStorage()
        root = self._seat.directory
        opened = open_metadata(
            storage,
            self._clock,
            root,
            lambda: self._lock(storage, root),
            boot_id=boot_id(),
            fresh=self._fresh,
            directory_epochs=self._directory_epochs,
        )
        self._close = opened.close
        self._journal_watch = JournalWatch(opened.journal, "metadata log")
        self._journal_watch.look()
        host = ControllerHost(opened.journal, self._clock, self._loop.sync)
        self._door = Door(
            self._loop,
            {
                MetadataRequest: host.metadata,
                CreateTopic: host.create_topic,
                AlterTopic: host.alter_topic,
                DeleteTopic: host.delete_topic,
                InitProducerId: host.init_producer_id,
                RegisterBroker: host.register_broker,
                BrokerLost: host.broker_lost,
                ClaimLeadership: host.claim_leadership,
                ReportServed: host.report_served,
                ConfirmDeleted: host.confirm_deleted,
                PartitionRepaired: host.partition_repaired,
                WatchAssignment: host.watch_assignment,
            },
        )
        registry.write_seat(self._spec.name, self._seat)
        self._loop.start(host)
        self._host = host

    # --- brokers ----------------------------------------------------------------------------------

    def _lock(self, storage: Storage, root: str) -> Lock:
        note = locks.holder_path(root, METADATA_NAME)
        name = spawning.controller_name(self._spec.name)
        me = this_process(name, ray.get_runtime_context().gcs_address)
        lock = wait_for_lock(
            storage,
            root,
            locks.METADATA_POSITION,
            note,
            me,
            timeout_ms=self._spec.config.lock_timeout_ms,
        )
        if storage.is_directory(f"{root}/{METADATA_NAME}"):
            locks.write_holder(storage, note, me)
        return lock

    async def _keep_brokers(self) -> None:
        while True:
            try:
                nodes = await asyncio.to_thread(spawning.alive_nodes)
            except RayError as error:
                LOG.warning("the nodes could not be listed: %s", error)
                nodes = {}
            self._loop.post(self._lose_silent)
            assert self._journal_watch is not None
            self._journal_watch.look()
            for node_id in self._wanted(nodes):
                if node_id not in self._watched:
                    task = asyncio.create_task(self._keep_broker(node_id))
                    self._watched[node_id] = task
                    task.add_done_callback(partial(self._unwatch, node_id))
            await asyncio.sleep(self._spec.config.heartbeat_interval_ms / 1000)

    def _lose_silent(self) -> None:
        assert self._host is not None
        self._host.lose_silent(SILENT_TIMEOUTS * self._spec.config.actor_timeout_ms)

    def _unwatch(self, node_id: str, task: asyncio.Task[None]) -> None:
        del task
        self._watched.pop(node_id, None)

    def _wanted(self, nodes: dict[str, dict[str, Any]]) -> list[str]:
        """Nodes to have a broker: chosen at the start, selected, or in place of a lost one."""
        selector = self._spec.selector
        if selector is not None:
            return [
                node_id
                for node_id, node in nodes.items()
                if selector.items() <= (node.get("Labels") or {}).items()
            ]
        chosen = [node_id for node_id in self._spec.node_ids if node_id in nodes]
        lost = len(self._spec.node_ids) - len(chosen)
        others = [node_id for node_id in nodes if node_id not in chosen]
        others.sort(key=lambda node_id: node_id not in self._watched)
        return chosen + others[:lost]

    async def _keep_broker(self, node_id: str) -> None:
        """Start or find a node's broker, wait for its end, say so."""
        options = spawning.options(
            spawning.broker_name(self._spec.name, node_id), node_id, get_if_exists=True
        )
        try:
            actor = await asyncio.to_thread(
                BrokerActorClass.options(**options).remote, packed(self._spec), node_id
            )
            # Not awaited: one that is found and stopped would never answer.
            actor.start.remote()
            await until_dead(actor, self._spec.config, lambda: _kill(actor))
        except RayError as error:
            LOG.warning("the broker of node %s could not be started: %s", node_id, error)
            await asyncio.sleep(self._spec.config.heartbeat_interval_ms / 1000)
        self._loop.post(lambda: self._note_death(node_id))

    def _note_death(self, node_id: str) -> None:
        """On the loop's thread: its partition actors may live on, so its successor gets a chance.

        The successor's registration fences it; a node that is gone is lost when its time is up.
        """
        assert self._host is not None
        broker = self._host.machine.liveness.on_node(node_id)
        if broker is not None:
            self._host.expect_sign(broker.broker_id, self._spec.config.actor_timeout_ms)


def _end_if_broken(task: asyncio.Task[None]) -> None:
    """Or it would answer, and replace no broker any more."""
    if not task.cancelled() and (error := task.exception()) is not None:
        LOG.critical("the controller broke; the process ends and is replaced", exc_info=error)
        logging.shutdown()
        os._exit(70)


def _kill(actor: Any) -> None:
    LOG.warning("a silent broker is killed: %s", actor)
    ray.kill(actor)


ControllerActorClass = ray.remote(ControllerActor)
