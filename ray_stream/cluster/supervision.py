"""What the owner of a group of consumer actors decides: whom to start, replace and stop.

Owns: when to give up, the wanted number, each actor's phase, back-off, the group's end. Refuses:
Ray, time, threads; actors are numbers here, and the shell (`crew`) does what is decided.

Rules:

* An actor that ran and died is replaced at once. One that dies before it ran is waited for, longer
  each time, and after `START_FAILURES_MAX` in a row the group fails: the next one would die too.
* A batch in whose handling processes die is a batch that kills them. After `CRASHES_MAX` times the
  group fails and names it, unless the user said `on_error="retry"`.
* A handler that raised (and is not to be retried or skipped), or that cannot be built, ends the
  group with that error: the others finish what they have in hand, commit, and leave.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ray_stream.errors import ConsumerActorError, RayStreamError

START_FAILURES_MAX = 5
CRASHES_MAX = 5
BACKOFF_MS = 250
BACKOFF_MAX_MS = 10_000

Place = tuple[str, int, int]
"""Topic, partition, first offset of what is in hand."""


class Phase(StrEnum):
    """Where an actor stands."""

    STARTING = "starting"
    RUNNING = "running"
    LEAVING = "leaving"
    LEFT = "left"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Start:
    """Start an actor of that number."""

    actor: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell an actor to finish what it has in hand, commit, and leave."""

    actor: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End its process; one that left has nothing to lose."""

    actor: int
    reason: str = ""
    """Why, if it did not leave."""


Effect = Start | Stop | Kill


@dataclass(slots=True)
class Actor:
    """What is known of one actor."""

    number: int
    phase: Phase
    since_ms: int
    """When it came into this phase."""
    heard_ms: int
    in_hand: tuple[Place, ...] = ()
    partitions: int = 0
    killed: str = ""
    """Why it was killed, once it was."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Waits, in milliseconds."""

    silence_ms: int
    """An actor that ran and was not heard for so long is killed: its group gave it up as well."""
    stop_ms: int
    """How long an actor that leaves has for what it has in hand."""
    forgives_crashes: bool
    """Whether a batch that kills processes is tried for ever."""


@dataclass(slots=True)
class Supervisor:
    """Decides for one group. Every method takes the monotonic time and gives what is to be done."""

    limits: Limits
    wanted: int = 0
    actors: dict[int, Actor] = field(default_factory=dict)
    restarts: int = 0
    error: RayStreamError | None = None
    """Why the group failed."""
    stopping: bool = False
    drawn: int = 0
    failed_starts: int = 0
    start_after_ms: int = 0
    crashes: dict[Place, int] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether it was stopped, or failed, and no actor is left."""
        return self.stopping and not self.actors

    # --- what the owner wants ------------------------------------------------------------------

    def scale(self, actors: int, now_ms: int) -> list[Effect]:
        """So many actors from now on; those that have least to do leave first."""
        if self.stopping:
            return []
        self.wanted = actors
        self.start_after_ms = min(self.start_after_ms, now_ms)
        staying = sorted(self._staying(), key=_to_leave_first)
        effects: list[Effect] = []
        for actor in staying[: max(0, len(staying) - actors)]:
            effects += self._let_go(actor, now_ms)
        return effects + self._fill(now_ms)

    def stop(self, now_ms: int, error: RayStreamError | None = None) -> list[Effect]:
        """All leave; the first error is what the group failed with."""
        if self.error is None:
            self.error = error
        if not self.stopping:
            for actor in self.actors.values():
                if actor.phase == Phase.LEAVING:  # it has all the time that the others get
                    actor.since_ms = now_ms
        self.stopping = True
        effects: list[Effect] = []
        for actor in self._staying():
            effects += self._let_go(actor, now_ms)
        return effects

    # --- what becomes of actors ----------------------------------------------------------------

    def heard(
        self,
        number: int,
        phase: Phase,
        now_ms: int,
        *,
        in_hand: Sequence[Place] = (),
        partitions: int = 0,
        failure: RayStreamError | None = None,
    ) -> list[Effect]:
        """An actor told how it is.

        Args:
            number: the actor.
            phase: what it says.
            now_ms: the monotonic time.
            in_hand: where the batch begins that its handler has; empty: it has none.
            partitions: how many it owns.
            failure: why it failed.
        """
        actor = self.actors.get(number)
        if actor is None:
            return []
        actor.heard_ms = now_ms
        if phase == Phase.RUNNING:
            for place in actor.in_hand:
                if place not in in_hand:
                    self.crashes.pop(place, None)  # it went well this time
            self.failed_starts = 0
        actor.in_hand = tuple(in_hand)
        actor.partitions = partitions
        if phase in (Phase.LEFT, Phase.FAILED):
            return self._ended(actor, failure, now_ms)
        if actor.phase == Phase.STARTING and phase == Phase.RUNNING:
            actor.phase, actor.since_ms = phase, now_ms
        return []

    def _ended(self, actor: Actor, failure: RayStreamError | None, now_ms: int) -> list[Effect]:
        """It does nothing any more, and told so."""
        del self.actors[actor.number]
        effects: list[Effect] = [Kill(actor.number)]
        if failure is not None:
            return effects + self.stop(now_ms, failure)
        if actor.phase != Phase.LEAVING:
            self.restarts += 1  # somebody else told it to stop
        return effects + self._fill(now_ms)

    def died(self, number: int, reason: str, now_ms: int) -> list[Effect]:
        """An actor's process ended, or could not be started; `reason` is Ray's."""
        actor = self.actors.pop(number, None)
        if actor is None:
            return []
        if actor.killed:
            reason = actor.killed
        if actor.phase == Phase.STARTING:
            self._failed_start(reason, now_ms)
        else:
            self._crashed(actor, reason, now_ms)
        if self.error is not None:
            return self.stop(now_ms)
        if actor.phase != Phase.LEAVING:
            self.restarts += 1
        return self._fill(now_ms)

    def _failed_start(self, reason: str, now_ms: int) -> None:
        self.failed_starts += 1
        if self.failed_starts >= START_FAILURES_MAX and not self.stopping:
            self.error = ConsumerActorError(
                f"{self.failed_starts} consumer actors in a row ended before they ran, the last "
                f"one because {reason}: put that right, and call run_consumers() again"
            )
        self.start_after_ms = now_ms + _backoff(self.failed_starts)

    def _crashed(self, actor: Actor, reason: str, now_ms: int) -> None:
        worst = 0
        for place in actor.in_hand:
            self.crashes[place] = self.crashes.get(place, 0) + 1
            worst = max(worst, self.crashes[place])
        if worst > 1:  # once is chance
            self.start_after_ms = now_ms + _backoff(worst - 1)
        if worst >= CRASHES_MAX and not self.limits.forgives_crashes and not self.stopping:
            topic, partition, offset = next(
                place for place in actor.in_hand if self.crashes[place] == worst
            )
            self.error = ConsumerActorError(
                f"{worst} processes died while their handler had the batch from offset {offset} "
                f"of {topic}-{partition} on in hand, the last one because {reason}; it is not "
                "committed: mend the handler, or go behind the batch with reset_offsets()"
            )

    # --- time ----------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> list[Effect]:
        """Start what is due; end who is silent, or does not leave."""
        effects: list[Effect] = []
        for actor in self.actors.values():
            if actor.killed:
                continue
            if actor.phase == Phase.LEAVING and now_ms - actor.since_ms >= self.limits.stop_ms:
                effects.append(_kill(actor, "it did not end what it had in hand in time"))
            elif actor.phase == Phase.RUNNING and now_ms - actor.heard_ms >= self.limits.silence_ms:
                effects.append(_kill(actor, f"it was silent for {self.limits.silence_ms} ms"))
        return effects + self._fill(now_ms)

    def next_due_ms(self, now_ms: int) -> int:
        """When `tick` has something to do, as far as can be told."""
        due = [now_ms + BACKOFF_MAX_MS]
        if self._missing() > 0:
            due.append(max(now_ms, self.start_after_ms))
        for actor in self.actors.values():
            if actor.phase == Phase.LEAVING:
                due.append(actor.since_ms + self.limits.stop_ms)
            elif actor.phase == Phase.RUNNING:
                due.append(actor.heard_ms + self.limits.silence_ms)
        return min(due)

    # --- within --------------------------------------------------------------------------------

    def _staying(self) -> list[Actor]:
        return [one for one in self.actors.values() if one.phase != Phase.LEAVING]

    def _missing(self) -> int:
        return 0 if self.stopping else self.wanted - len(self._staying())

    def _fill(self, now_ms: int) -> list[Effect]:
        if now_ms < self.start_after_ms:
            return []
        effects: list[Effect] = []
        for _ in range(self._missing()):
            self.drawn += 1
            self.actors[self.drawn] = Actor(self.drawn, Phase.STARTING, now_ms, now_ms)
            effects.append(Start(self.drawn))
        return effects

    def _let_go(self, actor: Actor, now_ms: int) -> list[Effect]:
        if actor.phase == Phase.STARTING:
            # It has nothing in hand; and one that Ray cannot place would never hear of it.
            del self.actors[actor.number]
            return [Kill(actor.number)]
        actor.phase, actor.since_ms = Phase.LEAVING, now_ms
        return [Stop(actor.number)]


def _to_leave_first(actor: Actor) -> tuple[bool, bool, int]:
    return actor.phase != Phase.STARTING, actor.partitions > 0, -actor.number


def _kill(actor: Actor, reason: str) -> Kill:
    actor.killed = reason
    return Kill(actor.number, reason)


def _backoff(times: int) -> int:
    return min(BACKOFF_MAX_MS, BACKOFF_MS << min(times - 1, 20))
