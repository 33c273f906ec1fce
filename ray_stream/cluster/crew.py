"""The actors of one group, looked after by one thread of the process that made the group.

Owns: that thread, Ray's calls and their answers, what the actors told last. Refuses: deciding
(`supervision`), and waiting for users (`consumer_group`).
"""

import contextlib
import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from ray_stream.actors import registry, spawning
from ray_stream.clock import Clock
from ray_stream.cluster.consumer_actor import ConsumerActorClass
from ray_stream.cluster.reports import Report, Results, cause_of, unpacked
from ray_stream.cluster.supervision import Effect, Kill, Limits, Phase, Start, Stop, Supervisor
from ray_stream.errors import (
    ClusterNotFoundError,
    ConsumerActorError,
    InvalidArgumentError,
    RayNotRunningError,
    RayStreamError,
)

LOG = logging.getLogger(__name__)
LOOK_MS = 250
"""The thread wakes at least so often: for Ray's end, and for the rate."""
RATE_MS = 5_000
CALLS_MAX = 1_000
"""Calls parked at one actor: a watch of each coordinator, its owner's question, whoever looks."""

Event = Callable[[int], list[Effect]]
"""Something that happened: told the time, it gives what is to be done."""


@dataclass(slots=True)
class Member:
    """One actor, and what it told last."""

    name: str
    handle: Any
    begun_ms: int
    report: Report | None = None
    heard_ms: int = 0
    taken: int = 0


@dataclass(slots=True)
class Totals:
    """What actors that are gone had done."""

    records: int = 0
    skipped: int = 0
    errors: int = 0
    dropped: int = 0
    last_error: str = ""

    def add(self, report: Report) -> None:
        """One more."""
        self.records += report.records
        self.skipped += report.skipped
        self.errors += report.errors
        self.dropped += report.dropped
        self.last_error = report.last_error or self.last_error


@dataclass(frozen=True, slots=True)
class View:
    """A moment of the crew, for `status`."""

    members: dict[int, Member]
    leaving: dict[int, None]
    totals: Totals
    wanted: int
    restarts: int
    rate: float
    state: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What the actors are given."""

    cluster: str
    group: str
    job: Any
    """A reference to what they do."""
    actor_options: dict[str, Any]
    limits: Limits


class Crew:
    """Starts, watches, replaces and ends consumer actors."""

    def __init__(self, plan: Plan, clock: Clock) -> None:
        """Make one without actors.

        Args:
            plan: what they are given.
            clock: monotonic time.

        Raises:
            InvalidArgumentError: Ray does not know one of the actor options.
        """
        self._plan = plan
        self._clock = clock
        self._prefix = f"{plan.cluster}/consumer/{plan.group}/{uuid.uuid4().hex[:8]}"
        try:
            ConsumerActorClass.options(**plan.actor_options)
        except (ValueError, TypeError) as error:
            raise InvalidArgumentError(f"ray_actor_options: {error}") from error
        self._machine = Supervisor(plan.limits)
        self._members: dict[int, Member] = {}
        self._gone = Totals()
        self._samples: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()
        """Guards all of these: the thread changes them, anybody looks."""
        self._events: SimpleQueue[Event] = SimpleQueue()
        self.results = Results()
        self.over = threading.Event()
        self.overdue: list[str] = []
        """Actors that were killed because they did not leave in time."""
        self._thread = threading.Thread(target=self._run, name="ray_stream-crew", daemon=True)

    # --- from any thread -----------------------------------------------------------------------

    def begin(self, actors: int) -> None:
        """Start so many actors, and the thread."""
        self._thread.start()
        self.scale(actors)

    def scale(self, actors: int) -> None:
        """So many from now on."""
        self._events.put(partial(self._machine.scale, actors))

    def stop(self, within_ms: int) -> None:
        """All finish what they have in hand, commit, and leave; those that do not are killed."""

        def stop(now_ms: int) -> list[Effect]:
            limits = self._machine.limits
            self._machine.limits = Limits(limits.silence_ms, within_ms, limits.forgives_crashes)
            return self._machine.stop(now_ms)

        self._events.put(stop)

    @property
    def error(self) -> RayStreamError | None:
        """Why the group failed."""
        return self._machine.error

    def view(self) -> View:
        """How everything is now."""
        with self._lock:
            machine, gone = self._machine, self._gone
            totals = Totals(gone.records, gone.skipped, gone.errors, gone.dropped, gone.last_error)
            for member in self._members.values():
                if member.report is not None:
                    totals.add(member.report)
            return View(
                members=dict(self._members),
                leaving={
                    one.number: None
                    for one in machine.actors.values()
                    if one.phase == Phase.LEAVING
                },
                totals=totals,
                wanted=machine.wanted,
                restarts=machine.restarts,
                rate=self._rate(),
                state=self._state(),
            )

    def _state(self) -> str:
        if self._machine.error is not None:
            return "failed"
        if self.over.is_set():
            return "stopped"
        return "stopping" if self._machine.stopping else "running"

    def _rate(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (begun_ms, before), (now_ms, now) = self._samples[0], self._samples[-1]
        return (now - before) * 1000 / max(1, now_ms - begun_ms)

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._machine.is_over:
                self._turn()
        except BaseException as error:
            with self._lock:
                self._machine.stop(0, ConsumerActorError(f"the group's thread failed: {error}"))
            raise
        finally:
            for member in self._members.values():
                _kill(member.handle)
            self.over.set()
            self.results.end()

    def _turn(self) -> None:
        now_ms = self._clock.monotonic_ms()
        wait_ms = min(LOOK_MS, self._machine.next_due_ms(now_ms) - now_ms)
        try:
            event = self._events.get(timeout=max(1, wait_ms) / 1000)
        except Empty:
            event = _nothing
        self._handle(event)
        if not ray.is_initialized():
            self._lost(RayNotRunningError("Ray was shut down under a group of consumer actors"))

    def _handle(self, event: Event) -> None:
        now_ms = self._clock.monotonic_ms()
        with self._lock:
            effects = [*event(now_ms), *self._machine.tick(now_ms)]
            self._sample(now_ms)
        for effect in effects:
            self._do(effect)

    def _sample(self, now_ms: int) -> None:
        living = sum(one.report.records for one in self._members.values() if one.report is not None)
        self._samples.append((now_ms, self._gone.records + living))
        while now_ms - self._samples[0][0] > RATE_MS:
            self._samples.popleft()

    def _do(self, effect: Effect) -> None:
        match effect:
            case Start(number):
                self._start(number)
            case Stop(number):
                self._members[number].handle.stop.remote()
            case Kill(number, ""):
                _kill(self._members[number].handle)
                self._forget(number)
            case Kill(number, reason):
                member = self._members[number]
                LOG.warning("consumer actor %s is killed: %s", member.name, reason)
                if number in self.view().leaving:
                    self.overdue.append(member.name)
                _kill(member.handle)

    def _forget(self, number: int) -> None:
        with self._lock:
            member = self._members.pop(number, None)
            if member is not None and member.report is not None:
                self._gone.add(member.report)

    def _start(self, number: int) -> None:
        name = f"{self._prefix}.{number}"
        options = self._plan.actor_options
        try:
            if registry.read_spec(self._plan.cluster) is None:
                raise ClusterNotFoundError(f"cluster {self._plan.cluster!r} was stopped")
            handle = ConsumerActorClass.options(
                **options,
                name=name,
                namespace=spawning.NAMESPACE,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=CALLS_MAX,
            ).remote(name, [self._plan.job])
        except RayStreamError as error:
            self._lost(error)
        except (RayError, ValueError, TypeError) as error:
            self._lost(ConsumerActorError(f"Ray refused a consumer actor: {error}"))
        else:
            with self._lock:
                self._members[number] = Member(name, handle, self._clock.monotonic_ms())
            self._ask(number)

    def _lost(self, error: RayStreamError) -> None:
        """Nothing can be done for any actor any more."""
        with self._lock:
            self._machine.stop(self._clock.monotonic_ms(), error)
            self._machine.actors.clear()

    def _ask(self, number: int) -> None:
        """Have the actor tell how it is, as soon as that differs from what is known."""
        member = self._members[number]
        heard = -1 if member.report is None else member.report.news
        future = member.handle.status.remote(heard, member.taken).future()
        future.add_done_callback(
            lambda done: self._events.put(partial(self._answered, number, done))
        )

    def _answered(self, number: int, done: Any, now_ms: int) -> list[Effect]:
        """Take an answer; called with the lock."""
        member = self._members.get(number)
        if member is None:
            return []
        try:
            report, cause, result = unpacked(done.result())
        except ActorUnavailableError as error:
            LOG.info("consumer actor %s cannot be reached: %s", member.name, error)
            self._events.put(lambda _: self._again(number))
            return []
        except RayError as error:
            self._members.pop(number)
            if member.report is not None:
                self._gone.add(member.report)
            reason = _reason(error)
            self._gone.last_error = f"{member.name} ended: {reason}"
            LOG.warning("consumer actor %s ended: %s", member.name, reason)
            return self._machine.died(number, reason, now_ms)
        if report.result > member.taken:
            member.taken = report.result
            self.results.add(result)
        member.report, member.heard_ms = report, now_ms
        failure = None if report.failure is None else report.failure.to_error()
        if failure is not None:
            failure.__cause__ = cause_of(cause)
        effects = self._machine.heard(
            number,
            report.phase,
            now_ms,
            in_hand=report.in_hand,
            partitions=len(report.partitions),
            failure=failure,
        )
        if number in self._machine.actors:
            self._again(number)
        return effects

    def _again(self, number: int) -> list[Effect]:
        if number in self._members:
            with contextlib.suppress(RayError):
                self._ask(number)
        return []


def _nothing(now_ms: int) -> list[Effect]:
    del now_ms
    return []


def _kill(handle: Any) -> None:
    if ray.is_initialized():
        with contextlib.suppress(RayError, ValueError):
            ray.kill(handle)


def _reason(error: RayError) -> str:
    """Ray's reason, without its traceback and addresses; and the last line of a traceback in it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "because" in line), lines[-1] if lines else "")
    reason = told.partition("because ")[2] or told or type(error).__name__
    reason = reason.partition(" Some common causes")[0].strip(" .")
    raised = any("Traceback" in line for line in lines) and lines[-1] != told
    return f"{reason} ({lines[-1]})" if raised else reason
