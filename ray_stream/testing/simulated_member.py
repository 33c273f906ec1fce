"""A simulated member of a group: the real membership and consumer cores, and a handler that notes.

Owns: doing for the cores what the two threads of a consumer do: polls, handling, commits, and what
is read. Refuses: deciding what happens to it (`testing.simulated_groups`), judging it.

Of two kinds: one commits what it handled before it polls again, and knows then; the other commits
in the background, now and then.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray_stream.client.consumer_core import ConsumerCore
from ray_stream.client.consumer_events import KEEP, Assign
from ray_stream.client.consumer_events import Answered as ConsumerAnswered
from ray_stream.client.consumer_events import Send as ConsumerSend
from ray_stream.client.consumer_events import Tick as ConsumerTick
from ray_stream.client.membership import NOTHING_TOLD
from ray_stream.client.membership_core import MembershipCore
from ray_stream.client.membership_events import (
    Answered,
    Applied,
    CommitAsked,
    Effect,
    Event,
    Finished,
    Identity,
    Leave,
    Publish,
    Send,
    Subscribe,
    Tick,
)
from ray_stream.client.topics import TopicDirectory
from ray_stream.config import ConsumerConfig
from ray_stream.errors import RayStreamError
from ray_stream.groups.commands import (
    CommittedOffset,
    ConsumerGroupHeartbeat,
    OffsetCommit,
    OffsetFetch,
    PartitionKey,
    Subscription,
)
from ray_stream.metadata.commands import CreateTopic
from ray_stream.records.reader import decode_columns, offsets
from ray_stream.rpc.messages import FetchRequest, ListOffsetsRequest, MetadataRequest
from ray_stream.testing import history
from ray_stream.testing.handled import Handled
from ray_stream.testing.network import Network
from ray_stream.testing.scheduler import Event as Timer
from ray_stream.testing.scheduler import Process, Scheduler
from ray_stream.testing.simulated_clients import Write, place_of
from ray_stream.types import TopicPartition

PATIENCE_MS = 600_000
COMMIT_MS = 4_000
BATCHES_MAX = 4
AUTO_COMMIT_MS = 250
HANDLE_MS_MAX = 60
HANG_CHANCE = 0.01
_JOIN, _LEAVE, _COMMIT = 1, 2, 3
_METHODS: Mapping[type, str] = {
    ConsumerGroupHeartbeat: "heartbeat",
    OffsetCommit: "commit_offsets",
    OffsetFetch: "fetch_offsets",
    ListOffsetsRequest: "list_offsets",
    MetadataRequest: "metadata",
    CreateTopic: "create_topic",
    FetchRequest: "fetch",
}


@dataclass(frozen=True, slots=True)
class Role:
    """What a member is to be."""

    group: str
    topics: tuple[str, ...]
    instance_id: str = ""
    client_id: str = ""
    node: str = "clients"
    commits_itself: bool = True
    session_timeout_ms: int = 2_000
    max_poll_interval_ms: int = 3_000


class SimulatedMember:
    """One consumer of a group, from its start to its end."""

    def __init__(
        self,
        name: str,
        role: Role,
        scheduler: Scheduler,
        network: Network,
        rng: random.Random,
        write: Write,
        owns: Callable[[str, str, PartitionKey], bool],
        handled: Callable[[Handled], None],
    ) -> None:
        """Make one that has not joined yet.

        Args:
            name: its member id.
            role: what it is to be.
            scheduler: its time.
            network: its way to everybody.
            rng: draws how long it handles.
            write: takes each line of the history.
            owns: whether a group's member owns a partition, durably.
            handled: takes each run that was handled by its owner. A member that was put out and
                has not heard of it may handle what others do as well: nobody can keep it from
                that, and it proves nothing.
        """
        self.name = name
        self.role = role
        self.process = Process(name, role.node)
        self.errors: list[RayStreamError] = []
        """What was raised to the user and should not have been."""
        self.has_left = False
        self._closing = self._closed = False
        self.hangs = True
        """Whether its handler may take too long."""
        self._scheduler = scheduler
        self._network = network
        self._rng = rng
        self._write = write
        self._owns = owns
        self._handled = handled
        self._config = ConsumerConfig(
            group=role.group,
            auto_offset_reset="earliest",
            request_timeout_ms=2_000,
            fetch_max_bytes=4_096,
            session_timeout_ms=role.session_timeout_ms,
            max_poll_interval_ms=role.max_poll_interval_ms,
        )
        directory = TopicDirectory()
        identity = Identity(role.group, name, role.instance_id)
        topic_id = f"{rng.getrandbits(128):032x}"
        self._membership = MembershipCore(identity, self._config, directory, topic_id)
        self._consumer = ConsumerCore(self._config, directory)
        self._beat: tuple[str, ConsumerGroupHeartbeat] | None = None
        """The last one, and where it was sent,"""
        self._commit: tuple[str, OffsetCommit] | None = None
        """and the same of commits."""
        self._told = NOTHING_TOLD
        self._applied = NOTHING_TOLD
        self._idle_since_ms: int | None = None
        self._busy = False
        """Handling, or waiting for a commit."""
        self._life = 0
        self._calls = 0
        self._member_timer: Timer | None = None
        self._consumer_timer: Timer | None = None

    # --- from outside ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Join."""
        role = self.role
        subscription = Subscription(
            names=list(role.topics),
            session_timeout_ms=role.session_timeout_ms,
            rebalance_timeout_ms=role.max_poll_interval_ms,
            node_id=role.node,
            client_id=role.client_id,
        )
        give_up_ms = self._scheduler.now_ms + PATIENCE_MS
        self._member(Subscribe(_JOIN, subscription, give_up_ms))
        if not role.commits_itself:
            self._scheduler.after(AUTO_COMMIT_MS, self._auto_commit, self.process)

    def leave(self) -> None:
        """Close the consumer, once the handler is back: what was handled is committed first."""
        self._closing = True
        if not self._busy:
            self._close()

    def _close(self) -> None:
        self._commit_soon(self._positions(self._applied.partitions))
        self._closed = True
        give_up_ms = self._scheduler.now_ms + COMMIT_MS
        self._member(Leave(_LEAVE, give_up_ms))

    def intrude(self, keys: Iterable[PartitionKey]) -> None:
        """Commit what others have, as a member that was wrong about itself for a while would."""
        host, beat = self._beat or ("", None)
        epoch = 0 if beat is None else beat.member_epoch - 1
        if epoch < 1:
            return
        offsets = [CommittedOffset(*key, 0) for key in keys]
        request = OffsetCommit(self.role.group, self.name, epoch, offsets, self.role.instance_id)
        self._network.call(self.process, host, "commit_offsets", request, lambda _: None)

    def echo(self, delay_ms: int) -> None:
        """Have a copy of the last commit arrive late, or at a coordinator that is gone."""
        if self._commit is not None:
            host, request = self._commit
            copy = partial(
                self._network.call, self.process, host, "commit_offsets", request, lambda _: None
            )
            self._scheduler.after(delay_ms, copy, self.process)

    def reads(self, key: PartitionKey) -> bool:
        """Whether it may be reading or handling that partition."""
        return not self._closed and any(
            begin.topic_id == key[0] and name.partition == key[1]
            for name, begin in self._applied.partitions.items()
        )

    def owned(self) -> list[TopicPartition]:
        """What it reads, if it is at peace with its group."""
        return sorted(self._applied.partitions) if self._applied == self._told else []

    # --- membership ------------------------------------------------------------------------------

    def _member(self, event: Event) -> None:
        for effect in self._membership.step(event, self._scheduler.now_ms):
            self._perform(effect)
        if self._member_timer is not None:
            self._member_timer.cancel()
        now_ms = self._scheduler.now_ms
        due_ms = self._membership.next_deadline_ms(now_ms, self._idle_since_ms)
        if due_ms is not None and not self.has_left:
            wait_ms = max(1, due_ms - now_ms)
            self._member_timer = self._scheduler.after(
                wait_ms, lambda: self._member(Tick(self._idle_since_ms)), self.process
            )

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(request_id, host, request):
                if isinstance(request, ConsumerGroupHeartbeat):
                    self._beat = (host, request)
                elif isinstance(request, OffsetCommit):
                    self._commit = (host, request)
                self._network.call(
                    self.process,
                    host or "controller",
                    _METHODS[type(request)],
                    request,
                    lambda answer: self._member(Answered(request_id, answer)),
                )
            case Publish(told):
                self._told = told
                self._soon(self._poll)
            case Finished(number, result):
                self._finished(number, result)

    def _finished(self, number: int | None, result: object) -> None:
        if number == _LEAVE:
            self.has_left = True
            self.process.alive = False
        elif number == _COMMIT:
            if result:
                # Refused, or nobody knows: what comes next must not be taken for proof of it.
                self._life += 1
            self._soon(self._done)

    def _done(self) -> None:
        """The commit has ended, and the next poll begins."""
        self._busy = False
        if self._closing:
            self._close()
        else:
            self._poll()

    # --- the consumer's thread -------------------------------------------------------------------

    def _poll(self) -> None:
        if self._busy or self._closing:
            return
        self._idle_since_ms = None
        self._member(Tick(None))
        self._apply()
        runs = self._take()
        if runs:
            self._busy = True
            self._idle_since_ms = self._scheduler.now_ms
            self._member(Tick(self._idle_since_ms))
            self._calls += 1
            notes = [self._note(*run) for run in runs if self._is_owner(run[0])]
            ends = {name: end for name, _, end, _ in runs}
            self._scheduler.after(self._handling_ms(), lambda: self._end(notes, ends), self.process)

    def _handling_ms(self) -> int:
        if self.hangs and self._rng.random() < HANG_CHANCE:
            return self._rng.randint(1, 2 * self.role.max_poll_interval_ms)
        return self._rng.randint(0, HANDLE_MS_MAX)

    def _apply(self) -> None:
        """Do as the group says: let go first, then take up."""
        told, before = self._told, self._applied
        if told is before:
            return
        if told.failed is not None:
            self.errors.append(told.failed)
        same_life = told.incarnation == before.incarnation
        kept = [name for name in told.partitions if same_life and name in before.partitions]
        if same_life:
            self._commit_soon(
                self._positions(name for name in before.partitions if name not in told.partitions)
            )
        else:
            self._life += 1
        self._applied = told
        starts = {name: begin.start for name, begin in told.partitions.items()}
        for name, start in starts.items():
            if name not in kept:
                place = place_of(name)
                self._write(history.Position(self.name, place, max(start, history.NOWHERE)))
        starts |= dict.fromkeys(kept, KEEP)
        self._read(Assign(starts))
        owned = tuple((begin.topic_id, name.partition) for name, begin in told.partitions.items())
        self._member(Applied(told.version, owned))

    def _read(self, event: Any) -> None:
        for effect in self._consumer.step(event, self._scheduler.now_ms):
            if isinstance(effect, ConsumerSend):
                self._send(effect)
        if self._consumer.ready() is not None:
            self._soon(self._poll)
        if self._consumer_timer is not None:
            self._consumer_timer.cancel()
        wake_ms = self._consumer.wake_ms(self._scheduler.now_ms)
        if wake_ms is not None and not self.has_left:
            wait_ms = max(1, wake_ms - self._scheduler.now_ms)
            self._consumer_timer = self._scheduler.after(
                wait_ms, lambda: self._read(ConsumerTick()), self.process
            )

    def _send(self, effect: ConsumerSend) -> None:
        self._network.call(
            self.process,
            effect.host or "controller",
            _METHODS[type(effect.request)],
            effect.request,
            lambda answer: self._read(ConsumerAnswered(effect.request_id, answer)),
        )

    def _take(self) -> list[tuple[TopicPartition, int, int, int]]:
        """Some batches that are ready: where each began and ended, and its records."""
        taken = []
        for _ in range(self._rng.randint(1, BATCHES_MAX)):
            state = self._consumer.ready()
            if state is None:
                break
            if not state.buffer:
                self.errors.append(self._consumer.take_error(state))
                continue
            stored = state.buffer[0]
            columns = decode_columns(stored.header, stored.payload)
            numbers = offsets(stored.header, columns).to_pylist()
            values = columns.column("value").to_pylist()
            first = state.position
            records = [
                (offset, value.decode())
                for offset, value in zip(numbers, values, strict=True)
                if offset >= first
            ]
            if records:
                self._write(history.Read(self.name, place_of(state.name), records))
            self._consumer.advance(state, stored.end)
            taken.append((state.name, first, stored.end, len(records)))
        if taken:
            self._soon(lambda: self._read(ConsumerTick()))
        return taken

    def _is_owner(self, name: TopicPartition) -> bool:
        key = (self._applied.partitions[name].topic_id, name.partition)
        return self._owns(self.role.group, self.name, key)

    def _note(self, name: TopicPartition, first: int, end: int, records: int) -> Handled:
        call = self._calls if self.role.commits_itself else 0
        now_s = self._scheduler.now_ms / 1000
        return Handled(
            f"{self.name}.{self._life}", call, name.partition, first, end, records, now_s
        )

    def _end(self, notes: list[Handled], ends: dict[TopicPartition, int]) -> None:
        """The handler returns: note it, then commit."""
        for note in notes:
            self._handled(note)
        if not self.role.commits_itself or self._applied.incarnation != self._told.incarnation:
            self._done()
            return
        give_up_ms = self._scheduler.now_ms + COMMIT_MS
        self._member(CommitAsked(_COMMIT, self._keyed(ends), give_up_ms))

    # --- commits ---------------------------------------------------------------------------------

    def _auto_commit(self) -> None:
        """What was handled until the last poll began."""
        if not self._closing:
            if not self._busy:
                self._commit_soon(self._positions(self._applied.partitions))
            self._scheduler.after(AUTO_COMMIT_MS, self._auto_commit, self.process)

    def _commit_soon(self, positions: Mapping[TopicPartition, int]) -> None:
        if positions and self._applied.incarnation == self._told.incarnation:
            give_up_ms = self._scheduler.now_ms + COMMIT_MS
            self._member(CommitAsked(None, self._keyed(positions), give_up_ms))

    def _positions(self, names: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        states = self._consumer.states
        return {
            name: states[name].position
            for name in names
            if name in states and states[name].position >= 0
        }

    def _keyed(self, positions: Mapping[TopicPartition, int]) -> dict[PartitionKey, int]:
        told = self._applied.partitions
        return {
            (told[name].topic_id, name.partition): position for name, position in positions.items()
        }

    def _soon(self, call: Callable[[], None]) -> None:
        self._scheduler.after(0, call, self.process)
