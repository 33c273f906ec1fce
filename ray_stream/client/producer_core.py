"""The producer's mind: what is sent where and when, what answers mean, what time-outs do.

Owns: requests in flight and their ids, retries and their times, where partitions are served.
Refuses: numbering and order within a partition (`lane_core`), building batches (`batching_core`),
clocks, threads and sockets.

`step(event, now_ms)` returns effects, to be carried out in their order; `next_deadline_ms` says
when to step with a `Tick` if nothing else happens. Equal seeds and events give equal effects.

Errors are judged by attribute (`retriable`), not by name, but for those that say where to go
instead, that a topic is gone, or that concern numbering.
"""

import heapq
import random

from ray_stream.client.batch import Batch
from ray_stream.client.inquiries_core import Inquiries
from ray_stream.client.lane_core import FENCING_ERRORS, SEQUENCE_ERRORS, Lane, Resolved
from ray_stream.client.producer_events import (
    Abandoned,
    Alone,
    BatchesBuilt,
    Delivered,
    Effect,
    Event,
    Failed,
    MetadataAnswered,
    Pass,
    ProduceAnswered,
    ProducerIdAnswered,
    SendProduce,
    Tick,
    TopicsDescribed,
    TopicWanted,
    WentAlone,
)
from ray_stream.client.requests_core import Requests, error_of, results_of
from ray_stream.client.topics import PartitionAddress, TopicDirectory
from ray_stream.config import ProducerConfig
from ray_stream.errors import (
    FencedLeaderEpochError,
    LeaderNotAvailableError,
    NotLeaderOrFollowerError,
    OutcomeUnknownError,
    RayStreamError,
    UnknownLeaderEpochError,
    UnknownTopicIdError,
    UnknownTopicOrPartitionError,
)
from ray_stream.metadata.commands import ProducerIdGiven
from ray_stream.rpc.messages import (
    MetadataResponse,
    ProducePartition,
    ProduceRequest,
    ProduceResponse,
    ProduceResult,
)
from ray_stream.types import NO_OFFSET, NO_TIMESTAMP

REQUEST_BYTES_MAX = 16 * 1024 * 1024
"""A request takes batches of several partitions up to here; a larger batch travels alone."""

PASS_MS = 60_000
"""A pass is good for so long: a lane that is silent for hours takes a new epoch."""

_GONE_ERRORS = (UnknownTopicIdError, UnknownTopicOrPartitionError)
_ELSEWHERE_ERRORS = (
    NotLeaderOrFollowerError,
    FencedLeaderEpochError,
    UnknownLeaderEpochError,
    LeaderNotAvailableError,
    OutcomeUnknownError,
    *_GONE_ERRORS,
)
"""After these the partition may be served elsewhere: ask the controller."""


class ProducerCore:
    """Delivers batches: each once, in the order of its partition, or says what became of it.

    Args:
        config: time-outs, acknowledgements, window.
        rng: spreads retries.
        directory: what is known of topics; shared with whoever builds batches.
    """

    def __init__(
        self, config: ProducerConfig, rng: random.Random, directory: TopicDirectory | None = None
    ) -> None:
        self.directory = directory if directory is not None else TopicDirectory()
        self._config = config
        self._acks = -1 if config.acks == "all" else config.acks
        self._rng = rng
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._lanes_of: dict[str, list[Lane]] = {}
        """By the topic's name."""
        self._queued: dict[str, dict[Lane, None]] = {}
        """Lanes with batches that were never sent, by topic."""
        self._ready: dict[Lane, None] = {}
        """Lanes to look at in this step, in the order in which something happened to them."""
        self._timers: list[tuple[int, int, Lane]] = []
        self._timers_pushed = 0
        self._requests = Requests()
        self._next_request_id = 0
        self._inquiries = Inquiries(config, self._new_request_id)
        self._effects: list[Effect] = []

    # --- the shell's side --------------------------------------------------------------------

    @property
    def next_deadline_ms(self) -> int | None:
        """When to step again at the latest; None: only when something happens."""
        times = [at_ms for at_ms in (self._inquiries.next_deadline_ms,) if at_ms is not None]
        if self._requests.next_deadline_ms is not None:
            times.append(self._requests.next_deadline_ms)
        if self._timers:
            times.append(self._timers[0][0])
        return min(times, default=None)

    @property
    def requests_in_flight(self) -> int:
        """Whose answer is awaited."""
        return len(self._requests)

    def backlog(self, topic: str) -> bool:
        """Whether batches of the topic wait to be sent, so that further ones would only queue."""
        return bool(self._queued.get(topic))

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        """Take one event.

        Args:
            event: what happened.
            now_ms: monotonic milliseconds.

        Returns:
            What to do, in this order.
        """
        match event:
            case BatchesBuilt(batches):
                self._accept(batches)
            case WentAlone(sent):
                self._take_note(sent, now_ms)
            case ProduceAnswered(request_id, answer):
                self._produce_answered(request_id, answer, now_ms)
            case MetadataAnswered(request_id, answer):
                self._metadata_answered(request_id, answer, now_ms)
            case ProducerIdAnswered(request_id, answer):
                self._producer_id_answered(request_id, answer, now_ms)
            case TopicWanted(topic):
                self._inquiries.want(topic, now_ms)
            case Abandoned(error):
                self._abandon(error, now_ms)
            case Tick():
                pass
        self._time_out_requests(now_ms)
        self._wake_lanes(now_ms)
        self._serve_lanes(now_ms)
        self._effects += self._inquiries.ask(now_ms)
        effects, self._effects = self._effects, []
        return effects

    # --- events ------------------------------------------------------------------------------

    def _accept(self, batches: list[Batch]) -> None:
        for batch in batches:
            lane = self._lanes.get((batch.topic_id, batch.partition))
            if lane is None:
                lane = Lane(
                    batch.topic,
                    batch.topic_id,
                    batch.partition,
                    max_in_flight=self._config.max_in_flight,
                    idempotent=self._config.enable_idempotence,
                )
                self._lanes[batch.topic_id, batch.partition] = lane
                self._lanes_of.setdefault(batch.topic, []).append(lane)
            lane.queue.append(batch)
            self._ready[lane] = None

    def pass_for(self, topic_id: str, partition: int, now_ms: int) -> Pass | None:
        """A pass for lone records of a partition, if nothing of it waits.

        Until it is taken back the core is told of nothing but what went out by it, and of
        acknowledgements.
        """
        lane = self._lanes.get((topic_id, partition))
        if lane is None or self._acks == 0:
            return None
        address, room = self.directory.address(lane.topic, partition), lane.room
        if address is None or address != lane.address or not room or lane.producer_id is None:
            return None
        return Pass(
            lane.producer_id,
            lane.epoch,
            lane.next_sequence,
            room,
            address.host,
            address.leader_epoch,
            now_ms + PASS_MS,
        )

    def _take_note(self, sent: list[Alone], now_ms: int) -> None:
        for alone in sent:
            batch = alone.batch
            lane = self._lanes[batch.topic_id, batch.partition]
            lane.went_alone(batch)
            batch.attempts = 1
            if alone.is_written:
                batch.attempt = alone.request_id
                deadline_ms = alone.sent_ms + self._config.request_timeout_ms
                self._requests.sent(alone.request_id, deadline_ms, (batch,))
            else:
                batch.lost_attempts.append(alone.request_id)
                self._requests.lost(alone.request_id, (batch,))
                batch.retry_at_ms = now_ms
            self._ready[lane] = None

    def _produce_answered(
        self, request_id: int, answer: ProduceResponse | RayStreamError, now_ms: int
    ) -> None:
        batches = self._requests.answered(request_id)
        results = results_of(batches, answer)
        for batch, result in zip(batches, results, strict=True):
            if not batch.resolved:
                self._judge(request_id, batch, result, now_ms)

    def _judge(
        self,
        request_id: int,
        batch: Batch,
        result: ProduceResult | RayStreamError,
        now_ms: int,
    ) -> None:
        """One batch's share of an answer, be it the awaited one or that to an earlier attempt."""
        lane = self._lanes[batch.topic_id, batch.partition]
        self._ready[lane] = None
        if isinstance(result, ProduceResult) and result.error is None:
            self._delivered(lane, batch, result, now_ms)
            return
        error = result if isinstance(result, RayStreamError) else error_of(result)
        batch.last_error = error
        awaited = batch.attempt == request_id
        if awaited:
            batch.attempt = None
        if isinstance(error, OutcomeUnknownError):
            if request_id not in batch.lost_attempts:
                batch.lost_attempts.append(request_id)
        elif request_id in batch.lost_attempts:
            batch.lost_attempts.remove(request_id)
        if awaited:
            self._refused(lane, batch, error, now_ms)

    def _delivered(self, lane: Lane, batch: Batch, result: ProduceResult, now_ms: int) -> None:
        lane.acknowledged(batch, now_ms)
        self._forget(batch)
        self._inquiries.trust(lane.topic)
        none = self._acks == 0
        self._effects.append(
            Delivered(
                batch,
                NO_OFFSET if none else result.base_offset,
                result.append_timestamp if result.log_append_time else NO_TIMESTAMP,
                "none" if none else result.durability,
            )
        )

    def _refused(self, lane: Lane, batch: Batch, error: RayStreamError, now_ms: int) -> None:
        if isinstance(error, _ELSEWHERE_ERRORS):
            self._inquiries.doubt(lane.topic, now_ms)
        resolved = None
        if lane.idempotent and isinstance(error, SEQUENCE_ERRORS):
            resolved = lane.refused_by_sequence(batch, error, now_ms)
        elif self._acks == 0 and isinstance(error, OutcomeUnknownError):
            resolved = lane.refused(batch, error, now_ms)  # at most once: never sent again
        elif not error.retriable and not isinstance(error, _GONE_ERRORS):
            if isinstance(error, FENCING_ERRORS):
                self._inquiries.drop_producer_id(lane.producer_id)
            resolved = lane.refused(batch, error, now_ms)
        if resolved is not None:
            self._failed(resolved)
        elif isinstance(error, SEQUENCE_ERRORS) and lane.sent[0] is batch:
            batch.retry_at_ms = now_ms  # what was in front of it has gone in the meantime
        else:
            batch.retry_at_ms = now_ms + self._backoff_ms(batch.attempts)

    def _metadata_answered(
        self, request_id: int, answer: MetadataResponse | RayStreamError, now_ms: int
    ) -> None:
        topics = self._inquiries.metadata_answered(request_id)
        if topics is None:
            return
        if isinstance(answer, RayStreamError):
            for topic in topics if answer.retriable else self._unresolved_topics(topics):
                self._inquiries.doubt(topic, now_ms)
            if not answer.retriable:
                self._effects.append(TopicsDescribed(topics, answer))
            return
        self.directory.update(answer, topics)
        self._effects.append(TopicsDescribed(topics))
        for topic in topics:
            for lane in self._lanes_of.get(topic, ()):
                self._ready[lane] = None

    def _unresolved_topics(self, topics: tuple[str, ...]) -> list[str]:
        return [
            topic
            for topic in topics
            if any(lane.unresolved for lane in self._lanes_of.get(topic, ()))
        ]

    def _producer_id_answered(
        self, request_id: int, answer: ProducerIdGiven | RayStreamError, now_ms: int
    ) -> None:
        error = self._inquiries.producer_id_answered(request_id, answer, now_ms)
        for lane in self._lanes.values():
            if lane.producer_id is None and lane.unresolved:
                self._ready[lane] = None
                if error is not None:
                    self._failed(*lane.fail_all(error, now_ms))

    def _abandon(self, error: RayStreamError, now_ms: int) -> None:
        for lane in self._lanes.values():
            self._failed(*lane.fail_all(error, now_ms))
        self._queued.clear()
        self._requests.clear()
        self._inquiries.forget()

    def _failed(self, *resolved: Resolved) -> None:
        for batch, error in resolved:
            self._forget(batch)
            self._effects.append(Failed(batch, error))

    def _forget(self, batch: Batch) -> None:
        batch.resolved = True
        for request_id in batch.lost_attempts:
            self._requests.forget(request_id)

    # --- time --------------------------------------------------------------------------------

    def _time_out_requests(self, now_ms: int) -> None:
        for request_id, batches in self._requests.overdue(now_ms):
            error = OutcomeUnknownError(
                f"no answer within request_timeout_ms={self._config.request_timeout_ms}"
            )
            for batch in batches:
                self._judge(request_id, batch, error, now_ms)

    def _wake_lanes(self, now_ms: int) -> None:
        while self._timers and self._timers[0][0] <= now_ms:
            at_ms, _, lane = heapq.heappop(self._timers)
            if lane.timer_at_ms == at_ms:
                lane.timer_at_ms = None
                self._ready[lane] = None

    def _set_timer(self, lane: Lane, now_ms: int) -> None:
        head = lane.head
        if head is None:
            return
        at_ms = head.created_ms + self._config.delivery_timeout_ms
        waiting = next((batch for batch in lane.sent if batch.attempt is None), None)
        if waiting is not None and waiting.retry_at_ms > now_ms:
            at_ms = min(at_ms, waiting.retry_at_ms)
        if lane.timer_at_ms is None or at_ms < lane.timer_at_ms:
            lane.timer_at_ms = at_ms
            self._timers_pushed += 1
            heapq.heappush(self._timers, (at_ms, self._timers_pushed, lane))

    def _backoff_ms(self, attempts: int) -> int:
        """Exponential, and spread by a fifth so that producers do not come in step."""
        config = self._config
        full = min(config.retry_backoff_max_ms, config.retry_backoff_ms << min(attempts - 1, 20))
        return max(1, round(full * self._rng.uniform(0.8, 1.2)))

    # --- sending -----------------------------------------------------------------------------

    def _serve_lanes(self, now_ms: int) -> None:
        rounds: dict[tuple[int, str], list[tuple[PartitionAddress, Batch]]] = {}
        lanes, self._ready = list(self._ready), {}
        for lane in lanes:
            self._failed(*lane.expire(now_ms, self._config.delivery_timeout_ms))
            if not self._drop_if_gone(lane, now_ms):
                self._collect(lane, rounds, now_ms)
                self._set_timer(lane, now_ms)
            self._note_queue(lane)
        for (_, host), entries in sorted(rounds.items(), key=lambda item: item[0][0]):
            self._send(host, entries, now_ms)

    def _note_queue(self, lane: Lane) -> None:
        if lane.queue:
            self._queued.setdefault(lane.topic, {})[lane] = None
        elif lane.topic in self._queued:
            self._queued[lane.topic].pop(lane, None)

    def _drop_if_gone(self, lane: Lane, now_ms: int) -> bool:
        """Whether the lane's topic incarnation exists no more; then its batches fail."""
        topic = self.directory.topic(lane.topic)
        if topic is not None and topic.topic_id == lane.topic_id:
            return False
        error: RayStreamError
        if topic is not None:
            error = UnknownTopicIdError(
                f"topic {lane.topic!r} was deleted and made anew: what was meant for the old one "
                "is not written to the new one; send it again if it belongs there"
            )
        elif self.directory.is_missing(lane.topic):
            error = UnknownTopicOrPartitionError(
                f"topic {lane.topic!r} was deleted: create it again, or stop sending to it"
            )
        else:
            return False
        self._failed(*lane.fail_all(error, now_ms, gone=True))
        if self._lanes.get((lane.topic_id, lane.partition)) is lane:  # a timer may come again
            del self._lanes[lane.topic_id, lane.partition]
            self._lanes_of[lane.topic].remove(lane)
        return True

    def _collect(
        self,
        lane: Lane,
        rounds: dict[tuple[int, str], list[tuple[PartitionAddress, Batch]]],
        now_ms: int,
    ) -> None:
        """Put what the lane may send now into requests to be; the n-th of each lane together."""
        if not lane.unresolved:
            return
        address = self.directory.address(lane.topic, lane.partition)
        if address is None:
            self._unserved(lane, now_ms)
            return
        if lane.address != address:
            lane.moved(address, now_ms)
        self._inquiries.refresh(lane.topic, now_ms)
        for place, batch in enumerate(lane.sendable(now_ms)):
            if batch.ordinal < 0:
                if not self._identified(lane, now_ms):
                    return
                lane.number(batch, now_ms)
            batch.went_first = lane.sent[0] is batch
            rounds.setdefault((place, address.host), []).append((address, batch))

    def _unserved(self, lane: Lane, now_ms: int) -> None:
        """Nothing serves the partition: find out when that changes, and remember why."""
        self._inquiries.doubt(lane.topic, now_ms)
        found = self.directory.partition(lane.topic, lane.partition)
        reason = f": {found.offline_reason}" if found is not None and found.offline_reason else ""
        if lane.head is not None:
            lane.head.last_error = LeaderNotAvailableError(
                f"nothing serves {lane.topic}-{lane.partition}{reason}"
            )

    def _identified(self, lane: Lane, now_ms: int) -> bool:
        """Whether the lane has a producer id, if it needs one."""
        if not lane.idempotent or lane.producer_id is not None:
            return True
        if lane.spent_id is not None:
            self._inquiries.drop_producer_id(lane.spent_id)
        identity = self._inquiries.identity
        if identity is None:
            self._inquiries.want_producer_id(now_ms)
            return False
        lane.producer_id, lane.epoch = identity.producer_id, identity.producer_epoch
        lane.spent_id = None
        return True

    def _send(self, host: str, entries: list[tuple[PartitionAddress, Batch]], now_ms: int) -> None:
        part: list[tuple[PartitionAddress, Batch]] = []
        size = 0
        for entry in entries:
            if part and size + entry[1].size > REQUEST_BYTES_MAX:
                self._send_request(host, part, now_ms)
                part, size = [], 0
            part.append(entry)
            size += entry[1].size
        self._send_request(host, part, now_ms)

    def _send_request(
        self, host: str, entries: list[tuple[PartitionAddress, Batch]], now_ms: int
    ) -> None:
        request_id = self._new_request_id()
        timeout_ms = self._config.request_timeout_ms
        for _, batch in entries:
            batch.attempt = request_id
            batch.attempts += 1
        batches = tuple(batch for _, batch in entries)
        self._requests.sent(request_id, now_ms + timeout_ms, batches)
        request = ProduceRequest(
            acks=self._acks,
            timeout_ms=timeout_ms,
            partitions=[
                ProducePartition(address.topic_id, batch.partition, address.leader_epoch)
                for address, batch in entries
            ],
            batches=[batch.data for _, batch in entries],
        )
        self._effects.append(SendProduce(request_id, host, request))

    def _new_request_id(self) -> int:
        self._next_request_id += 1
        return self._next_request_id
