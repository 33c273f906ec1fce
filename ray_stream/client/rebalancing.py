"""A consumer's own part in its group: what it was told is done here, in its thread, when it reads.

Owns: callbacks, releasing and taking partitions, what is committed by itself and when. Refuses:
the protocol (`membership_core`, in the member's thread), fetching.

Partitions that stay are not touched: they are fetched and handed out while others come and go.
What is taken away is committed behind everything that was committed before, without waiting; the
group hears that it was released when that commit is stored.
"""

import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType

from ray_stream.client.calls import Deadline
from ray_stream.client.consumer_core import ConsumerCore
from ray_stream.client.consumer_events import KEEP, Assign, Subscription
from ray_stream.client.driving import Driver
from ray_stream.client.handout import HandOut
from ray_stream.client.membership import NOTHING_TOLD, Membership, Told, anew, refuse
from ray_stream.clock import Clock
from ray_stream.config import ConsumerConfig
from ray_stream.errors import InvalidArgumentError, RayStreamError
from ray_stream.groups.commands import PartitionKey, RefusedPartition
from ray_stream.rpc.messages import ErrorInfo
from ray_stream.types import TopicPartition

_RUN_MS = 500
"""A loop is interrupted about so often, for commits and for what the group says."""
_RUN_RECORDS = 4
"""As many to begin with, until it is known how long they take."""


class Rebalancing:
    """What a group means to one consumer. A context around every call that reads."""

    def __init__(
        self,
        config: ConsumerConfig,
        clock: Clock,
        core: ConsumerCore,
        driver: Driver,
        hand_out: HandOut,
        membership: Membership,
    ) -> None:
        """Args: membership: the place in the group, or `NoGroup`."""
        self._config = config
        self._clock = clock
        self._core = core
        self._driver = driver
        self._hand_out = hand_out
        self._membership = membership
        self._applied = membership.told
        self._applying = False
        self._commits = membership.in_group and config.enable_auto_commit
        self._commit_at_ms = clock.monotonic_ms() + config.auto_commit_interval_ms
        self._idle_since_ms = 0
        self._run_records = _RUN_RECORDS
        self.is_member = False
        """The group says what is read, and not the user."""
        driver.turn = self.turn
        if membership.in_group:
            membership.watch(*_weak(driver, hand_out))

    @property
    def in_group(self) -> bool:
        """Whether there is a group at all."""
        return self._membership.in_group

    def __enter__(self) -> None:
        if self._membership.in_group:
            self._hand_out.come_back()
            self._pace(self._clock.monotonic_ms() - self._idle_since_ms)
            self._membership.polls(None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._membership.in_group:
            self._idle_since_ms = self._clock.monotonic_ms()
            self._membership.polls(self._idle_since_ms)

    def run_records(self) -> int:
        """How many records a loop gets before this is asked again."""
        most = self._config.max_poll_records
        return min(self._run_records, most) if self._membership.in_group else most

    def _pace(self, handled_ms: int) -> None:
        if handled_ms > _RUN_MS:
            self._run_records = max(1, self._run_records * _RUN_MS // handled_ms)
        elif 2 * handled_ms < _RUN_MS:
            self._run_records = min(2 * self._run_records, self._config.max_poll_records)

    # --- what is read ----------------------------------------------------------------------------

    def subscribe(self, subscription: Subscription, deadline: Deadline) -> None:
        """Join the group, or want something else of it.

        Raises:
            TimeoutExpiredError: the group did not answer by the deadline.
            RayStreamError: it refused.
        """
        regex = regex_of(subscription.patterns)
        self._hand_out.come_back()
        if not self.is_member:
            self._commit_positions(list(self._core.states))
            self._driver.step(Assign({}))
            self._applied = replace(NOTHING_TOLD, incarnation=self._membership.told.incarnation)
        self.is_member = True
        self._idle_since_ms = self._clock.monotonic_ms()
        self._commit_at_ms = self._idle_since_ms + self._config.auto_commit_interval_ms
        self._membership.subscribe(list(subscription.names), regex, deadline)

    def unsubscribe(self, deadline: Deadline) -> None:
        """Leave the group, as `close` does; the user says what is read from now on."""
        if not self.is_member:
            return
        self._hand_out.come_back()
        try:
            self._give_back()
        finally:
            self.is_member = False
            self._driver.step(Assign({}))
            self._membership.unsubscribe(deadline)

    def close(self, deadline: Deadline, *, with_record_in_hand: bool) -> None:
        """Commit, tell the callback, leave.

        Args:
            deadline: when not to wait any more for the group to hear of it.
            with_record_in_hand: whether the caller is done with what it got last.
        """
        in_hand = [] if with_record_in_hand else self._hand_out.in_hand()
        self._hand_out.come_back()
        before: dict[TopicPartition, int | None] = {}
        for one in in_hand:
            known = one.is_news and one.generation == one.state.generation
            before.setdefault(one.state.name, one.position if known else None)
        try:
            self._give_back(before)
        finally:
            self._membership.close(deadline)

    def _give_back(self, before: Mapping[TopicPartition, int | None] | None = None) -> None:
        """Everything, unless it is others' already."""
        names = list(self._core.states)
        is_ours = self._membership.told.incarnation == self._applied.incarnation
        if not self.is_member or is_ours:
            self._commit_positions(names, before)
        if self.is_member and names and self._config.on_revoked is not None:
            self._config.on_revoked(sorted(names))

    def start_of(
        self,
        partitions: Sequence[TopicPartition],
        topic_id: Callable[[str], str],
        deadline: Deadline,
    ) -> dict[TopicPartition, int]:
        """Committed offsets of partitions that the user chose; without those that have none."""
        if not self._membership.in_group or not partitions:
            return {}
        found = self.committed(partitions, topic_id, deadline)
        return {name: offset for name, offset in found.items() if offset is not None}

    # --- when nothing is in hand -----------------------------------------------------------------

    def turn(self) -> None:
        """Do as the group says, and commit what is due. The caller is done with all it got.

        Raises:
            RayStreamError: there is no place in the group any more.
        """
        if not self._membership.in_group:
            return
        if self.is_member:
            told = self._membership.told
            if told is not self._applied and not self._applying:
                self._apply(told)
            if told.failed is not None:
                raise anew(told.failed)
        if self._commits and self._clock.monotonic_ms() >= self._commit_at_ms:
            self._commit_positions(list(self._core.states))

    def _apply(self, told: Told) -> None:
        is_lost = told.incarnation != self._applied.incarnation
        if self._config.until is not None and not (told.complete or is_lost or told.failed):
            return  # the ends of a bounded read are taken all at once
        self._applying = True
        try:
            if is_lost:
                self._let_go(list(self._core.states), told, commits=False)
            self._let_go(self._gone(told), told, commits=self._commits)
            self._take(told)
        finally:
            self._applying = False

    def _gone(self, told: Told) -> list[TopicPartition]:
        states = self._core.states
        return [
            name
            for name, state in states.items()
            if name not in told.partitions or told.partitions[name].topic_id != state.topic_id
        ]

    def _let_go(self, names: list[TopicPartition], told: Told, *, commits: bool) -> None:
        if not names:
            return
        try:
            if commits:
                self._commit_positions(names)
            if self._config.on_revoked is not None:
                self._config.on_revoked(sorted(names))
        finally:
            # Whatever the callback did: others wait for them.
            gone = dict.fromkeys(names)
            self._assign([name for name in self._core.states if name not in gone], told)

    def _take(self, told: Told) -> None:
        added = [name for name in told.partitions if name not in self._core.states]
        self._assign(list(told.partitions), told)
        for name in added:
            self._core.states[name].moved = told.partitions[name].fixed_here
        self._applied = told
        self._membership.applied(told, self._owned())
        if added and self._config.on_assigned is not None:
            self._config.on_assigned(sorted(added))

    def _assign(self, names: list[TopicPartition], told: Told) -> None:
        """Read these and nothing else; those that are read already go on untouched."""
        begins = told.partitions
        starts = {name: KEEP if name in self._core.states else begins[name].start for name in names}
        ids = {name.topic: begins[name].topic_id for name in names if name in begins}
        ends: dict[TopicPartition, int] | None = None
        if self._config.until is not None and told.complete:
            ends = {name: self._end_of(name, told) for name in names}
        self._driver.step(Assign(starts, ends, topic_ids=ids))

    def _end_of(self, name: TopicPartition, told: Told) -> int:
        state = self._core.states.get(name)
        end = told.partitions[name].end if state is None else state.end
        assert end is not None, "a bounded read has an end everywhere"
        return end

    def _owned(self) -> list[PartitionKey]:
        return [(state.topic_id, name.partition) for name, state in self._core.states.items()]

    # --- commits ---------------------------------------------------------------------------------

    def _commit_positions(
        self,
        names: Iterable[TopicPartition],
        before: Mapping[TopicPartition, int | None] | None = None,
    ) -> None:
        """Have positions stored in the background.

        Args:
            names: of which partitions.
            before: other positions for some; None: leave it out.
        """
        if not self._commits:
            return
        self._commit_at_ms = self._clock.monotonic_ms() + self._config.auto_commit_interval_ms
        offsets: dict[PartitionKey, int] = {}
        for name in names:
            state = self._core.states[name]
            position: int | None = state.position if state.moved else None
            if before is not None and name in before:
                position = before[name]
            if position is not None and position >= 0 and state.topic_id:
                offsets[state.topic_id, name.partition] = position
        if offsets:
            self._membership.commit_soon(offsets)

    def commit(self, offsets: Mapping[TopicPartition, int], deadline: Deadline) -> None:
        """Store these positions, of assigned partitions.

        Raises:
            InvalidArgumentError: there is no group.
            RayStreamError: some were refused; the message names them.
        """
        if not self._membership.in_group:
            refuse("commit")
        told = self._membership.told
        if self.is_member:
            if told.failed is not None:
                raise anew(told.failed)
            if told.lost is not None and told.incarnation != self._applied.incarnation:
                raise anew(told.lost)
        states = self._core.states
        keys = {(states[name].topic_id, name.partition): name for name in offsets}
        if not keys:
            return
        refused = self._membership.commit(
            {key: offsets[name] for key, name in keys.items()}, deadline
        )
        if refused:
            raise _refusal(refused, keys)

    def committed(
        self,
        partitions: Sequence[TopicPartition],
        topic_id: Callable[[str], str],
        deadline: Deadline,
    ) -> dict[TopicPartition, int | None]:
        """What the group has stored; None where nothing is.

        Args:
            partitions: of any topic.
            topic_id: looks up a topic.
            deadline: when to give up.

        Raises:
            InvalidArgumentError: there is no group.
        """
        if not self._membership.in_group:
            refuse("committed")
        keys = {(topic_id(one.topic), one.partition): one for one in partitions}
        found = self._membership.committed(list(keys), deadline)
        return {name: found.get(key) for key, name in keys.items()}


def _weak(driver: Driver, hand_out: HandOut) -> tuple[Callable[[], None], Callable[[], object]]:
    """What a member's thread may call, without keeping a consumer that nobody has any more."""
    drivers, hand_outs = weakref.ref(driver), weakref.ref(hand_out)

    def wake() -> None:
        one = drivers()
        if one is not None:
            one.wake()

    def progress() -> object:
        one = hand_outs()
        return None if one is None else one.progress()

    return wake, progress


def regex_of(patterns: Sequence[re.Pattern[str]]) -> str:
    """The patterns of a subscription as the group matches them: itself, against whole names.

    Raises:
        InvalidArgumentError: a pattern with flags, which would not be the same there.
    """
    for one in patterns:
        if one.flags & ~re.UNICODE:
            flags = re.RegexFlag(one.flags & ~re.UNICODE)
            raise InvalidArgumentError(
                f"{one.pattern!r} has {flags!r}: a group's patterns are matched by its "
                "coordinator, without flags; write both cases as [Aa], for instance"
            )
    if len(patterns) == 1:
        return patterns[0].pattern
    return "|".join(f"(?:{one.pattern})" for one in patterns)


def _refusal(
    refused: Sequence[RefusedPartition], names: Mapping[PartitionKey, TopicPartition]
) -> RayStreamError:
    first = refused[0]
    places = ", ".join(
        f"{name.topic}-{name.partition}"
        for name in sorted(names[one.topic_id, one.partition] for one in refused)
    )
    others = "; the others were" if len(refused) < len(names) else ""
    text = f"offsets of {places} were not stored{others}: {first.message}"
    return ErrorInfo(first.error, [text]).to_error()
