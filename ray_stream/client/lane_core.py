"""The batches of one partition between a producer and its log: order, window, numbers, outcomes.

Owns: which batch may be sent next, under which producer id, epoch and sequence; what an answer
means for it and for those behind it. Refuses: requests, hosts, topics, and time beyond what it is
told.

The rules, and why no record is lost, doubled or moved:

* A batch is numbered when it is first sent and keeps number and bytes for good (STORAGE section 5).
  At most `max_in_flight` numbered batches are unresolved: the log remembers the last five of each
  producer, so it knows every repetition, however often and late it comes.
* A batch that leaves the lane without being acknowledged leaves a *hole*: the log will not take the
  numbers behind it. Nothing new is numbered while there is a hole. The batches behind it that were
  sent already keep their numbers and are waited for: an acknowledgement of one of them proves that
  the hole was filled after all; a refusal by sequence resolves it as the hole was (unknown behind
  unknown, failed behind failed). When none is left, the lane goes to the next epoch, sequence 0.
* So at the change of epochs no numbered batch is unresolved, and none was numbered twice. A copy of
  an old batch that still travels reaches the log before the new epoch's first batch, and stands in
  its old order in front of it or is refused by sequence; or after it, and is refused by epoch.
* Logs judge epochs partition by partition, and the id belongs to this one producer, so a lane goes
  to its next epoch alone: what other partitions have in flight is not touched.

Kafka's client instead renumbers batches that it takes for certainly unwritten (KIP-360). Here a
batch behind a hole is reported, never renumbered: fewer states, and no way to write it twice.
"""

from collections import deque
from typing import NamedTuple

from ray_stream.client.batch import Batch
from ray_stream.client.topics import PartitionAddress
from ray_stream.errors import (
    InvalidProducerEpochError,
    OutcomeUnknownError,
    OutOfOrderSequenceError,
    ProducerFencedError,
    RayStreamError,
    TimeoutExpiredError,
    UnknownProducerIdError,
)
from ray_stream.types import SEQUENCE_MAX

EPOCH_MAX = 2**15 - 1
IDLE_MS = 12 * 3600 * 1000
"""A lane silent for so long takes a new epoch before the log forgets it (after 24 hours)."""

SEQUENCE_ERRORS = (OutOfOrderSequenceError, UnknownProducerIdError)
FENCING_ERRORS = (ProducerFencedError, InvalidProducerEpochError)


class _Hole(NamedTuple):
    """The last batch that left the lane without an acknowledgement."""

    ordinal: int
    error: RayStreamError


class Resolved(NamedTuple):
    """A batch that left the lane, and why it failed."""

    batch: Batch
    error: RayStreamError


class Lane:
    """The batches of one partition of one topic incarnation."""

    __slots__ = (
        "_hole",
        "_idle_since_ms",
        "_next_ordinal",
        "_next_sequence",
        "address",
        "epoch",
        "idempotent",
        "max_in_flight",
        "partition",
        "producer_id",
        "queue",
        "sent",
        "spent_id",
        "timer_at_ms",
        "topic",
        "topic_id",
    )

    def __init__(
        self, topic: str, topic_id: str, partition: int, *, max_in_flight: int, idempotent: bool
    ) -> None:
        """An empty lane; `producer_id` is set before its first batch is numbered."""
        self.topic = topic
        self.topic_id = topic_id
        self.partition = partition
        self.max_in_flight = max_in_flight
        self.idempotent = idempotent
        self.producer_id: int | None = None
        self.spent_id: int | None = None
        """All epochs of this one were used here."""
        self.epoch = 0
        self.address: PartitionAddress | None = None
        """Where the last request went, or the next one will go."""
        self.queue: deque[Batch] = deque()
        """Never sent, in order."""
        self.sent: list[Batch] = []
        """Numbered and unresolved, in order."""
        self.timer_at_ms: int | None = None
        """When the core looks at this lane next, as far as that is scheduled."""
        self._next_sequence = 0
        self._next_ordinal = 0
        self._hole: _Hole | None = None
        self._idle_since_ms: int | None = None

    @property
    def head(self) -> Batch | None:
        """The oldest unresolved batch."""
        if self.sent:
            return self.sent[0]
        return self.queue[0] if self.queue else None

    @property
    def unresolved(self) -> int:
        """Batches whose outcome is open."""
        return len(self.sent) + len(self.queue)

    # --- sending -----------------------------------------------------------------------------

    def moved(self, address: PartitionAddress, now_ms: int) -> None:
        """The partition is served elsewhere, or under a new epoch: what waits may go at once."""
        self.address = address
        for batch in self.sent:
            if batch.attempt is None:
                batch.retry_at_ms = now_ms

    def sendable(self, now_ms: int) -> list[Batch]:
        """The batches to send now, in order; new ones still have to be numbered.

        A batch that waits for its retry holds back all behind it: they could only be refused.
        """
        chosen: list[Batch] = []
        for batch in self.sent:
            if batch.attempt is None:
                if batch.retry_at_ms > now_ms:
                    return chosen
                chosen.append(batch)
        if self._hole is None:
            room = self.max_in_flight - len(self.sent)
            chosen += [self.queue[place] for place in range(min(room, len(self.queue)))]
        return chosen

    def number(self, batch: Batch, now_ms: int) -> None:
        """Number the first batch of the queue and fix its bytes: it is about to be sent."""
        assert self.queue[0] is batch, "batches are numbered in order"
        assert self._hole is None, "nothing is numbered behind a hole"
        self.queue.popleft()
        if self.idempotent:
            idle = not self.sent and self._idle_since_ms is not None
            if idle and now_ms - (self._idle_since_ms or 0) > IDLE_MS:
                self._next_epoch()
            assert self.producer_id is not None, "the core gives an id first"
            batch.stamp(self.producer_id, self.epoch, self._next_sequence)
            self._next_sequence = (self._next_sequence + batch.record_count) & SEQUENCE_MAX
        else:
            batch.stamp()
        batch.ordinal = self._next_ordinal
        self._next_ordinal += 1
        self.sent.append(batch)

    @property
    def next_sequence(self) -> int:
        """The number of the next record."""
        return self._next_sequence

    @property
    def room(self) -> int:
        """How many batches may be numbered elsewhere and go out past this lane; 0: none."""
        if self.queue or self._hole is not None or self.producer_id is None or not self.idempotent:
            return 0
        if any(batch.attempt is None for batch in self.sent):
            return 0  # what waits for its retry holds back all behind it
        return self.max_in_flight - len(self.sent)

    def went_alone(self, batch: Batch) -> None:
        """A batch was numbered with `next_sequence` and sent elsewhere, while there was `room`."""
        assert not self.queue, "what waited to be numbered would have come first"
        assert self._hole is None, "nothing is numbered behind a hole"
        self._next_sequence = (self._next_sequence + batch.record_count) & SEQUENCE_MAX
        batch.ordinal = self._next_ordinal
        self._next_ordinal += 1
        self.sent.append(batch)

    def _next_epoch(self) -> None:
        self._next_sequence = 0
        if self.epoch < EPOCH_MAX:
            self.epoch += 1
        else:
            self.spent_id, self.producer_id = self.producer_id, None
            self.epoch = 0

    # --- outcomes ----------------------------------------------------------------------------

    def acknowledged(self, batch: Batch, now_ms: int) -> None:
        """The log holds the batch."""
        self._remove(batch, now_ms)
        if self._hole is not None and batch.ordinal > self._hole.ordinal:
            self._hole = None  # its number was reached, so the log holds all in front of it
        self._mend()

    def refused_by_sequence(
        self, batch: Batch, error: RayStreamError, now_ms: int
    ) -> Resolved | None:
        """The log waits for another number; None: perhaps for that of a batch in front: try again.

        Only what was sent when nothing in front of it was open any more is judged for good: before,
        it may have overtaken those.
        """
        if not batch.went_first:
            return None
        if self._hole is None:
            return self.refused(batch, error, now_ms)
        cause = self._hole.error
        if isinstance(cause, OutcomeUnknownError) or batch.may_be_applied:
            failure: RayStreamError = OutcomeUnknownError(
                f"a batch in front of this one has an unknown outcome, so this one has too: {cause}"
            )
        else:
            failure = OutOfOrderSequenceError(
                f"not written, because a batch that was sent in front of it was not: {cause}"
            )
        return self._fail(batch, failure, now_ms)

    def refused(self, batch: Batch, error: RayStreamError, now_ms: int) -> Resolved:
        """The log will never take the batch."""
        if isinstance(error, FENCING_ERRORS):
            self.producer_id = None  # a number that somebody else uses
        if batch.may_be_applied:
            error = OutcomeUnknownError(
                f"an earlier request with this batch got no answer, then it was refused: {error}"
            )
        return self._fail(batch, error, now_ms)

    def expire(self, now_ms: int, delivery_timeout_ms: int) -> list[Resolved]:
        """Give up the batches that are older than the delivery timeout."""
        expired = []
        while (head := self.head) is not None and now_ms >= head.created_ms + delivery_timeout_ms:
            error = _expired(head, delivery_timeout_ms)
            if self.sent:
                expired.append(self._fail(head, error, now_ms))
            else:
                self.queue.popleft()
                expired.append(Resolved(head, error))
        return expired

    def fail_all(self, error: RayStreamError, now_ms: int, *, gone: bool = False) -> list[Resolved]:
        """Give up everything.

        Args:
            error: why.
            now_ms: the time.
            gone: the log is no more, so that unanswered requests make nothing uncertain.
        """
        failed = []
        for batch in [*self.sent, *self.queue]:
            unknown = batch.may_be_applied and not gone
            cause = OutcomeUnknownError(f"no answer came before: {error}") if unknown else error
            if batch.ordinal >= 0:
                failed.append(self._fail(batch, cause, now_ms))
            else:
                failed.append(Resolved(batch, cause))
        self.queue.clear()
        return failed

    def _fail(self, batch: Batch, error: RayStreamError, now_ms: int) -> Resolved:
        if self.idempotent and (self._hole is None or batch.ordinal > self._hole.ordinal):
            self._hole = _Hole(batch.ordinal, error)
        self._remove(batch, now_ms)
        self._mend()
        return Resolved(batch, error)

    def _remove(self, batch: Batch, now_ms: int) -> None:
        self.sent.remove(batch)
        self._idle_since_ms = now_ms
        head = self.sent[0] if self.sent else None
        if head is not None and isinstance(head.last_error, SEQUENCE_ERRORS):
            head.retry_at_ms = now_ms  # what it waited for has gone

    def _mend(self) -> None:
        """With a hole and nothing numbered left: the next epoch."""
        if self._hole is not None and not self.sent:
            self._hole = None
            self._next_epoch()


def _expired(batch: Batch, delivery_timeout_ms: int) -> RayStreamError:
    """Why a batch that ran out of time failed, as precisely as it is known."""
    last = f"; the last error: {batch.last_error}" if batch.last_error is not None else ""
    if batch.may_be_applied:
        return OutcomeUnknownError(
            f"sent, and not acknowledged within delivery_timeout_ms={delivery_timeout_ms}: "
            f"it may have been written, or not{last}"
        )
    message = f"not written within delivery_timeout_ms={delivery_timeout_ms}{last}"
    if batch.last_error is not None and batch.last_error.retriable:
        return type(batch.last_error)(message)
    return TimeoutExpiredError(message)
