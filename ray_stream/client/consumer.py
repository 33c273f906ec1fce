"""The consumer that users hold: the same position read in four ways.

Owns: the public methods, and what is subscribed. Refuses: protocol decisions (`consumer_core`), a
group's doings (`rebalancing`), threads of its own: everything happens in the caller's, and answers
that arrive meanwhile wait in a queue.

Interrupted by Ctrl-C, a call hands out nothing, and positions are as before it.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import chain
from types import TracebackType
from typing import Self

import pyarrow as pa

from ray_stream.client.arguments import (
    Topic,
    count_of,
    partitions_of,
    subscription_of,
)
from ray_stream.client.calls import Deadline
from ray_stream.client.consumer_core import ConsumerCore
from ray_stream.client.consumer_events import (
    KEEP,
    NOWHERE,
    Assign,
    Pause,
    Reassigned,
    Resume,
    Subscription,
)
from ray_stream.client.decoding import Decoder
from ray_stream.client.driving import Driver
from ray_stream.client.handout import HandOut
from ray_stream.client.lookups import Lookups, check_partition, unknown_topic
from ray_stream.client.membership import Membership, membership_of, refuse
from ray_stream.client.ownership import Ownership
from ray_stream.client.rebalancing import Rebalancing
from ray_stream.client.standing import Standing
from ray_stream.client.starts import Place, places
from ray_stream.clock import Clock
from ray_stream.config import ConsumerConfig
from ray_stream.errors import InvalidArgumentError
from ray_stream.records.schema import RECORD_SCHEMA
from ray_stream.rpc.messages import EARLIEST, LATEST
from ray_stream.rpc.services import Services
from ray_stream.types import Record, StartPosition, TopicPartition

_RESETS = {"earliest": EARLIEST, "latest": LATEST, "error": NOWHERE}


class Consumer:
    """Reads records by offset. Not thread-safe: one thread at a time, or `ConcurrentAccessError`.

    Every method that takes `timeout` (seconds) raises `TimeoutExpiredError` behind it, but `poll`
    and `fetch`, which return what there is. After `close` every method raises `ClosedError`.
    """

    def __init__(
        self,
        services: Services,
        topics: Iterable[Topic],
        config: ConsumerConfig,
        *,
        clock: Clock,
        cluster: str = "default",
        membership: Membership | None = None,
    ) -> None:
        """Subscribe to topics, if any are given; `latest` is fixed when this returns.

        Args:
            services: how to reach the cluster.
            topics: names, patterns, or none (then `assign` or `subscribe`).
            config: validated options.
            clock: for timeouts.
            cluster: its name, for messages.
            membership: the place in a group; None: as `config.group` says.

        Raises:
            UnknownTopicOrPartitionError: a topic does not exist.
            TimeoutExpiredError: the cluster did not say in time where the topics end.
        """
        self._membership = membership_of(config.group) if membership is None else membership
        self._config = config
        self._clock = clock
        self._cluster = cluster
        self._lookups = Lookups(services, clock)
        self._core = ConsumerCore(config, self._lookups.directory)
        self._driver = Driver(services, clock, self._core, self._reassigned)
        self._hand_out = HandOut(self._core, self._driver, Decoder(config))
        self._standing = Standing(
            self._core, self._driver, self._hand_out, self._lookups, config.isolation_level
        )
        self._group = Rebalancing(
            config, clock, self._core, self._driver, self._hand_out, self._membership
        )
        self._owned = Ownership("this consumer", self._hand_out.interrupted)
        self._following = False
        wanted = tuple(topics)
        if wanted:
            try:
                self.subscribe(*wanted)
            except BaseException:
                self._owned.is_closed = True
                self._membership.abandon()
                self._driver.close()
                raise

    # --- what is read ----------------------------------------------------------------------------

    def subscribe(self, *topics: Topic | list[Topic] | tuple[Topic, ...]) -> None:
        """Read all partitions of these topics from now on, and nothing else.

        Partitions that were read before go on where they stand. Others begin as
        `auto_offset_reset` says; those that appear later begin at their first record.

        In a group: read this member's share of them. It is known when this returns, and read from
        the next call that reads on, behind what the group has committed.

        Args:
            *topics: names, or compiled patterns that have to match the whole name.

        Raises:
            UnknownTopicOrPartitionError: a name that does not exist.
            InvalidRegularExpressionError: a pattern that a group cannot match in bounded time.
            TimeoutExpiredError: no answer within `request_timeout_ms`.
        """
        with self._owned:
            subscription = subscription_of(topics)
            deadline = self._api_deadline(None)
            directory = self._lookups.directory
            names = None if subscription.patterns else sorted(subscription.names)
            self._lookups.refresh(names, deadline)
            for name in subscription.names:
                if directory.topic(name) is None:
                    raise unknown_topic(name)
            if self._group.in_group:
                self._following = True
                self._group.subscribe(subscription, deadline)
                return
            partitions = [
                TopicPartition(name, one.partition)
                for name in directory.names()
                if subscription.covers(name) and (topic := directory.topic(name)) is not None
                for one in topic.partitions
            ]
            self._assign(partitions, None, subscription, deadline)

    def assign(
        self, partitions: Iterable[TopicPartition], start: StartPosition | None = None
    ) -> None:
        """Read exactly these partitions from now on; a group is left, and keeps offsets only.

        Args:
            partitions: which; none at all is allowed.
            start: where to start in each; a dict may leave some out. Those without a start go on
                where they stand, or where the group has committed, or as `auto_offset_reset` says.

        Raises:
            UnknownTopicOrPartitionError: one does not exist.
            TimeoutExpiredError: no answer within `request_timeout_ms`.
        """
        with self._owned:
            wanted = partitions_of(partitions)
            deadline = self._api_deadline(None)
            if wanted:
                self._lookups.refresh(sorted({one.topic for one in wanted}), deadline)
            for one in wanted:
                check_partition(self._lookups.directory, one)
            self._group.unsubscribe(deadline)
            self._assign(wanted, start, None, deadline)

    def _assign(
        self,
        partitions: list[TopicPartition],
        start: StartPosition | None,
        subscription: Subscription | None,
        deadline: Deadline,
    ) -> None:
        chosen = places(start, partitions, "start") if start is not None else {}
        new = [one for one in partitions if one not in chosen and one not in self._core.states]
        chosen |= self._group.start_of(new, self._topic_id, deadline)
        wanted: dict[TopicPartition, Place] = {}
        for one in partitions:
            usual = KEEP if one in self._core.states else _RESETS[self._config.auto_offset_reset]
            wanted[one] = chosen.get(one, usual)
        starts = self._standing.resolved(wanted, deadline)
        ends = None
        if self._config.until == "end":
            questions = dict.fromkeys(partitions, LATEST)
            ends = self._lookups.offsets(questions, deadline, self._config.isolation_level)
        self._hand_out.stop_run()
        before = list(self._core.states)
        self._driver.step(Assign(starts, ends, subscription))
        self._following = subscription is not None
        if subscription is not None:
            added = tuple(one for one in partitions if one not in before)
            removed = tuple(one for one in before if one not in self._core.states)
            self._reassigned(Reassigned(added, removed))

    def _topic_id(self, name: str) -> str:
        return self._lookups.known_topic(name, self._api_deadline(None)).topic_id

    def _reassigned(self, change: Reassigned) -> None:
        self._hand_out.drop_stale_run()
        if change.removed and self._config.on_revoked is not None:
            self._config.on_revoked(list(change.removed))
        if change.added and self._config.on_assigned is not None:
            self._config.on_assigned(list(change.added))

    def assignment(self) -> list[TopicPartition]:
        """The partitions that are read, sorted."""
        with self._owned:
            return sorted(self._core.states)

    def pause(self, partitions: Iterable[TopicPartition] | None = None) -> None:
        """Deliver nothing of these partitions (None: all) until `resume`; positions stay."""
        with self._owned:
            names = self._standing.assigned(partitions)
            self._hand_out.stop_run()
            self._driver.step(Pause(tuple(names)))

    def resume(self, partitions: Iterable[TopicPartition] | None = None) -> None:
        """Deliver these partitions (None: all) again."""
        with self._owned:
            names = self._standing.assigned(partitions)
            self._hand_out.stop_run()
            self._driver.step(Resume(tuple(names)))

    # --- reading ---------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Record]:
        """Record by record, waiting for more at the end; with `until="end"` up to there.

        Raises:
            RayStreamError: as `poll`; the position stays, and a new loop goes on there.
        """
        return chain.from_iterable(self._runs())  # no step in Python for each record

    def _runs(self) -> Iterator[Iterator[Record]]:
        while True:
            with self._owned, self._group:
                self._check_reading()
                run = self._hand_out.next_run(self._group.run_records())
            if run is None:
                return
            yield run.records

    def poll(self, max_records: int | None = None, timeout: float | None = 1.0) -> list[Record]:
        """The next records, as soon as there are some; an empty list at the timeout.

        Args:
            max_records: at most so many; None: `max_poll_records`.
            timeout: seconds; 0 takes only what has arrived.

        Raises:
            CorruptRecordError: damage; `seek(error.next_offset)` goes on behind it.
            DeserializationError: a deserializer refused the next record; `seek` skips it.
            OffsetOutOfRangeError: the position is gone, and `auto_offset_reset` is "error".
            UnknownTopicOrPartitionError: the topic was deleted.
            FencedInstanceIdError: a newer consumer has this `group_instance_id`.
        """
        with self._owned, self._group:
            self._check_reading()
            usual = self._config.max_poll_records
            limit = usual if max_records is None else count_of("max_records", max_records)
            return self._hand_out.records(limit, Deadline(self._clock, timeout))

    def fetch(self, max_records: int | None = None, timeout: float | None = 1.0) -> pa.Table:
        """The next records as an Arrow table, as soon as there are some; empty at the timeout.

        Columns are not copied. Keys and values are the stored bytes: deserializers do not apply.

        Args:
            max_records: at most so many; None: what is there, up to about 4 MiB (or
                `fetch_max_bytes`, if that is less): more would not be read any faster.
            timeout: seconds; 0 takes only what has arrived.

        Raises:
            RayStreamError: as `poll`, without deserializers.
        """
        with self._owned, self._group:
            self._check_reading()
            limit = None if max_records is None else count_of("max_records", max_records)
            deadline = Deadline(self._clock, timeout)
            batches = self._hand_out.rows(limit, self._config.fetch_max_bytes, deadline)
            return pa.Table.from_batches(batches, RECORD_SCHEMA)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Batch by batch as they are stored, waiting for more at the end; see `fetch`."""
        while True:
            with self._owned, self._group:
                self._check_reading()
                taken = self._hand_out.next_batch(None)
            if taken is None:
                return
            yield taken.rows

    def _check_reading(self) -> None:
        if not self._core.states and not self._following:
            raise InvalidArgumentError("nothing to read: subscribe() or assign() first")

    # --- positions -------------------------------------------------------------------------------

    def seek(
        self, partition: TopicPartition | str | int, start: StartPosition | None = None
    ) -> None:
        """Go on from somewhere else.

        Args:
            partition: an assigned partition; or a topic's name, meaning all of its assigned
                partitions. With just one partition assigned it may be left out.
            start: where to.

        Raises:
            InvalidArgumentError: a partition that is not assigned.
            TimeoutExpiredError: no answer within `request_timeout_ms`.
        """
        with self._owned:
            self._standing.seek_to(partition, start, self._api_deadline(None))

    def seek_to_beginning(self, partitions: Iterable[TopicPartition] | None = None) -> None:
        """Go on from the first record of these partitions; None: of all."""
        with self._owned:
            names = self._standing.assigned(partitions)
            self._standing.seek(names, "earliest", self._api_deadline(None))

    def seek_to_end(self, partitions: Iterable[TopicPartition] | None = None) -> None:
        """Go on behind the last record that there is now in these partitions; None: in all."""
        with self._owned:
            names = self._standing.assigned(partitions)
            self._standing.seek(names, "latest", self._api_deadline(None))

    def position(self, partition: TopicPartition, *, timeout: float | None = None) -> int:
        """The offset of the next record that this consumer will hand out.

        Args:
            partition: an assigned partition.
            timeout: seconds, if it has to be looked up; None: `request_timeout_ms`.
        """
        with self._owned:
            (name,) = self._standing.assigned([partition])
            return self._standing.positions([name], self._api_deadline(timeout))[name]

    def beginning_offsets(
        self, partitions: Iterable[TopicPartition] | None = None, *, timeout: float | None = None
    ) -> dict[TopicPartition, int]:
        """The first offset of each partition; None: of all that are assigned."""
        with self._owned:
            return self._standing.ends(partitions, EARLIEST, self._api_deadline(timeout))

    def end_offsets(
        self, partitions: Iterable[TopicPartition] | None = None, *, timeout: float | None = None
    ) -> dict[TopicPartition, int]:
        """The offset behind the last readable record; None: of all that are assigned."""
        with self._owned:
            return self._standing.ends(partitions, LATEST, self._api_deadline(timeout))

    def offsets_for_times(
        self, times: Mapping[TopicPartition, datetime | int], *, timeout: float | None = None
    ) -> dict[TopicPartition, int | None]:
        """The first offset whose record is not older than a time; None where there is none.

        Where damage may hide that record, it is the offset at which the damage begins.

        Args:
            times: a datetime, or milliseconds since the epoch, for each partition.
            timeout: seconds; None: `request_timeout_ms`.
        """
        with self._owned:
            return self._standing.at_times(times, self._api_deadline(timeout))

    def lag(self, *, timeout: float | None = None) -> dict[TopicPartition, int]:
        """How many offsets each assigned partition holds beyond the position, as of now."""
        with self._owned:
            return self._standing.lag(self._api_deadline(timeout))

    # --- groups ----------------------------------------------------------------------------------

    def commit(
        self,
        offsets: Mapping[TopicPartition, int] | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """Store positions in the group durably: each the offset of the next record to read.

        Args:
            offsets: of assigned partitions, not beyond their positions; None: the positions of all.
            timeout: seconds; None: `request_timeout_ms`. The coordinator may be away for a while.

        Raises:
            InvalidArgumentError: no group, a partition that is not assigned, or an offset beyond
                the position.
            FencedMemberEpochError: the group has put this consumer out; what it handled since the
                last commit is delivered again. `poll` joins the group again.
            StaleMemberEpochError: some partitions are others' now; the message names them.
            TimeoutExpiredError: no answer; the positions may be stored or not.
        """
        with self._owned:
            deadline = self._api_deadline(timeout)
            if not self._group.in_group:
                refuse("commit")
            self._group.commit(self._standing.to_commit(offsets, deadline), deadline)

    def committed(
        self, partitions: Iterable[TopicPartition], *, timeout: float | None = None
    ) -> dict[TopicPartition, int | None]:
        """What the group has committed; None where nothing is.

        Args:
            partitions: of any topics, assigned or not.
            timeout: seconds; None: `request_timeout_ms`.

        Raises:
            InvalidArgumentError: this consumer has no group.
            TimeoutExpiredError: no answer.
        """
        with self._owned:
            names = partitions_of(partitions)
            return self._group.committed(names, self._topic_id, self._api_deadline(timeout))

    # --- life cycle ------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop reading, commit if that is automatic, leave the group; a second call does nothing.

        A coordinator that is away is waited for for some seconds at most.
        """
        self._close(with_record_in_hand=True)

    def _close(self, *, with_record_in_hand: bool) -> None:
        if self._owned.is_closed:
            return
        with self._owned:
            try:
                self._group.close(self._api_deadline(None), with_record_in_hand=with_record_in_hand)
            finally:
                self._driver.step(Assign({}))
                self._driver.close()
                self._owned.is_closed = True

    def __del__(self) -> None:
        owned = getattr(self, "_owned", None)
        if owned is None or owned.is_closed or owned.is_forked or not self._group.is_member:
            return
        warnings.warn(
            f"{self!r} of group {self._config.group!r} was collected open: it leaves its group "
            "without a commit; use it in a `with` block, or close() it",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )
        self._membership.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(with_record_in_hand=kind is None)

    def __repr__(self) -> str:
        state = "closed" if self._owned.is_closed else f"{len(self._core.states)} partitions"
        return f"<Consumer of cluster {self._cluster!r}, {state}>"

    def _api_deadline(self, timeout: float | None) -> Deadline:
        seconds = self._config.request_timeout_ms / 1000 if timeout is None else timeout
        return Deadline(self._clock, seconds)
