"""The broker of one node: holds its data directories, and keeps its partition actors as assigned.

Owns: the session with the controller (register, watch, report), and performing what `BrokerMachine`
decides. Refuses: logs (its hosts open them), placement, starting other brokers.

Its constructor does no I/O; `start` begins a task that lives as long as the process. A session ends
when the controller dies; the next begins with a registration, and everything served is reported
again.
"""

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import ray

from ray_stream.actors import registry, spawning
from ray_stream.actors.boot import data_root, host_id
from ray_stream.actors.directories import BrokerDirectories, Survey
from ray_stream.actors.heartbeat import until_silent
from ray_stream.actors.holders import this_process
from ray_stream.actors.hosts import NodeHosts
from ray_stream.actors.peers import ask
from ray_stream.actors.revival import revive_controller
from ray_stream.actors.settings import ClusterSpec, packed
from ray_stream.clock import SystemClock
from ray_stream.errors import (
    OutcomeUnknownError,
    RayStreamError,
    StaleBrokerEpochError,
    TimeoutExpiredError,
)
from ray_stream.metadata import hosting
from ray_stream.metadata.commands import (
    AssignedPartition,
    BrokerAssignment,
    BrokerRegistered,
    ClaimLeadership,
    ConfirmDeleted,
    Done,
    LeadershipGiven,
    PartitionRepaired,
    RegisterBroker,
    ReportServed,
)
from ray_stream.metadata.placement import COORDINATOR_SLOT
from ray_stream.rpc.hosting import (
    AlterPartitions,
    DescribeHost,
    HostDescribed,
    LeadPartitions,
    PartitionsLed,
    PartitionsPrepared,
    PartitionsReleased,
    PreparePartitions,
    ReleasePartitions,
)
from ray_stream.rpc.messages import WatchAssignment

LOG = logging.getLogger(__name__)
PAUSE_S = 0.1
WATCH_MS = 1_000
SHARED_ACTORS_MIN = 2
FIRST_BROKER = 0
NEVER = -1
EXIT_REPLACED = 71
NOTHING = BrokerAssignment(-1, -1, [], [], [], [])


class BrokerActor:
    """One per node, named, pinned hard to it."""

    def __init__(self, spec: bytes, node_id: str) -> None:
        """Args: spec: a packed `ClusterSpec`."""
        self._spec = msgspec.json.decode(spec, type=ClusterSpec)
        self._node_id = node_id
        self._clock = SystemClock()
        self._incarnation = uuid.uuid4().hex[:12]
        root = data_root(self._spec.data_dir, self._spec.name)
        address = ray.get_runtime_context().gcs_address
        holder = this_process(spawning.broker_name(self._spec.name, node_id), address)
        self._directories = BrokerDirectories(root, host_id(), holder)
        self._hosts = NodeHosts(
            self._spec.name,
            node_id,
            self._spec.config,
            self._spec.secret,
            down=lambda host: self._dispatch(hosting.HostDown(host)),
            failed=lambda host: self._spawn(self._look_into(host)),
        )
        self._machine = hosting.BrokerMachine(
            spawning.host_name(self._spec.name, node_id, ""),
            self._incarnation,
            warm_slots=self._shared_actors_max(),
        )
        self._cluster_id = ""
        self._broker_id = NEVER
        self._broker_epoch = -1
        self._reported: list[str] = []
        self._controller: Any = None
        self._progress = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- what others call ------------------------------------------------------------------------

    @ray.method
    async def survey(self) -> bytes:
        """Which directories this node sees, as a packed `Survey`; takes the locks that are free."""
        return packed(await asyncio.to_thread(self._directories.survey, take_locks=True))

    @ray.method
    async def make_first_directory(self, cluster_id: str, directory_id: str) -> str:
        """Make the directory of a new cluster's metadata log, broker 0's; returns its path."""
        return await asyncio.to_thread(
            self._directories.make, cluster_id, directory_id, FIRST_BROKER, directory_id
        )

    @ray.method
    async def start(self) -> int:
        """Begin to serve; a second call does nothing. Returns the process id."""
        if self._main is None:
            self._main = asyncio.create_task(self._run())
            self._main.add_done_callback(self._ended)  # or it would answer pings, and do nothing
        return os.getpid()

    @ray.method
    async def watch(self) -> None:
        """Never returns: its failure tells the caller of this process's death."""
        await asyncio.Event().wait()

    @ray.method
    async def ping(self) -> int:
        """A sign of life."""
        return self._broker_id

    @ray.method
    async def pids(self) -> dict[str, int]:
        """Process ids of this broker and of its partition actors, by actor name."""
        return {spawning.broker_name(self._spec.name, self._node_id): os.getpid()} | (
            self._hosts.pids()
        )

    @ray.method
    async def stop(self) -> None:
        """End the partition actors cleanly and let go of the directories."""
        if self._main is not None:
            self._main.cancel()
        await self._hosts.stop_all()
        await asyncio.to_thread(self._directories.release_all)

    # --- the session with the controller ----------------------------------------------------------

    async def _run(self) -> None:
        for name, served in (await self._hosts.find_living()).items():
            self._dispatch(hosting.HostUp(self._machine.slot_in(name), name, served))
        ticking = asyncio.create_task(self._tick())
        ticking.add_done_callback(self._ended)
        try:
            while True:
                try:
                    await self._session()
                except (OutcomeUnknownError, TimeoutExpiredError) as error:
                    LOG.info("the controller is gone (%s)", error)
                    self._controller = None
                except RayStreamError as error:
                    LOG.warning("the controller refused this broker: %s", error)
                    await asyncio.sleep(PAUSE_S)
        finally:
            ticking.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(PAUSE_S)
            self._dispatch(hosting.Tick())

    async def _session(self) -> None:
        self._controller = await self._find_controller()
        if self._controller is None:
            await asyncio.sleep(PAUSE_S)
            return
        controller = self._controller
        controller.start.remote()  # unless somebody did
        # A stopped controller would be waited for as long as it is stopped; killed, its successor
        # takes its lock.
        silence = asyncio.create_task(
            until_silent(controller, self._spec.config, lambda: _kill(controller))
        )
        try:
            await self._follow()
        finally:
            silence.cancel()

    async def _follow(self) -> None:
        """Register, then do what the controller says, until it fails."""
        await self._register()
        known_version = -1
        assignment = NOTHING
        while True:
            answer: BrokerAssignment | Done = await ask(
                self._controller,
                WatchAssignment(self._broker_id, self._broker_epoch, known_version, WATCH_MS),
                WATCH_MS + self._spec.config.actor_timeout_ms,
            )
            if isinstance(answer, BrokerAssignment):
                assignment = answer
                known_version = assignment.version
                self._take(assignment)
            else:
                self._look_for_repaired(assignment)
            wants_lock = bool(assignment.make or assignment.acquire)
            gained = wants_lock and await asyncio.to_thread(self._acquire, assignment)
            if gained or await asyncio.to_thread(self._sees_others):
                await self._register()
                known_version = -1

    def _shared_actors_max(self) -> int:
        return self._spec.config.partition_actors_max or max(SHARED_ACTORS_MIN, os.cpu_count() or 1)

    async def _find_controller(self) -> Any:
        actor = await asyncio.to_thread(spawning.find, spawning.controller_name(self._spec.name))
        if actor is None:
            await asyncio.to_thread(revive_controller, self._spec, self._node_id)
            actor = await asyncio.to_thread(
                spawning.find, spawning.controller_name(self._spec.name)
            )
        return actor

    async def _register(self) -> None:
        survey = await asyncio.to_thread(
            self._directories.survey, take_locks=self._broker_id == NEVER
        )
        self._reported = _ids(survey)
        request = RegisterBroker(
            node_id=self._node_id,
            host_id=survey.host_id,
            incarnation=self._incarnation,
            actor_name=spawning.broker_name(self._spec.name, self._node_id),
            partition_actors_max=self._shared_actors_max(),
            directories=survey.reports(),
        )
        try:
            registered: BrokerRegistered = await ask(
                self._controller, request, self._spec.config.start_timeout_ms
            )
        except StaleBrokerEpochError as error:
            # Replaced for good, if only by a late copy of an earlier request: the next process of
            # this node has a new incarnation, and adopts the partition actors.
            LOG.critical("this broker process ends: %s", error)
            logging.shutdown()
            os._exit(EXIT_REPLACED)
        self._cluster_id = registered.cluster_id
        self._broker_id = registered.broker_id
        self._broker_epoch = registered.broker_epoch
        for directory_id, reason in registered.refused:
            LOG.warning("directory %s is not served: %s", directory_id, reason)
        await asyncio.to_thread(self._directories.accept, registered)
        for effect in self._machine.reports():
            self._perform(effect)

    def _sees_others(self) -> bool:
        """Whether directories came or went since they were reported.

        Another broker of this host may have made one; should it die, this one must be known to see
        it.
        """
        return _ids(self._directories.survey(take_locks=False)) != self._reported

    def _acquire(self, assignment: BrokerAssignment) -> bool:
        seat = registry.read_seat(self._spec.name)
        metadata_directory_id = Path(seat.directory).name if seat is not None else ""
        return self._directories.acquire(
            assignment.make, assignment.acquire, self._cluster_id, metadata_directory_id
        )

    def _take(self, assignment: BrokerAssignment) -> None:
        ready = self._directories.held()
        self._dispatch(hosting.Assigned(assignment, ready))
        self._look_for_repaired(assignment)
        leaving = [one for one in ready if one not in assignment.owned]
        if leaving:
            self._spawn(self._hand_over(leaving))

    def _look_for_repaired(self, assignment: BrokerAssignment) -> None:
        repaired = self._directories.repaired(assignment.partitions)
        if repaired:
            self._spawn(self._report_repaired(repaired))

    async def _hand_over(self, directory_ids: list[str]) -> None:
        """Give up the locks of directories for another broker, once their logs are closed."""
        for directory_id in directory_ids:
            await self._unused(directory_id)
        await asyncio.to_thread(self._directories.release, directory_ids)

    async def _unused(self, directory_id: str) -> None:
        while self._machine.serves(directory_id):
            self._progress.clear()
            await self._progress.wait()

    # --- performing what the machine decides ------------------------------------------------------

    def _dispatch(self, event: hosting.Event) -> None:
        for effect in self._machine.step(event, self._clock.monotonic_ms()):
            self._perform(effect)
        self._progress.set()

    def _perform(self, effect: hosting.Effect) -> None:
        match effect:
            case hosting.StartHost():
                self._spawn(self._start_host(effect))
            case hosting.StopHost():
                self._spawn(self._hosts.stop(effect.host))
            case hosting.Report():
                self._spawn(self._report(effect))
            case hosting.ReportDeleted():
                self._spawn(self._report_deleted(effect))
            case _:
                self._spawn(self._operate(effect))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.critical("the broker broke; the process ends and is replaced", exc_info=error)
            logging.shutdown()
            os._exit(70)

    async def _start_host(self, effect: hosting.StartHost) -> None:
        coordinates = effect.slot == COORDINATOR_SLOT
        if await self._hosts.start(effect.host, coordinates=coordinates):
            self._dispatch(hosting.HostUp(effect.slot, effect.host))
        else:
            self._dispatch(hosting.HostDown(effect.host))

    async def _look_into(self, host: str) -> None:
        """A log went offline: report what the host serves now."""
        with contextlib.suppress(RayStreamError):  # then it is looked into with the next failure
            described: HostDescribed = await self._hosts.ask(host, DescribeHost())
            self._dispatch(hosting.Described(host, described.served))

    async def _report_repaired(self, repaired: list[AssignedPartition]) -> None:
        """Offline partitions whose marker is gone: `ray-stream repair` was here."""
        for one in repaired:
            request = PartitionRepaired(
                self._broker_id, self._broker_epoch, one.topic_id, one.partition
            )
            with contextlib.suppress(RayStreamError):
                # Asked again with the next session while it is not recorded.
                await self._ask_controller(request)

    async def _operate(
        self,
        effect: hosting.Prepare | hosting.Claim | hosting.Lead | hosting.Alter | hosting.Release,
    ) -> None:
        perform: dict[type, Callable[[Any], Awaitable[hosting.Event]]] = {
            hosting.Prepare: self._prepare,
            hosting.Claim: self._claim,
            hosting.Lead: self._lead,
            hosting.Alter: self._alter,
            hosting.Release: self._release,
        }
        try:
            event = await perform[type(effect)](effect)
        except RayStreamError as error:
            if not isinstance(error, OutcomeUnknownError | StaleBrokerEpochError):
                LOG.warning("%s for %s failed: %s", type(effect).__name__, effect.host, error)
            event = hosting.Failed(effect.host)
        self._dispatch(event)

    async def _prepare(self, effect: hosting.Prepare) -> hosting.Event:
        request = PreparePartitions(self._directories.paths(), effect.partitions)
        answer: PartitionsPrepared = await self._hosts.ask(effect.host, request)
        return hosting.Prepared(effect.host, answer.results)

    async def _claim(self, effect: hosting.Claim) -> hosting.Event:
        request = ClaimLeadership(
            self._broker_id, self._broker_epoch, effect.host, effect.keys, effect.sequence
        )
        answer: LeadershipGiven = await self._ask_controller(request)
        return hosting.Claimed(effect.host, effect.keys, answer.leader_epochs)

    async def _lead(self, effect: hosting.Lead) -> hosting.Event:
        answer: PartitionsLed = await self._hosts.ask(
            effect.host, LeadPartitions(effect.partitions)
        )
        return hosting.Led(effect.host, answer.served)

    async def _alter(self, effect: hosting.Alter) -> hosting.Event:
        answer: PartitionsLed = await self._hosts.ask(
            effect.host, AlterPartitions(effect.partitions)
        )
        return hosting.Led(effect.host, answer.served)

    async def _release(self, effect: hosting.Release) -> hosting.Event:
        deleted = bool(effect.delete)
        request = ReleasePartitions(effect.keys, deleted, self._directories.paths(), effect.delete)
        answer: PartitionsReleased = await self._hosts.ask(effect.host, request)
        return hosting.Released(effect.host, answer.partitions, deleted)

    async def _report(self, effect: hosting.Report) -> None:
        request = ReportServed(self._broker_id, self._broker_epoch, effect.host, effect.served)
        try:
            done: Done = await self._ask_controller(request)
        except RayStreamError:
            self._dispatch(hosting.Unreported(effect.host))
            return
        if done.stale:
            self._dispatch(hosting.Stale(effect.host, done.stale))

    async def _report_deleted(self, effect: hosting.ReportDeleted) -> None:
        request = ConfirmDeleted(self._broker_id, self._broker_epoch, effect.keys)
        with contextlib.suppress(RayStreamError):
            # Asked again with the next assignment while the tombstone stands.
            await self._ask_controller(request)

    async def _ask_controller(self, request: Any) -> Any:
        if self._controller is None:
            raise OutcomeUnknownError("the controller is being replaced")
        return await ask(self._controller, request, self._spec.config.start_timeout_ms)


def _ids(survey: Survey) -> list[str]:
    return [one.directory_id for one in survey.directories]


def _kill(actor: Any) -> None:
    LOG.warning("a silent controller is killed: %s", actor)
    ray.kill(actor)


BrokerActorClass = ray.remote(BrokerActor)
