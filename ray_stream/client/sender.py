"""The thread behind a producer: it alone runs the core, and carries out what the core wants.

Owns: the thread, the order of effects, requests to services, waiting for outcomes. Refuses:
deciding (`producer_core`), accepting records (`buffer`).

One thread owns the core, and it is never the main thread: Ctrl-C, which Python raises there between
any two instructions, cannot leave the core half-way. Everything reaches it through one queue, whose
`put` is safe from answers' threads, signal handlers and finalizers.

The thread is a daemon. Python joins other threads before it runs exit hooks, so a thread that lives
until its producer is closed would hang the exit; daemons still run during exit hooks, where no new
thread can start (`exit_hook` flushes there).
"""

import logging
import math
import os
import random
import threading
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from ray_stream.client.asked import FlushAsked, LookUp, Stop, TopicAnswer
from ray_stream.client.batch import Batch
from ray_stream.client.batching_core import Batcher
from ray_stream.client.buffer import SendBuffer, Taken
from ray_stream.client.columns import Columns, Single
from ray_stream.client.express import LOOK_MS, Express
from ray_stream.client.outcomes import Outcomes
from ray_stream.client.producer_core import ProducerCore
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
    RequestMetadata,
    RequestProducerId,
    SendProduce,
    Tick,
    TopicsDescribed,
    TopicWanted,
    WentAlone,
    is_acknowledgement,
)
from ray_stream.client.record_checks import BATCH_OVERHEAD_BYTES
from ray_stream.client.topics import TopicDirectory
from ray_stream.clock import Clock
from ray_stream.config import ProducerConfig
from ray_stream.errors import (
    ClosedError,
    ConcurrentAccessError,
    ForkedProcessError,
    InvariantViolationError,
    OutcomeUnknownError,
    RayStreamError,
    TimeoutExpiredError,
)
from ray_stream.metadata.commands import TopicMetadata
from ray_stream.records.header import Compression
from ray_stream.rpc.services import Reply, Services

_LOG = logging.getLogger("ray_stream.producer")
_IDLE_S = 3600.0
_BUILT_AT_ONCE = 16
_WAIT_S = 0.5
"""No wait is longer without a look whether the thread still lives."""


_Item = Event | FlushAsked | LookUp | Stop | None


class Sender:
    """Delivers what is put into its buffer.

    Args:
        services: how to reach controller and partitions.
        config: the producer's options.
        clock: both clocks.
        rng: for the choice of partitions and the spread of retries.
        name: for the thread and for messages.
    """

    def __init__(
        self,
        services: Services,
        config: ProducerConfig,
        clock: Clock,
        rng: random.Random,
        name: str,
    ) -> None:
        self.config = config
        self.clock = clock
        self.directory = TopicDirectory()
        self.outcomes = Outcomes()
        self.buffer = SendBuffer(config, clock, self.check, self.check_wait, self._wake)
        self.name = name
        self._services = services
        self._inbox: SimpleQueue[_Item] = SimpleQueue()
        self._core = ProducerCore(config, rng, self.directory)
        compression = Compression[(config.compression_type or "none").upper()]
        self._batcher = Batcher(config.batch_size, compression, rng)
        self.express = Express(services, config, clock, self._batcher, self._inbox.put)
        self.buffer.outside = lambda: self.express.record_bytes
        self._lock = threading.Lock()
        self._unresolved: dict[int, int] = {}
        """Records that were built and are unresolved, by flush."""
        self._flushes: list[FlushAsked] = []
        self._look_ups: dict[str, list[TopicAnswer]] = {}
        """Waiting for a question that was not asked yet."""
        self._asked: dict[str, list[TopicAnswer]] = {}
        """Waiting for the answer."""
        self._pid = os.getpid()
        self._forked = False
        self._closed = False
        self._stopping = False
        self._is_orphaned = False
        self._broken: BaseException | None = None
        self.ended = threading.Event()
        """The thread is gone: everything is resolved, or it broke."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # --- callers -----------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse service where there is none any more.

        Raises:
            ForkedProcessError: this is a fork of the process that made the producer.
            ClosedError: it was closed.
            InvariantViolationError: its thread stopped by an error of ours.
        """
        if self._forked:
            raise ForkedProcessError(
                f"this producer was made in process {self._pid} and used in its fork "
                f"{os.getpid()}: make another one there"
            )
        if self._closed:
            raise ClosedError("this producer was closed: make another one")
        self.check_broken()

    def check_broken(self) -> None:
        """Say so if the thread stopped by an error of ours."""
        if self._broken is not None:
            raise InvariantViolationError(
                f"this producer stopped by an error of its own: {self._broken!r}; records that "
                "were not acknowledged may be written or not; make another one"
            ) from self._broken

    def check_wait(self) -> None:
        """Refuse to wait in the one thread that everybody waits for.

        Raises:
            ConcurrentAccessError: this is a callback.
        """
        if threading.current_thread() is self._thread:
            raise ConcurrentAccessError(
                "this call would wait for the producer's own thread, in which on_delivery runs: "
                "leave it to another thread"
            )

    @property
    def forked(self) -> bool:
        """Whether this is the copy in a forked child, where nothing can be delivered."""
        return self._forked

    @property
    def is_running(self) -> bool:
        """Whether the thread has work, or may get some."""
        return not self.ended.is_set()

    def send_alone(self, topic: TopicMetadata, record: Single, size: int) -> bool:
        """Have a lone record go out from this very thread, if that may be; else nothing was done.

        Args:
            topic: where it goes.
            record: with a key or a value.
            size: its bytes.
        """
        fits = size + BATCH_OVERHEAD_BYTES <= min(
            topic.config.max_message_bytes, topic.config.max_batch_bytes
        )
        if not fits or threading.current_thread() is self._thread:
            return False
        return self.express.send(topic, record, lambda: self.buffer.is_free(topic.name, size))

    def look_up(self, topic: str, wait_ms: int) -> RayStreamError | None:
        """Ask the controller about a topic and wait for an answer to that question.

        Returns:
            None when the directory is up to date; else why it is not.
        """
        answer = TopicAnswer()
        self._inbox.put(LookUp(topic, answer))
        if self.wait(answer.done, wait_ms / 1000):
            return answer.error
        return TimeoutExpiredError(
            f"topic {topic!r} was not found out about within max_block_ms={wait_ms}: the "
            "controller did not answer; nothing was sent"
        )

    def flush(self, timeout_s: float | None) -> int:
        """Send everything that was accepted, and wait until it is resolved.

        Returns:
            Records that are still unresolved at the timeout.
        """
        generation = self.buffer.seal_all()
        asked = FlushAsked(generation, threading.Event())
        self._inbox.put(asked)
        return 0 if self.wait(asked.done, timeout_s) else self._remaining(generation)

    def wait(self, event: threading.Event, timeout_s: float | None) -> bool:
        """Wait for the sender, in slices so that its end is noticed; Ctrl-C ends it at once."""
        self.check_wait()
        give_up_ms = None
        if timeout_s is not None:
            give_up_ms = self.clock.monotonic_ms() + math.ceil(timeout_s * 1000)
        while True:
            left_s = _WAIT_S
            if give_up_ms is not None:
                left_s = min(left_s, (give_up_ms - self.clock.monotonic_ms()) / 1000)
            if event.wait(max(0.0, left_s)):
                return True
            if self.ended.is_set() and not event.is_set():
                self.check_broken()
                raise ClosedError("this producer was closed while somebody waited for it")
            if give_up_ms is not None and self.clock.monotonic_ms() >= give_up_ms:
                return False

    def close(self) -> None:
        """Accept nothing more; what was accepted is delivered, then the thread ends."""
        self._closed = True
        self.buffer.seal_all()
        self.buffer.interrupt()
        self._inbox.put(Stop())

    def close_later(self) -> None:
        """As `close`, without a lock: finalizers run in any thread at any moment."""
        self._closed = self._is_orphaned = True
        self._inbox.put(Stop())

    def abandon(self, error: RayStreamError) -> None:
        """Accept nothing more and deliver nothing more."""
        self._closed = True
        self.buffer.seal_all()
        self.buffer.interrupt()
        self._inbox.put(Abandoned(error))
        self._inbox.put(Stop())

    @property
    def unresolved_records(self) -> int:
        """Accepted, and neither acknowledged nor failed."""
        return self._remaining(None)

    @property
    def requests_in_flight(self) -> int:
        """Produce requests whose answer is awaited."""
        return self._core.requests_in_flight

    def after_fork(self) -> None:
        """This is a copy in a child process: its thread is gone, its locks may be held."""
        self._forked = True
        self.buffer.open.clear()
        self.express.after_fork()

    def _remaining(self, generation: int | None) -> int:
        # In this order: what is built meanwhile is counted twice then, and never not at all.
        unbuilt = self.express.records(generation) + self.buffer.unbuilt_records(generation)
        with self._lock:
            return unbuilt + sum(
                count
                for number, count in self._unresolved.items()
                if generation is None or number <= generation
            )

    def _wake(self) -> None:
        self._inbox.put(None)

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_over():
                arrived = self._arrived()
                self._take_note()
                for item in arrived:
                    self._take(item)
                self._deliver_sealed()
                self._look_at_time()
                self._settle()
                self.express.give(self._pass_for)
        except BaseException as error:  # noqa: BLE001 - callers must not wait for a dead thread
            self._broken = error
            _LOG.critical("%s stopped by an error of its own", self.name, exc_info=True)
            self.buffer.interrupt()
        finally:
            untold = self.outcomes.take_error() if self._is_orphaned else None
            if untold is not None:
                _LOG.error("%s was never closed, so nobody is told: %s", self.name, untold)
            self.ended.set()

    def _look_at_time(self) -> None:
        if self._is_due(self.clock.monotonic_ms()):
            self._step(Tick())

    def _is_over(self) -> bool:
        return self._stopping and not self._unresolved and not self.unresolved_records

    def _arrived(self) -> list[_Item]:
        """What arrived, after waiting for it until something is due."""
        now_ms = self.clock.monotonic_ms()
        due = [self.buffer.seal_due(now_ms, self._core.backlog), self._core.next_deadline_ms]
        if self.express.watch(now_ms):
            due.append(now_ms + LOOK_MS)
        left_ms = min((at_ms for at_ms in due if at_ms is not None), default=None)
        items: list[_Item] = []
        try:
            if self.buffer.has_sealed:
                items.append(self._inbox.get_nowait())
            elif left_ms is None:
                items.append(self._inbox.get(timeout=_IDLE_S))
            else:
                items.append(self._inbox.get(timeout=max(0, left_ms - now_ms) / 1000))
            while True:
                items.append(self._inbox.get_nowait())
        except Empty:
            return items

    def _take(self, item: _Item) -> None:
        match item:
            case None:
                pass
            case FlushAsked():
                self._flushes.append(item)
            case LookUp(topic, answer):
                self._look_ups.setdefault(topic, []).append(answer)
                self._step(TopicWanted(topic))
            case Stop():
                self._take_note(close=True)
                self.express.end()
                self.buffer.seal_all()
                self._stopping = True
            case Abandoned(error):
                self._drop_sealed(error)
                self._step(item)
            case _:
                self._step(item)

    def _deliver_sealed(self) -> None:
        """Build what is sealed, and send it; so much at a time that answers are not kept."""
        self.buffer.seal_due(self.clock.monotonic_ms(), self._core.backlog)
        for _ in range(_BUILT_AT_ONCE):
            taken = self.buffer.take()
            if taken is None:
                return
            try:
                batches = self._built(taken)
            except RayStreamError as error:
                self._unbuilt(taken, taken.columns(), error)
                continue
            self._take_note(close=True)  # before these are numbered, and before nobody waits
            self._count(batches)
            self.buffer.taken(taken.granted, sum(batch.record_bytes for batch in batches))
            self._step(BatchesBuilt(batches))

    def _count(self, batches: Sequence[Batch]) -> None:
        with self._lock:
            for batch in batches:
                count = self._unresolved.get(batch.generation, 0)
                self._unresolved[batch.generation] = count + batch.record_count

    def _take_note(self, *, close: bool = False) -> None:
        """Let the core know what went out past it.

        Args:
            close: take passes back first. So it is as well when something is due: the core looks at
                the time in every step, and with passes out nothing but acknowledgements may happen.
        """
        now_ms = self.clock.monotonic_ms()
        close = close or self._is_due(now_ms)
        self.express.take(partial(self._adopt, now_ms), now_ms, close=close)

    def _is_due(self, now_ms: int) -> bool:
        due_ms = self._core.next_deadline_ms
        return due_ms is not None and due_ms <= now_ms

    def _adopt(self, now_ms: int, sent: list[Alone]) -> None:
        batches = [alone.batch for alone in sent]
        self._count(batches)
        self.buffer.adopted(sum(batch.record_bytes for batch in batches))
        self._perform_all(WentAlone(sent), now_ms)

    def _pass_for(self, key: tuple[str, int]) -> Pass | None:
        if self._stopping or self.buffer.has_sealed:
            return None
        return self._core.pass_for(*key, self.clock.monotonic_ms())

    def _built(self, taken: Taken) -> list[Batch]:
        single = taken.single() if self._batcher.builds_singles else None
        if single is not None:
            partition = self._batcher.choose(taken.topic, single)
            batch = self._batcher.build_single(taken.topic, single, partition)
            self.express.noted(batch)
            return [batch]
        return self._batcher.build(taken.topic, taken.columns())

    def _drop_sealed(self, error: RayStreamError) -> None:
        while (taken := self.buffer.take()) is not None:
            self._unbuilt(taken, taken.columns(), error)

    def _unbuilt(self, taken: Taken, columns: Columns, error: RayStreamError) -> None:
        self.outcomes.unbuilt(taken.topic.name, columns, error)
        self.buffer.taken(taken.granted, 0)
        self.buffer.release(0)

    def _step(self, event: Event) -> None:
        now_ms = self.clock.monotonic_ms()
        if self._is_due(now_ms) or not is_acknowledgement(event):
            self._take_note(close=True)
        self._perform_all(event, now_ms)

    def _perform_all(self, event: Event, now_ms: int) -> None:
        for effect in self._core.step(event, now_ms):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SendProduce(request_id, host, request):
                self._request(
                    lambda: partial(self._services.partitions(host).produce, request),
                    partial(ProduceAnswered, request_id),
                )
            case RequestMetadata(request_id, question):
                for topic in question.topics or ():
                    self._asked.setdefault(topic, []).extend(self._look_ups.pop(topic, ()))
                self._request(
                    lambda: partial(self._services.controller.metadata, question),
                    partial(MetadataAnswered, request_id),
                )
            case RequestProducerId(request_id, command):
                self._request(
                    lambda: partial(self._services.controller.init_producer_id, command),
                    partial(ProducerIdAnswered, request_id),
                )
            case TopicsDescribed(topics, error):
                for answer in [one for topic in topics for one in self._asked.pop(topic, ())]:
                    answer.error = error
                    answer.done.set()
            case Delivered(batch):
                self._resolved(batch)
                self.outcomes.delivered(effect)
            case Failed(batch, error):
                self._resolved(batch)
                self.outcomes.failed(batch, error)

    def _request(
        self,
        service: Callable[[], Callable[[Reply[Any]], None]],
        event_of: Callable[[Any], Event],
    ) -> None:
        """Call a service; its answer becomes an event, whatever goes wrong."""
        put = self._inbox.put

        def reply(answer: Any) -> None:  # noqa: ANN401 - the answer of any request
            put(event_of(answer))

        try:
            service()(reply)
        except RayStreamError as error:
            reply(error)
        except Exception as error:  # noqa: BLE001 - a transport failed in its own way: who knows
            _LOG.warning("%s could not send a request", self.name, exc_info=True)
            reply(OutcomeUnknownError(f"the transport failed: {error!r}"))

    def _resolved(self, batch: Batch) -> None:
        self.buffer.release(batch.record_bytes)
        with self._lock:
            left = self._unresolved[batch.generation] - batch.record_count
            if left:
                self._unresolved[batch.generation] = left
            else:
                del self._unresolved[batch.generation]

    def _settle(self) -> None:
        """End the flushes whose records are all resolved."""
        for flush in list(self._flushes):
            if not self._remaining(flush.generation):
                self._flushes.remove(flush)
                flush.done.set()
