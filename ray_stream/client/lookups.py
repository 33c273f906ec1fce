"""What a caller waits for before it can go on: topics, and offsets by position or time.

Owns: asking the controller and the leaders, whoever they are by then, until a deadline. Refuses:
positions and fetching (`consumer_core`), validating what a user typed (`starts`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ray_stream.client.calls import Deadline, Mailbox, call, pause, timed_out
from ray_stream.client.topics import TopicDirectory
from ray_stream.clock import Clock
from ray_stream.errors import (
    LeaderNotAvailableError,
    RayStreamError,
    UnknownTopicIdError,
    UnknownTopicOrPartitionError,
)
from ray_stream.metadata.commands import TopicMetadata
from ray_stream.rpc.messages import (
    ListOffsetsPartition,
    ListOffsetsRequest,
    ListOffsetsResponse,
    MetadataRequest,
)
from ray_stream.rpc.services import Services
from ray_stream.types import TopicPartition

METADATA_ATTEMPT_MS = 3_000
_LIST_ATTEMPT_MS = 3_000
_BACKOFF_MS = 50
_BACKOFF_MAX_MS = 1_000

# A topic that was just deleted, or moves, looks like these to a client with old metadata; the
# controller's next answer tells which it is.
_ASK_CONTROLLER = (UnknownTopicIdError, UnknownTopicOrPartitionError)


@dataclass(slots=True)
class _Round:
    """One round of questions to every leader concerned."""

    asked: dict[int, list[TopicPartition]] = field(default_factory=dict)
    answers: dict[TopicPartition, int] = field(default_factory=dict)
    failed: dict[TopicPartition, RayStreamError] = field(default_factory=dict)


class Lookups:
    """Blocking questions of one client."""

    def __init__(self, services: Services, clock: Clock) -> None:
        """Args: services: whom to ask; clock: whose monotonic time deadlines count."""
        self.services = services
        self.clock = clock
        self.directory = TopicDirectory()

    def refresh(self, topics: list[str] | None, deadline: Deadline) -> None:
        """Ask the controller about these topics, None for all.

        Raises:
            TimeoutExpiredError: no answer by the deadline.
        """
        response = call(
            self.services.controller.metadata,
            MetadataRequest(topics),
            deadline=deadline,
            what="asking the controller for metadata",
            attempt_ms=METADATA_ATTEMPT_MS,
        )
        self.directory.update(response, topics)

    def topic(self, name: str, deadline: Deadline) -> TopicMetadata:
        """The topic as the controller describes it now.

        Raises:
            UnknownTopicOrPartitionError: there is none of that name.
            TimeoutExpiredError: no answer by the deadline.
        """
        self.refresh([name], deadline)
        topic = self.directory.topic(name)
        if topic is None:
            raise unknown_topic(name)
        return topic

    def known_topic(self, name: str, deadline: Deadline) -> TopicMetadata:
        """The topic as last described; asks only when nothing is known of it."""
        return self.directory.topic(name) or self.topic(name, deadline)

    def offsets(
        self,
        questions: Mapping[TopicPartition, int],
        deadline: Deadline,
        isolation_level: str = "read_committed",
    ) -> dict[TopicPartition, int]:
        """Offsets by position or time, from the leaders.

        Args:
            questions: for each partition `EARLIEST`, `LATEST`, or a time in ms.
            deadline: when to give up.
            isolation_level: as in Kafka; decides what the readable end is.

        Returns:
            An offset for each partition; -1 where no record is that young.

        Raises:
            UnknownTopicOrPartitionError: a topic or partition does not exist.
            TimeoutExpiredError: a leader did not answer by the deadline; the message names it.
        """
        answers: dict[TopicPartition, int] = {}
        left = dict(questions)
        backoff_ms = _BACKOFF_MS
        self._refresh_unknown(left, deadline)
        while left:
            done = self._ask(left, deadline, isolation_level)
            answers |= done.answers
            _raise_final(done.failed)
            left = {partition: left[partition] for partition in done.failed}
            if not left:
                break
            name, error = next(iter(done.failed.items()))
            if not deadline.left_ms():
                what = f"looking up an offset of {name.topic}-{name.partition}"
                raise timed_out(what, deadline, error)
            pause(min(backoff_ms, deadline.left_ms()))
            backoff_ms = min(2 * backoff_ms, _BACKOFF_MAX_MS)
            self.refresh(_topics(left), deadline)
            self._check_exist(left)
        return {partition: answers[partition] for partition in questions}

    def reachable_offsets(
        self, questions: Mapping[TopicPartition, int], deadline: Deadline
    ) -> dict[TopicPartition, int]:
        """As `offsets`, asking once: without those whose leader is away or refuses."""
        return self._ask(questions, deadline, "read_committed").answers

    def _refresh_unknown(self, partitions: Iterable[TopicPartition], deadline: Deadline) -> None:
        unknown = [one for one in partitions if self.directory.address(*one) is None]
        if unknown:
            self.refresh(_topics(unknown), deadline)
        self._check_exist(unknown)

    def _check_exist(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            check_partition(self.directory, partition)

    def _ask(
        self, questions: Mapping[TopicPartition, int], deadline: Deadline, isolation_level: str
    ) -> _Round:
        """Ask every leader at once, and wait for all of them, though not for long."""
        result = _Round()
        mailbox = Mailbox()
        hosts: dict[str, list[tuple[TopicPartition, ListOffsetsPartition]]] = {}
        for partition, timestamp in questions.items():
            address = self.directory.address(*partition)
            if address is None:
                result.failed[partition] = LeaderNotAvailableError("nothing serves it now")
                continue
            question = ListOffsetsPartition(
                address.topic_id, partition.partition, address.leader_epoch, timestamp
            )
            hosts.setdefault(address.host, []).append((partition, question))
        for number, (host, asked) in enumerate(hosts.items()):
            result.asked[number] = [partition for partition, _ in asked]
            request = ListOffsetsRequest([question for _, question in asked], isolation_level)
            self.services.partitions(host).list_offsets(request, mailbox.reply_to(number))
        attempt = Deadline(self.clock, min(_LIST_ATTEMPT_MS, deadline.left_ms()) / 1000)
        while result.asked:
            arrived = mailbox.take(attempt.left_ms())
            if arrived is not None:
                _take_answer(result, *arrived)
            elif not attempt.left_ms():
                break
        for partitions in result.asked.values():
            for partition in partitions:
                result.failed[partition] = LeaderNotAvailableError("its leader does not answer")
        return result


def _take_answer(result: _Round, number: int, answer: ListOffsetsResponse | RayStreamError) -> None:
    partitions = result.asked.pop(number)
    if isinstance(answer, RayStreamError):
        result.failed |= dict.fromkeys(partitions, answer)
        return
    for partition, one in zip(partitions, answer.results, strict=True):
        if one.error is None:
            result.answers[partition] = one.offset
        else:
            result.failed[partition] = one.error.to_error()


def _raise_final(failed: Mapping[TopicPartition, RayStreamError]) -> None:
    """Raise the first error that asking again does not help."""
    for error in failed.values():
        if not error.retriable and not isinstance(error, _ASK_CONTROLLER):
            raise error


def _topics(partitions: Iterable[TopicPartition]) -> list[str]:
    return sorted({partition.topic for partition in partitions})


def unknown_topic(name: str) -> UnknownTopicOrPartitionError:
    """The error for a topic that is not there."""
    return UnknownTopicOrPartitionError(
        f"there is no topic {name!r}: create_topic({name!r}) makes it, topics() lists what is there"
    )


def check_partition(directory: TopicDirectory, partition: TopicPartition) -> None:
    """Refuse a partition that does not exist, as far as `directory` knows.

    Raises:
        UnknownTopicOrPartitionError: no such topic, or it has fewer partitions.
    """
    topic = directory.topic(partition.topic)
    if topic is None:
        raise unknown_topic(partition.topic)
    if directory.partition(*partition) is None:
        raise UnknownTopicOrPartitionError(
            f"topic {partition.topic!r} has no partition {partition.partition}: "
            f"0 to {len(topic.partitions) - 1} are valid"
        )
