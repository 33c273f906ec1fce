"""Time that passes only when told, and the one queue of everything that will happen.

Owns: virtual time, the order of events, which process an event belongs to. Refuses: threads, real
time, and randomness of its own: the order of events that are due together comes from the seed.

A killed process has no events any more. A paused one keeps them and lives through all of them when
it goes on: to others it was silent, to itself no time passed.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

EPOCH_MS = 1_750_000_000_000
"""What the wall clock shows when virtual time begins."""


class Process:
    """Something that can die or stop as a whole."""

    def __init__(self, name: str, node: str) -> None:
        """Args: name: for the trace; node: the machine it runs on."""
        self.name = name
        self.node = node
        self.alive = True
        self.paused = False

    def __repr__(self) -> str:
        return f"Process({self.name!r}, {self.node!r})"


@dataclass(slots=True)
class Event:
    """One call that will be made, unless it is cancelled or its process dies."""

    at_ms: int
    call: Callable[[], None]
    owner: Process | None
    cancelled: bool = False

    def cancel(self) -> None:
        """It will not happen; after it happened, nothing."""
        self.cancelled = True


_Entry = tuple[int, float, int, Event]
"""When, a drawn number, a counted one: no two are equal, so events are never compared."""


class VirtualClock:
    """`Clock` over a scheduler. Each machine may have its own, off by `skew_ms`."""

    def __init__(self, scheduler: "Scheduler", skew_ms: int = 0) -> None:
        """Args: skew_ms: added to the wall clock; monotonic time is not touched by it."""
        self._scheduler = scheduler
        self.skew_ms = skew_ms

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return EPOCH_MS + self._scheduler.now_ms + self.skew_ms

    def monotonic_ms(self) -> int:
        """Virtual milliseconds since the run began."""
        return self._scheduler.now_ms


class Scheduler:
    """The queue."""

    def __init__(self, rng: random.Random) -> None:
        """Args: rng: orders what is due at the same millisecond."""
        self._rng = rng
        self._queue: list[_Entry] = []
        self._held: list[_Entry] = []
        self._numbered = 0
        self.now_ms = 0
        self.acted: Process | None = None
        """Whose event the last one was; None: nobody's."""

    def after(self, delay_ms: int, call: Callable[[], None], owner: Process | None = None) -> Event:
        """Have `call` made in `delay_ms`.

        Args:
            delay_ms: 0 or more; with 0 it is still a later event.
            call: what to do.
            owner: whose event it is; None: nobody's, it happens in any case.
        """
        assert delay_ms >= 0, "time does not go back"
        self._numbered += 1
        event = Event(self.now_ms + delay_ms, call, owner)
        heapq.heappush(self._queue, (event.at_ms, self._rng.random(), self._numbered, event))
        return event

    def step(self) -> bool:
        """Let the next event happen; False when there is none."""
        while self._queue:
            entry = heapq.heappop(self._queue)
            event = entry[-1]
            if event.cancelled or (event.owner is not None and not event.owner.alive):
                continue
            if event.owner is not None and event.owner.paused:
                self._held.append(entry)
                continue
            self.now_ms = max(self.now_ms, event.at_ms)
            self.acted = event.owner
            event.call()
            return True
        return False

    def next_ms(self) -> int | None:
        """When the next event is due; None: there is none."""
        return self._queue[0][0] if self._queue else None

    def run_until(self, end_ms: int, after_each: Callable[[], None]) -> None:
        """Let everything happen that is due up to `end_ms`; then it is `end_ms`.

        Args:
            end_ms: virtual time.
            after_each: called behind every event.
        """
        while (due_ms := self.next_ms()) is not None and due_ms <= end_ms:
            if self.step():
                after_each()
        self.now_ms = max(self.now_ms, end_ms)

    def resume(self, process: Process) -> None:
        """Let a paused process go on, with all that came in the meantime."""
        process.paused = False
        held, self._held = self._held, []
        for entry in held:
            if entry[-1].owner is process:
                heapq.heappush(self._queue, entry)
            else:
                self._held.append(entry)
