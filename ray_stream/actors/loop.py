"""The one thread that owns the logs of an actor: takes in what is there, ends the turn, waits.

Owns: the wait for posted calls and sockets at once, the threads that sync, timers, and the thread's
niceness. Refuses: requests and their meaning.

Everything that touches a host is posted here, so a host needs no lock. An exception that reaches
the loop is a broken invariant: the process ends at once and its successor recovers from the disk.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Protocol, TypeVar

from ray_stream.clock import Clock
from ray_stream.errors import StorageError
from ray_stream.log.partition_log import SyncJob
from ray_stream.rpc.reactor import Reactor

LOG = logging.getLogger(__name__)
SYNC_THREADS = 4
SPREAD_THREADS = 8
TURN_CALLS_MAX = 1_000
IDLE_WAIT_MS = 3_600_000


ItemT = TypeVar("ItemT")
OutcomeT = TypeVar("OutcomeT")


class Turning(Protocol):
    """What a loop drives."""

    def end_turn(self) -> None:
        """Everything that was there is taken in: write, sync, answer."""
        ...

    def on_time(self) -> None:
        """A deadline passed."""
        ...

    def next_deadline_ms(self) -> int | None:
        """The next deadline on the monotonic clock; None: none."""
        ...


class Network(Protocol):
    """Sockets that the loop's thread serves, too."""

    def begin(self, reactor: Reactor) -> None:
        """The thread runs: have the reactor watch the sockets."""
        ...

    def end_turn(self) -> None:
        """Write what the turn has answered."""
        ...

    def on_time(self) -> None:
        """A deadline passed."""
        ...

    def next_deadline_ms(self) -> int | None:
        """The next deadline on the monotonic clock; None: none."""
        ...

    def close(self) -> None:
        """End all connections."""
        ...


class HostLoop:
    """A thread with an inbox."""

    def __init__(self, name: str, clock: Clock) -> None:
        """Args: name: the thread's name."""
        self._name = name
        self._clock = clock
        self._reactor = Reactor()
        self._network: Network | None = None
        self._is_ending = False
        self._syncs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        """Of thousands of logs at once, when they were looked at; a future each is a kilobyte."""
        self._sync_threads: list[threading.Thread] = []
        self._thread: threading.Thread | None = None
        self._synced_here = False
        self._left_s = 0.0
        """How long the thread may sleep."""
        self.niceness = 0
        self.turns = 0

    def start(self, host: Turning, network: Network | None = None) -> None:
        """Start turning; host and network are touched by this thread only from now on."""
        self._network = network
        self._thread = threading.Thread(
            target=self._run, args=(host,), name=self._name, daemon=True
        )
        self._thread.start()

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` run on the loop's thread. Safe from any thread."""
        self._reactor.post(call)

    def stop(self, last: Callable[[], None]) -> None:
        """Run `last` behind everything posted so far, end the thread, wait for it."""
        self.post(last)
        self.post(self._end)
        if self._thread is not None:
            self._thread.join()
        for _ in self._sync_threads:
            self._syncs.put(None)
        for thread in self._sync_threads:
            thread.join()
        self._reactor.close()  # the last syncs post what came of them, though nobody hears it

    def sync(self, job: SyncJob, done: Callable[[StorageError | None], None]) -> None:
        """`Syncer`: on a thread of its own, or here when it is the one thing to do in a turn."""
        is_busy = self._reactor.has_posted or self._reactor.has_ready()
        if not self._synced_here and not is_busy:
            self._synced_here = True
            if self._network is not None:
                self._network.end_turn()  # what is answered already does not wait for the disk
            done(_run_job(job))
            return

        def run() -> None:
            error = _run_job(job)
            self.post(lambda: done(error))

        self._syncs.put(run)
        if len(self._sync_threads) < SYNC_THREADS:
            number = len(self._sync_threads)
            thread = threading.Thread(
                target=self._run_syncs, name=f"{self._name}-sync-{number}", daemon=True
            )
            self._sync_threads.append(thread)
            thread.start()

    def spread(self, work: Callable[[ItemT], OutcomeT], items: Sequence[ItemT]) -> list[OutcomeT]:
        """Do the same to many logs at once, and wait for all: mostly for the disk."""
        if len(items) <= 1:
            return [work(item) for item in items]
        with ThreadPoolExecutor(SPREAD_THREADS, thread_name_prefix=f"{self._name}-spread") as pool:
            return list(pool.map(work, items))

    def _run_syncs(self) -> None:
        try:
            while (run := self._syncs.get()) is not None:
                run()
        except BaseException:
            LOG.critical("%s broke; the process ends and is replaced", self._name, exc_info=True)
            logging.shutdown()
            os._exit(70)

    def _end(self) -> None:
        self._is_ending = True

    def _run(self, host: Turning) -> None:
        self.niceness = _claim_normal_priority()
        try:
            if self._network is not None:
                self._network.begin(self._reactor)
            while self._turn(host):
                self.turns += 1
            if self._network is not None:
                self._network.close()
        except BaseException:
            LOG.critical("%s broke; the process ends and is replaced", self._name, exc_info=True)
            logging.shutdown()
            os._exit(70)

    def _turn(self, host: Turning) -> bool:
        """Take in what is there, end the turn; False: the last call was among it."""
        self._reactor.wait(self._left_s)
        for _ in range(TURN_CALLS_MAX):
            call = self._reactor.next_posted()
            if call is None:
                break
            call()
            if self._is_ending:
                return False
        self._synced_here = False
        host.end_turn()
        if self._network is not None:
            self._network.end_turn()
        self._look_at_the_clock(host)
        return True

    def _look_at_the_clock(self, host: Turning) -> None:
        """Do what is due, and have another turn write it; else say how long to sleep."""
        wait_ms = IDLE_WAIT_MS
        now_ms = self._clock.monotonic_ms()
        for one in (host,) if self._network is None else (host, self._network):
            deadline_ms = one.next_deadline_ms()
            if deadline_ms is None:
                continue
            if deadline_ms <= now_ms:
                one.on_time()
                wait_ms = 0
            else:
                wait_ms = min(wait_ms, deadline_ms - now_ms)
        self._left_s = wait_ms / 1000


def _run_job(job: SyncJob) -> StorageError | None:
    try:
        job.run()
    except StorageError as error:
        return error
    return None


def _claim_normal_priority() -> int:
    """Ray starts workers at niceness 15; niceness is a thread's, so this one takes 0 if it may."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except PermissionError:
        LOG.warning("the loop thread keeps its niceness: start Ray with RAY_worker_niceness=0")
    return os.getpriority(os.PRIO_PROCESS, 0)
