"""The Ray shell of a consumer: one worker in a thread of its own, calls that stay answerable.

Owns: the thread, questions that wait for news, the result that waits to be taken. Refuses: the work
(`worker`), its own restart and end (its owner's `supervision`).

It belongs to the process that made the group and ends with it: it is not detached. Coordinators
find it by its name, which is in its member's client id, and watch it.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray

from ray_stream.actors import spawning
from ray_stream.clock import SystemClock
from ray_stream.cluster.reports import Report, packed, pickled, pickled_cause
from ray_stream.cluster.work import Work
from ray_stream.cluster.worker import Job, Reader, Worker
from ray_stream.config import ConsumerConfig, validated
from ray_stream.rpc.messages import ErrorInfo
from ray_stream.types import TopicPartition

if TYPE_CHECKING:
    from ray_stream.cluster.handle import Cluster

PARK_S = 1.0
"""A question waits for news for so long; its answer is a sign of life."""
SETTLE_S = 0.05
"""Counters that change all the time are told at most so often."""


class ConsumerActor:
    """A member of a group that calls a handler."""

    def __init__(self, name: str, job: list[Any]) -> None:
        """Args: job: one reference to (cluster, work), which the thread fetches."""
        self._name = name
        self._job = job
        self._clock = SystemClock()
        self._worker = Worker(name, self._clock, self._load, self._tell, self._offer, self._wait)
        self._thread: threading.Thread | None = None
        self._aio: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._told = threading.Condition()
        """Guards everything below; notified when the owner has heard or taken something."""
        self._news = self._urgent = 0
        self._heard = self._taken = 0
        self._result = b""
        self._result_number = 0

    # --- calls ---------------------------------------------------------------------------------

    @ray.method
    async def watch(self) -> None:
        """Never returns: the caller learns of the end of this process."""
        await asyncio.Event().wait()

    @ray.method
    async def ping(self) -> int:
        """A sign of life: the process id."""
        return os.getpid()

    @ray.method
    async def status(self, heard: int = -1, taken: int = 0) -> list[bytes]:
        """How it is; the first call starts the work.

        Args:
            heard: the news that the caller knows; waits for other news. -1: does not wait.
            taken: number of the last result that the caller has.
        """
        self._start()
        with self._told:
            self._heard, self._taken = max(self._heard, heard), max(self._taken, taken)
            self._told.notify_all()
        now_s = time.monotonic()
        settled_s, deadline_s = now_s + SETTLE_S, now_s + PARK_S
        while heard >= 0 and not (self._urgent > heard or self._result_number > self._taken):
            now_s = time.monotonic()
            until_s = settled_s if self._news > heard else deadline_s
            if now_s >= until_s:
                break
            self._woken.clear()
            try:
                await asyncio.wait_for(self._woken.wait(), until_s - now_s)
            except TimeoutError:
                continue
        return self._report()

    @ray.method
    async def stop(self) -> None:
        """Finish what is in hand, commit, leave; returns then."""
        self._worker.stop()
        self._start()
        assert self._thread is not None
        await asyncio.to_thread(self._thread.join)

    def _start(self) -> None:
        if self._thread is None:
            self._aio = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._worker.run, name="handler", daemon=True)
            self._thread.start()

    def _report(self) -> list[bytes]:
        with self._told:
            news, result, number = self._news, self._result, self._result_number
            if number <= self._taken:
                result, number = b"", 0
        now = self._worker.copy()
        busy_ms = self._clock.monotonic_ms() - now.handling_since_ms
        cause = pickled_cause(now.cause)
        report = Report(
            news=news,
            phase=now.phase,
            pid=os.getpid(),
            node_id=ray.get_runtime_context().get_node_id(),
            partitions=[(one.topic, one.partition) for one in now.partitions],
            in_hand=list(now.in_hand),
            busy_ms=busy_ms if now.handling_since_ms else -1,
            records=now.records,
            batches=now.batches,
            skipped=now.skipped,
            errors=now.errors,
            dropped=now.dropped,
            last_error=now.last_error,
            failure=None if now.failure is None else ErrorInfo.of(now.failure),
            result=number,
        )
        return packed(report, cause, result)

    # --- the worker's thread -------------------------------------------------------------------

    def _load(self) -> Job:
        """What is to be done, and how to read; fails as what the user gave fails to unpickle."""
        cluster: Cluster
        work: Work
        cluster, work = ray.get(self._job[0])

        def open_reader(changed: Callable[[], None]) -> Reader:
            options = {**work.options, "group": work.group, "enable_auto_commit": False}
            for name in ("on_assigned", "on_revoked"):
                options[name] = _both(changed, work.options.get(name))
            client_id = spawning.MEMBER_PREFIX + self._name
            config = validated(ConsumerConfig, options, "run_consumers()")
            return cluster._member(work.topics, config, client_id)  # noqa: SLF001 - our own package

        return Job(work, open_reader)

    def _tell(self, *, urgent: bool) -> int:
        with self._told:
            self._news += 1
            if urgent:
                self._urgent = self._news
            number = self._news
        self._wake()
        return number

    def _wake(self) -> None:
        assert self._aio is not None, "a question started this thread"
        self._aio.call_soon_threadsafe(self._woken.set)

    def _offer(self, result: Any, patience_s: float) -> bool:
        data = pickled(result)
        with self._told:
            self._result_number += 1
            self._result, number = data, self._result_number
        self._wake()
        with self._told:
            taken = self._told.wait_for(lambda: self._taken >= number, patience_s)
            self._result = b""
            self._taken = max(self._taken, number)  # or dropped: nobody is told of it any more
        return taken

    def _wait(self, number: int, patience_s: float) -> None:
        with self._told:
            self._told.wait_for(lambda: self._heard >= number, patience_s)


def _both(
    changed: Callable[[], None], wanted: Callable[[list[TopicPartition]], None] | None
) -> Callable[[list[TopicPartition]], None]:
    def call(partitions: list[TopicPartition]) -> None:
        changed()
        if wanted is not None:
            wanted(partitions)

    return call


ConsumerActorClass = ray.remote(ConsumerActor)
