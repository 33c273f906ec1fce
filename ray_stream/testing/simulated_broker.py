"""A simulated broker: the real `BrokerMachine`, its directories, and a session with the controller.

Owns: what `actors.broker` does with Ray, done with events. Refuses: deciding.
"""

import random
from collections.abc import Callable
from typing import Any, Protocol

from ray_stream.errors import RayStreamError, StaleBrokerEpochError, StorageError, StorageFullError
from ray_stream.log import directory, locks
from ray_stream.log.directory import Identity
from ray_stream.log.offline import read_marker
from ray_stream.log.storage import Lock
from ray_stream.metadata import hosting
from ray_stream.metadata.commands import (
    BrokerAssignment,
    BrokerRegistered,
    ClaimLeadership,
    ConfirmDeleted,
    DirectoryReport,
    Done,
    PartitionKey,
    PartitionRepaired,
    PartitionServed,
    RegisterBroker,
    ReportServed,
)
from ray_stream.metadata.placement import COORDINATOR_SLOT
from ray_stream.rpc.hosting import (
    AlterPartitions,
    LeadPartitions,
    PreparePartitions,
    ReleasePartitions,
)
from ray_stream.rpc.messages import WatchAssignment
from ray_stream.testing.network import Network
from ray_stream.testing.nodes import Node
from ray_stream.testing.scheduler import Process, Scheduler

ROOT = "/data"
ANSWER_MS = 3_000
WATCH_MS = 1_000
TICK_MS = 100
SHARED_ACTORS = 2


class Hosts(Protocol):
    """How a broker starts and ends partition actors."""

    def start_host(
        self, node: Node, host: str, ready: Callable[[], None], *, coordinates: bool
    ) -> None:
        """Start one, of groups or of records; `ready` when it answers."""
        ...

    def stop_host(self, host: str) -> None:
        """End one."""
        ...

    def end_broker(self, process: Process) -> None:
        """A broker process that was replaced for good ends itself."""
        ...

    def living_hosts(self, node: Node) -> dict[str, list[PartitionServed]]:
        """Names of the node's living hosts, and what each serves."""
        ...

    def failures(self, node: Node) -> dict[str, int]:
        """How many logs went offline in each of them."""
        ...


class SimulatedBroker:
    """One broker process."""

    def __init__(
        self,
        scheduler: Scheduler,
        network: Network,
        node: Node,
        process: Process,
        hosts: Hosts,
        rng: random.Random,
    ) -> None:
        self._scheduler = scheduler
        self._network = network
        self._node = node
        self._process = process
        self._hosts = hosts
        self._storage = node.storage.another_process()
        self._incarnation = f"{rng.getrandbits(48):012x}"
        self._machine = hosting.BrokerMachine(
            f"host/{node.name}/", self._incarnation, warm_slots=SHARED_ACTORS
        )
        self._held: dict[str, tuple[str, Identity, Lock]] = {}
        self._broker_id = -1
        self._broker_epoch = -1
        self._session = 0
        self._cluster_id = ""
        self._assignment: BrokerAssignment | None = None
        self._failures: dict[str, int] = {}

    def begin(self) -> None:
        """Adopt what lives, and register."""
        for host, served in self._hosts.living_hosts(self._node).items():
            self._dispatch(hosting.HostUp(self._machine.slot_in(host), host, served))
        self._tick()
        self._new_session()

    def end(self) -> None:
        """The process is dead: its locks are free."""
        self._storage.kill()

    def host_is_down(self, host: str) -> None:
        """A host of this node died."""
        self._dispatch(hosting.HostDown(host))

    def lead_anew(self, host: str, keys: list[PartitionKey]) -> None:
        """Claim new leader epochs for what a living host serves, as after a lost report."""
        self._dispatch(hosting.Stale(host, keys))

    # --- the session -----------------------------------------------------------------------------

    def _tick(self) -> None:
        self._dispatch(hosting.Tick())
        self._look_into_failures()
        self._scheduler.after(TICK_MS, self._tick, self._process)

    def _look_into_failures(self) -> None:
        """A log went offline: report what its host serves now."""
        for host, failures in self._hosts.failures(self._node).items():
            if failures != self._failures.get(host, 0):
                self._failures[host] = failures
                served = self._hosts.living_hosts(self._node)[host]
                self._dispatch(hosting.Described(host, served))

    def _look_for_repaired(self) -> None:
        """Offline partitions whose marker is gone: an operator was here."""
        for one in self._assignment.partitions if self._assignment is not None else ():
            held = self._held.get(one.directory_id)
            if not one.offline_reason or held is None:
                continue
            path = directory.partition_path(held[0], one.topic_id, one.partition)
            if read_marker(self._storage, path) is None:
                request = PartitionRepaired(
                    self._broker_id, self._broker_epoch, one.topic_id, one.partition
                )
                self._ask("controller", "partition_repaired", request, lambda _: None)

    def _new_session(self) -> None:
        self._session += 1
        self._register()

    def _lost(self, session: int) -> None:
        if session == self._session:
            self._session += 1
            self._scheduler.after(TICK_MS, self._new_session, self._process)

    def _ask(self, target: str, method: str, request: Any, then: Callable[[Any], None]) -> None:
        """Ask; `then` gets the answer once, or an error when none came in time."""
        answered = False

        def reply(answer: Any) -> None:
            nonlocal answered
            if not answered:
                answered = True
                then(answer)

        def give_up() -> None:
            reply(RayStreamError("no answer in time"))

        self._network.call(self._process, target, method, request, reply)
        self._scheduler.after(ANSWER_MS, give_up, self._process)

    def _register(self) -> None:
        session = self._session
        self._lock_what_is_free()
        reports = [
            DirectoryReport(
                found.identity.directory_id,
                found.identity.broker_id,
                found.identity.directory_id in self._held,
                found.has_metadata,
                found.identity.controller_epoch,
            )
            for found in directory.scan(self._storage, ROOT)
            if found.identity is not None
        ]
        request = RegisterBroker(
            self._node.name,
            self._node.name,
            self._incarnation,
            self._process.name,
            SHARED_ACTORS,
            reports,
        )

        def registered(answer: Any) -> None:
            if session != self._session:
                return
            if isinstance(answer, StaleBrokerEpochError):
                self._hosts.end_broker(self._process)
                return
            if not isinstance(answer, BrokerRegistered):
                self._lost(session)
                return
            try:
                self._accept(answer)
            except (StorageError, StorageFullError):
                # A full disk: the epoch is not durable, so this controller is not followed yet.
                self._lost(session)
                return
            for effect in self._machine.reports():
                self._perform(effect)
            self._watch(session, -1)

        self._ask("controller", "register_broker", request, registered)

    def _accept(self, answer: BrokerRegistered) -> None:
        self._cluster_id = answer.cluster_id
        self._broker_id, self._broker_epoch = answer.broker_id, answer.broker_epoch
        for directory_id in [one for one in self._held if one not in answer.owned]:
            self._held.pop(directory_id)[2].release()
        for path, identity, _ in self._held.values():
            directory.see_controller_epoch(self._storage, path, identity, answer.controller_epoch)

    def _lock_what_is_free(self) -> None:
        for found in directory.scan(self._storage, ROOT):
            if found.identity is not None and found.identity.directory_id not in self._held:
                lock = locks.try_lock(self._storage, found.path, locks.BROKER_POSITION)
                if lock is not None:
                    held = (found.path, found.identity, lock)
                    self._held[found.identity.directory_id] = held

    def _watch(self, session: int, known_version: int) -> None:
        def answered(answer: Any) -> None:
            if session != self._session:
                return
            if isinstance(answer, Done):
                self._look_for_repaired()
                self._watch(session, known_version)
            elif isinstance(answer, BrokerAssignment):
                self._take(session, answer)
            else:
                self._lost(session)

        request = WatchAssignment(self._broker_id, self._broker_epoch, known_version, WATCH_MS)
        self._ask("controller", "watch_assignment", request, answered)

    def _take(self, session: int, assignment: BrokerAssignment) -> None:
        try:
            self._make(assignment)
        except (StorageError, StorageFullError):
            self._lost(session)
            return
        self._assignment = assignment
        self._dispatch(hosting.Assigned(assignment, sorted(self._held)))
        self._look_for_repaired()
        if assignment.make or assignment.acquire:
            self._scheduler.after(TICK_MS, self._new_session, self._process)
            self._session += 1
        else:
            self._watch(session, assignment.version)

    def _make(self, assignment: BrokerAssignment) -> None:
        for new in assignment.make:
            identity = Identity(
                cluster_id=self._cluster_id,
                broker_id=new.broker_id,
                directory_id=new.directory_id,
                host_id=self._node.name,
            )
            directory.make_directory(self._storage, ROOT, identity)

    # --- performing ------------------------------------------------------------------------------

    def _dispatch(self, event: hosting.Event) -> None:
        for effect in self._machine.step(event, self._scheduler.now_ms):
            self._perform(effect)

    def _perform(self, effect: hosting.Effect) -> None:
        paths = {key: held[0] for key, held in self._held.items()}
        match effect:
            case hosting.StartHost():
                up = hosting.HostUp(effect.slot, effect.host)
                self._hosts.start_host(
                    self._node,
                    effect.host,
                    lambda: self._host_started(up),
                    coordinates=effect.slot == COORDINATOR_SLOT,
                )
            case hosting.StopHost():
                self._hosts.stop_host(effect.host)
            case hosting.Prepare():
                request = PreparePartitions(paths, effect.partitions)
                self._operate(effect.host, "prepare", request, self._prepared)
            case hosting.Claim():
                self._claim(effect)
            case hosting.Lead():
                lead = LeadPartitions(effect.partitions)
                self._operate(effect.host, "lead", lead, self._led)
            case hosting.Alter():
                alter = AlterPartitions(effect.partitions)
                self._operate(effect.host, "alter", alter, self._led)
            case hosting.Release():
                self._release(effect, paths)
            case hosting.Report():
                self._report(effect)
            case hosting.ReportDeleted():
                confirm = ConfirmDeleted(self._broker_id, self._broker_epoch, effect.keys)
                self._ask("controller", "confirm_deleted", confirm, lambda _: None)

    def _host_started(self, up: hosting.HostUp) -> None:
        if self._process.alive:
            self._dispatch(up)

    def _operate(
        self, host: str, method: str, request: Any, event: Callable[[str, Any], hosting.Event]
    ) -> None:
        def answered(answer: Any) -> None:
            failed = isinstance(answer, RayStreamError)
            self._dispatch(hosting.Failed(host) if failed else event(host, answer))

        self._ask(host, method, request, answered)

    def _prepared(self, host: str, answer: Any) -> hosting.Event:
        return hosting.Prepared(host, answer.results)

    def _led(self, host: str, answer: Any) -> hosting.Event:
        return hosting.Led(host, answer.served)

    def _claim(self, effect: hosting.Claim) -> None:
        def claimed(answer: Any) -> None:
            if isinstance(answer, RayStreamError):
                self._dispatch(hosting.Failed(effect.host))
            else:
                self._dispatch(hosting.Claimed(effect.host, effect.keys, answer.leader_epochs))

        request = ClaimLeadership(
            self._broker_id, self._broker_epoch, effect.host, effect.keys, effect.sequence
        )
        self._ask("controller", "claim_leadership", request, claimed)

    def _release(self, effect: hosting.Release, paths: dict[str, str]) -> None:
        deleted = bool(effect.delete)
        request = ReleasePartitions(effect.keys, deleted, paths, effect.delete)
        self._operate(
            effect.host,
            "release",
            request,
            lambda host, answer: hosting.Released(host, answer.partitions, deleted),
        )

    def _report(self, effect: hosting.Report) -> None:
        def reported(answer: Any) -> None:
            if not isinstance(answer, Done):
                self._dispatch(hosting.Unreported(effect.host))
            elif answer.stale:
                self._dispatch(hosting.Stale(effect.host, answer.stale))

        request = ReportServed(self._broker_id, self._broker_epoch, effect.host, effect.served)
        self._ask("controller", "report_served", request, reported)
