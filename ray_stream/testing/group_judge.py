"""Stands before every simulated coordinator: what it answers must be durable, and true.

Owns: reading the coordinators' logs as far as they are synced, and holding their answers against
that. Refuses: folding the facts (`testing.group_story`).
"""

from collections.abc import Callable
from typing import Any

from ray_stream.config import CONSUMER_OFFSETS_TOPIC, COORDINATOR_PARTITIONS
from ray_stream.errors import InvariantViolationError, RayStreamError
from ray_stream.groups.commands import (
    ConsumerGroupHeartbeat,
    HeartbeatAnswer,
    OffsetCommit,
    OffsetFetch,
    OffsetsCommittedAnswer,
    OffsetsFetched,
    PartitionKey,
)
from ray_stream.groups.coordinator import GroupCoordinator
from ray_stream.groups.records import decode_record
from ray_stream.groups.routing import partition_of
from ray_stream.log.partition_log import PartitionLog
from ray_stream.records.header import HEADER_BYTES, decode_header
from ray_stream.records.reader import decode_columns
from ray_stream.rpc.services import Reply
from ray_stream.testing.group_story import Story
from ray_stream.testing.network import Handler
from ray_stream.testing.simulated_cluster import HostProcess

READ_BYTES = 1 << 20


class GroupJudge:
    """One for a run."""

    def __init__(self, story: Story) -> None:
        """Args: story: takes what is read, and is asked."""
        self._story = story
        self._read: dict[int, int] = {}
        """By partition of the internal topic, how far its durable facts were read."""
        self._seen: dict[int, tuple[PartitionLog, int, int, int]] = {}

    # --- logs ------------------------------------------------------------------------------------

    def look(self, one: HostProcess) -> None:
        """Read what became durable in a coordinator, and look at its mind.

        Raises:
            InvariantViolationError: an invariant is broken.
        """
        if one.groups is None:
            return
        for key, hosted in one.host.partitions.items():
            number, log = key[1], hosted.log
            seen = (log, log.leader_epoch, log.written_end, log.readable_end)
            if self._seen.get(number) == seen or not hosted.leading:
                continue
            if hosted.spec.topic != CONSUMER_OFFSETS_TOPIC:
                continue
            self._seen[number] = seen
            self._read_on(number, log)
            machine = one.groups.machines().get(number)
            if machine is not None:
                self._look_into(machine, is_durable=seen[2] == seen[3])

    def _look_into(self, machine: GroupCoordinator, *, is_durable: bool) -> None:
        machine.check()
        if is_durable:
            for group in machine.image.groups.values():
                self._story.compare(group)

    def _read_on(self, number: int, log: PartitionLog) -> None:
        offset = self._read.get(number, 0)
        while offset < log.readable_end:
            read = log.read(offset, bytes_max=READ_BYTES, end_offset=log.readable_end)
            for batch in read.batches:
                header = decode_header(batch)
                if header.record_count:
                    columns = decode_columns(header, memoryview(batch)[HEADER_BYTES:])
                    facts = [decode_record(one) for one in columns.column("value").to_pylist()]
                    place = (number, header.leader_epoch, header.base_offset)
                    self._story.read(place, facts)
            offset = self._read[number] = read.next_offset

    # --- answers ---------------------------------------------------------------------------------

    def judged(self, one: HostProcess, handlers: dict[str, Handler]) -> dict[str, Handler]:
        """The same handlers, with what they answer held against what is durable."""
        checks: dict[str, Callable[[HostProcess, Handler], Handler]] = {
            "heartbeat": self._heartbeats,
            "commit_offsets": self._commits,
            "fetch_offsets": self._fetches,
        }
        return {
            name: checks[name](one, handler) if name in checks else handler
            for name, handler in handlers.items()
        }

    def _heartbeats(self, one: HostProcess, handler: Handler) -> Handler:
        def heartbeat(request: ConsumerGroupHeartbeat, reply: Reply[Any]) -> None:
            def check(answer: HeartbeatAnswer | RayStreamError) -> None:
                if isinstance(answer, HeartbeatAnswer) and answer.member_epoch > 0:
                    self.look(one)
                    self._check_told(request, answer)
                reply(answer)

            handler(request, check)

        return heartbeat

    def _check_told(self, request: ConsumerGroupHeartbeat, answer: HeartbeatAnswer) -> None:
        group = self._story.group(request.group_id)
        who = f"{request.member_id} of {request.group_id}"
        if answer.member_epoch not in group.epochs.get(request.member_id, {}):
            raise InvariantViolationError(
                f"I18: {who} is told epoch {answer.member_epoch}, which is not durable"
            )
        if answer.assignment is None:
            return
        given = frozenset(
            (topic.topic_id, number) for topic in answer.assignment for number in topic.partitions
        )
        if (request.member_id, answer.revision, given) not in group.granted:
            raise InvariantViolationError(
                f"I18: {who} is given {sorted(given)} in revision {answer.revision}, which is not "
                "durable"
            )

    def _commits(self, one: HostProcess, handler: Handler) -> Handler:
        def commit(request: OffsetCommit, reply: Reply[Any]) -> None:
            log = _log(one, partition_of(request.group_id, COORDINATOR_PARTITIONS))
            before = log.written_end if log is not None else 0

            def check(answer: OffsetsCommittedAnswer | RayStreamError) -> None:
                if isinstance(answer, OffsetsCommittedAnswer):
                    self.look(one)
                    self._check_stored(request, answer)
                reply(answer)

            handler(request, check)
            if log is not None and log.written_end > before:
                number = partition_of(request.group_id, COORDINATOR_PARTITIONS)
                self._story.wrote((number, log.leader_epoch, before), request)

        return commit

    def _check_stored(self, request: OffsetCommit, answer: OffsetsCommittedAnswer) -> None:
        refused = {(one.topic_id, one.partition) for one in answer.refused}
        for one in request.offsets:
            key = (one.topic_id, one.partition)
            if key not in refused and not self._story.is_durable(request, key):
                raise InvariantViolationError(
                    f"I18: {request.member_id} of {request.group_id} is told that its commit of "
                    f"{one.offset} in partition {key[1]} is stored, and it is not durable"
                )

    def _fetches(self, one: HostProcess, handler: Handler) -> Handler:
        def fetch(request: OffsetFetch, reply: Reply[Any]) -> None:
            self.look(one)
            offsets = self._story.group(request.group_id).offsets
            known = {key: max(0, len(values) - 1) for key, values in offsets.items()}

            def check(answer: OffsetsFetched | RayStreamError) -> None:
                if isinstance(answer, OffsetsFetched):
                    self.look(one)
                    self._check_fetched(request, answer, known)
                reply(answer)

            handler(request, check)

        return fetch

    def _check_fetched(
        self, request: OffsetFetch, answer: OffsetsFetched, known: dict[PartitionKey, int]
    ) -> None:
        offsets = self._story.group(request.group_id).offsets
        for told in answer.offsets:
            key = (told.topic_id, told.partition)
            since = known.get(key)
            could_be = offsets.get(key, [])[since or 0 :]
            if told.offset in could_be or (told.offset < 0 and since is None):
                continue
            raise InvariantViolationError(
                f"I18: {request.member_id} of {request.group_id} is told that {told.offset} is "
                f"committed in partition {told.partition}, and durable was {could_be}"
            )


def _log(one: HostProcess, number: int) -> PartitionLog | None:
    """Of a partition of the internal topic that is led there."""
    for key, hosted in one.host.partitions.items():
        if key[1] == number and hosted.leading and hosted.spec.topic == CONSUMER_OFFSETS_TOPIC:
            return hosted.log
    return None
