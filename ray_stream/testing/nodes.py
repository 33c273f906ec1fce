"""Simulated machines: disks that forget, and processes with the real hosts inside.

Owns: turning a host as its loop thread would, syncs that take their time, brokers that do what
`BrokerMachine` decides. Refuses: deciding what goes wrong (`testing.nemesis`), judging it.

A host is turned a little after each request, so that several requests meet in one turn; a sync
covers what was written when it was issued and is told later. An error of ours that leaves a host
ends its process, as it does in the real actor.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from ray_stream.errors import (
    DataDirInUseError,
    InvariantViolationError,
    RayStreamError,
    StorageError,
)
from ray_stream.log import locks
from ray_stream.log.partition_log import SyncJob
from ray_stream.log.storage import Lock, Storage
from ray_stream.testing.memory import MemoryStorage
from ray_stream.testing.network import Handler
from ray_stream.testing.scheduler import Event, Process, Scheduler, VirtualClock

SYNC_MS_MAX = 12
ItemT = TypeVar("ItemT")
OutcomeT = TypeVar("OutcomeT")


class Node:
    """One machine: a disk, and what it lost or kept through power losses."""

    def __init__(self, name: str) -> None:
        """Args: name: of the machine, for the network."""
        self.name = name
        self.storage = MemoryStorage()
        self.boots = 0
        self.up = True

    @property
    def boot_id(self) -> str:
        """Another one after every power loss."""
        return f"{self.name}-boot-{self.boots}"

    def lose_power(self, rng: random.Random) -> None:
        """What was not synced is kept, lost, torn or zeros, as the seed says."""
        self.boots += 1
        self.storage = self.storage.crashed(rng)


class Turning(Protocol):
    """A host, as `actors.loop` drives it."""

    def end_turn(self) -> None:
        """Write, sync, answer."""
        ...

    def on_time(self) -> None:
        """A deadline passed."""
        ...

    def next_deadline_ms(self) -> int | None:
        """The next deadline on the monotonic clock."""
        ...


class Turner:
    """The loop thread of one simulated process."""

    def __init__(
        self,
        scheduler: Scheduler,
        rng: random.Random,
        process: Process,
        storage: MemoryStorage,
        die: Callable[[Process, BaseException], None],
    ) -> None:
        """Args: storage: this process's view of its disk; die: called for an error of ours."""
        self.clock = VirtualClock(scheduler)
        self.process = process
        self.storage = storage
        self._scheduler = scheduler
        self._rng = rng
        self._die = die
        self._host: Turning | None = None
        self._turn_due = False
        self._timer: Event | None = None

    def drive(self, host: Turning) -> None:
        """Turn this host from now on."""
        self._host = host
        self._arm()

    def entered(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """The same handlers, each followed by a turn."""
        return {name: self._entering(handler) for name, handler in handlers.items()}

    def _entering(self, handler: Handler) -> Handler:
        def enter(request: Any, reply: Any) -> None:
            self.guarded(lambda: handler(request, reply))
            self.touch()

        return enter

    def touch(self) -> None:
        """A turn is due."""
        if not self._turn_due:
            self._turn_due = True
            self._scheduler.after(self._rng.randint(0, 1), self._turn, self.process)

    def sync(self, job: SyncJob, done: Callable[[StorageError | None], None]) -> None:
        """`Syncer`: covers what is written now, and takes a while."""
        issued_at = self.storage.disk.sequence

        def run() -> None:
            error: StorageError | None = None
            try:
                with self.storage.syncs_issued_at(issued_at):
                    job.run()
            except StorageError as failed:
                error = failed
            self.guarded(lambda: done(error))
            self.touch()

        self._scheduler.after(self._rng.randint(0, SYNC_MS_MAX), run, self.process)

    def guarded(self, work: Callable[[], None]) -> None:
        """Do it, unless the process died a moment ago; an error that gets out ends it."""
        if not self.process.alive:
            return
        try:
            work()
        except InvariantViolationError:
            raise  # found by whoever watches the run: not the process' own affair
        except RayStreamError as error:
            self._die(self.process, error)

    def _turn(self) -> None:
        self._turn_due = False
        assert self._host is not None, "nothing to turn"
        self.guarded(self._host.end_turn)
        self._arm()

    def _on_time(self) -> None:
        self._timer = None
        assert self._host is not None, "nothing to turn"
        self.guarded(self._host.on_time)
        self._turn()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        assert self._host is not None, "nothing to turn"
        deadline_ms = self._host.next_deadline_ms()
        if deadline_ms is not None and self.process.alive:
            wait_ms = max(1, deadline_ms - self._scheduler.now_ms)
            self._timer = self._scheduler.after(wait_ms, self._on_time, self.process)


def take_partition_lock(storage: Storage, root: str, topic_id: str, partition: int) -> Lock:
    """`Locking` without holders: a dead process holds nothing here."""
    lock = locks.try_lock(storage, root, locks.partition_position(topic_id, partition))
    if lock is None:
        raise DataDirInUseError(f"{root} partition {partition} is locked by another process")
    return lock


def one_by_one(work: Callable[[ItemT], OutcomeT], items: Sequence[ItemT]) -> list[OutcomeT]:
    """`Spread` on one thread."""
    return [work(item) for item in items]
