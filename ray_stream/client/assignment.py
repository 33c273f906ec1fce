"""The partitions of a consumer, sorted by what each of them waits for.

Owns: which are assigned, whose turn it is to be handed out, which want a request. Refuses: making
requests, and judging answers (`consumer_core`).
"""

from collections.abc import Iterable

from ray_stream.client.consumer_events import (
    KEEP,
    NOWHERE,
    Assign,
    Reassigned,
    Subscription,
)
from ray_stream.client.positions import Budget, PartitionState
from ray_stream.client.topics import TopicDirectory
from ray_stream.config import MiB
from ray_stream.errors import InvalidArgumentError, RayStreamError
from ray_stream.rpc.messages import EARLIEST, LATEST
from ray_stream.types import NO_OFFSET, TopicPartition

_PREFETCH_MIN_BYTES = 64 * 1024
_PIECE_BYTES = MiB
"""Read from a file at once: it fits in the processor's cache, with what becomes of it."""


class Assignment:
    """Every partition's state, and two queues of them."""

    def __init__(self, directory: TopicDirectory, fetch_max_bytes: int) -> None:
        """Args: directory: what is known of topics; fetch_max_bytes: what may be buffered."""
        self._directory = directory
        self._fetch_max_bytes = fetch_max_bytes
        self.budget = Budget()
        self.states: dict[TopicPartition, PartitionState] = {}
        self.idle: dict[TopicPartition, PartitionState] = {}
        """Those that want a request and have none, longest first."""
        self.deliverable: dict[TopicPartition, PartitionState] = {}
        """Those with a batch to hand out, or one to read, or an error to raise, longest first."""
        self.subscription: Subscription | None = None
        self.is_given = False
        """By a group, which takes away what is gone."""
        self._bounded = False

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left before the ends, paused partitions aside."""
        return self._bounded and all(one.is_done or one.paused for one in self.states.values())

    # --- what is assigned ------------------------------------------------------------------------

    def replace(self, event: Assign) -> None:
        """Read these partitions and no others."""
        for name in [one for one in self.states if one not in event.starts]:
            self._remove(name)
        self.subscription = event.subscription
        self.is_given = event.topic_ids is not None
        self._bounded = event.ends is not None
        for name, start in event.starts.items():
            state = self.states.get(name)
            topic_id = (event.topic_ids or {}).get(name.topic) or self._topic_id(name.topic)
            if state is None or (state.topic_id and state.topic_id != topic_id):
                self._remove(name)
                state = self._add(name, EARLIEST if start == KEEP else start, topic_id)
            elif start != KEEP:
                self.start(state, start)
            end = None if event.ends is None else event.ends[name]
            if state.end != end:
                state.end = end
                state.rewind()
                self.settle(state)

    def follow(self) -> Reassigned | None:
        """Take in a subscription's new partitions; let go of what a pattern matched and is gone."""
        subscription = self.subscription
        if subscription is None or self._bounded:
            return None
        removed = [
            name
            for name, state in self.states.items()
            if name.topic not in subscription.names and self._topic_id(name.topic) != state.topic_id
        ]
        for name in removed:
            self._remove(name)
        added = []
        for topic in self._directory.names():
            known = self._directory.topic(topic) if subscription.covers(topic) else None
            for one in known.partitions if known is not None else ():
                name = TopicPartition(topic, one.partition)
                if name not in self.states:
                    self._add(name, EARLIEST, self._topic_id(topic))
                    added.append(name)
        return Reassigned(tuple(added), tuple(removed)) if added or removed else None

    def _add(self, name: TopicPartition, start: int, topic_id: str) -> PartitionState:
        state = PartitionState(name, topic_id, self.budget)
        self.states[name] = state
        self.start(state, start)
        return state

    def _remove(self, name: TopicPartition) -> None:
        state = self.states.pop(name, None)
        if state is not None:
            state.rewind()
            self.idle.pop(name, None)
            self.deliverable.pop(name, None)

    def _topic_id(self, topic: str) -> str:
        known = self._directory.topic(topic)
        return known.topic_id if known is not None else ""

    def hosts(self) -> int:
        """How many partition actors serve what is assigned."""
        addresses = (self._directory.address(*name) for name in self.states)
        return len({one.host for one in addresses if one is not None})

    # --- changes of one partition ----------------------------------------------------------------

    def start(self, state: PartitionState, start: int) -> None:
        """Go on from an offset, or from what a look-up of `EARLIEST` or `LATEST` will give."""
        if start in (EARLIEST, LATEST):
            state.jump(NO_OFFSET, reset=start)
        elif start == NOWHERE:
            state.jump(NO_OFFSET)
            state.error = _nowhere(state.name)
        else:
            state.jump(start)
        self.settle(state)

    def pause(self, partitions: Iterable[TopicPartition], *, paused: bool) -> None:
        """Deliver nothing of these, or again."""
        for name in partitions:
            self.states[name].paused = paused
            self.settle(self.states[name])

    def fail(self, state: PartitionState, error: RayStreamError) -> None:
        """Have the error raised once what is buffered was handed out."""
        state.error = error
        state.request_id = None
        self.settle(state)

    def advance(self, state: PartitionState, position: int) -> None:
        """Everything below `position` was handed out: the next one's turn."""
        state.advance(position)
        self.pass_turn(state)

    def pass_turn(self, state: PartitionState) -> None:
        """The next one's turn, though nothing was handed out."""
        self.deliverable.pop(state.name, None)
        self.settle(state)

    def take_error(self, state: PartitionState) -> RayStreamError:
        """The error to raise now; then it is forgotten, and its cause tried again."""
        error = state.error
        assert error is not None, "a partition is deliverable with a batch or an error"
        if not state.is_nowhere:
            state.error = None
        self.pass_turn(state)
        return error

    def settle(self, state: PartitionState) -> None:
        """Put the partition where it belongs after a change."""
        name = state.name
        if self._wants(state):
            self.idle.setdefault(name, state)
        else:
            self.idle.pop(name, None)
        if not state.paused and state.has_something:
            self.deliverable.setdefault(name, state)
        else:
            self.deliverable.pop(name, None)

    def _wants(self, state: PartitionState) -> bool:
        if state.request_id is not None or state.error is not None or state.grant is not None:
            return False
        if state.reset is not None:
            return True
        return not state.paused and state.has_more and state.buffered_bytes < self._prefetch_bytes

    @property
    def piece_bytes(self) -> int:
        """How much to read of what was granted; one batch is always read."""
        room = self._fetch_max_bytes - self.budget.used
        return min(_PIECE_BYTES, self._prefetch_bytes, room)

    @property
    def _prefetch_bytes(self) -> int:
        """A partition with more than this is not fetched."""
        share = self._fetch_max_bytes // (2 * max(1, len(self.states)))
        return max(share, _PREFETCH_MIN_BYTES)

    def drop_paused(self) -> None:
        """Give up what paused partitions have buffered."""
        for state in self.states.values():
            if state.paused and state.buffer:
                state.rewind()
                self.settle(state)

    def restart(self) -> None:
        """Drop everything but assignment and positions."""
        self.idle.clear()
        self.deliverable.clear()
        for state in self.states.values():
            state.rewind()
            self.settle(state)
        self.budget.used = 0


def _nowhere(name: TopicPartition) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{name.topic}-{name.partition} has no position, and auto_offset_reset is 'error': seek "
        "first, or choose 'earliest' or 'latest'"
    )
