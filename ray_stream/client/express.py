"""The way of a lone record past the producer's thread: from its caller right to the socket.

Owns: passes, the numbers that they give out, and what went out by them until the sender takes note.
Refuses: deciding who gets a pass (`producer_core`), everything that is not one plain record.

Where nothing else of a partition waits, a change of threads costs a lone record more than all work
on it. So the sender gives such a partition a pass: the next sequence number, and how many batches
may go. A caller builds its batch, notes it, and writes the request itself; its answer goes to the
sender, which takes note of what went before it does anything else with that partition. Before the
core hears of anything but acknowledgements, all passes are taken back, so that the lane is then
what it was when the pass was given.

A record is accepted by one append to a list, which no Ctrl-C can cut in half: the number follows
from the length of the list, and the bytes under way are counted from it. What was noted and not
certainly written is sent again, byte for byte, by the sender.
"""

import itertools
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from ray_stream.client.batch import Batch
from ray_stream.client.batching_core import Batcher
from ray_stream.client.columns import Single
from ray_stream.client.producer_events import Alone, Pass, ProduceAnswered
from ray_stream.clock import Clock
from ray_stream.config import ProducerConfig
from ray_stream.errors import OutcomeUnknownError, RayStreamError
from ray_stream.metadata.commands import TopicMetadata
from ray_stream.rpc.messages import ProducePartition, ProduceRequest
from ray_stream.rpc.services import Services
from ray_stream.types import SEQUENCE_MAX

LANES_MAX = 64
"""Partitions that may have a pass; the one that was used longest ago loses its own."""
LOOK_MS = 250
"""While records go by passes, the sender looks this often, so that time-outs are noticed."""

Key = tuple[str, int]
"""Topic id and partition."""


class _Lane:
    """One partition's pass."""

    __slots__ = ("given", "lock", "sent")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """Held by whoever numbers, and by whoever gives or takes back."""
        self.given: Pass | None = None
        self.sent: list[Alone] = []
        """What went out and the sender has not taken note of."""


class Express:
    """All passes of one producer.

    Args:
        services: how to reach partitions.
        config: acknowledgements, time-outs.
        clock: monotonic.
        batcher: builds batches.
        put: hands an event, or None, to the sender, and wakes it.
    """

    def __init__(
        self,
        services: Services,
        config: ProducerConfig,
        clock: Clock,
        batcher: Batcher,
        put: Callable[[ProduceAnswered | None], None],
    ) -> None:
        self._services = services
        self._acks = -1 if config.acks == "all" else config.acks
        self._room = config.max_in_flight
        self._timeout_ms = config.request_timeout_ms
        self._patience_ms = min(config.request_timeout_ms, config.delivery_timeout_ms)
        self._clock = clock
        self._batcher = batcher
        self._put = put
        self._lanes: dict[Key, _Lane] = {}
        """By last use."""
        self._wanting: dict[Key, None] = {}
        """Whose pass has not all its room."""
        self._request_ids = itertools.count(-1, -1)  # the core's own count up
        self._is_watched = False
        """Whether the sender looks by itself."""
        self._watched_until_ms = 0
        self._is_ended = False

    # --- callers ---------------------------------------------------------------------------------

    def send(self, topic: TopicMetadata, record: Single, is_free: Callable[[], bool]) -> bool:
        """Send a record at once, if that may be; False: nothing was done.

        Args:
            topic: where it goes.
            record: with a key or a value; not too large for the topic.
            is_free: whether nothing older is still to be numbered, and there is room for it.

        Raises:
            InvalidTimestampError: as `build_single`.
            RayStreamError: `is_free` did.
        """
        if not self._lanes or not self._batcher.builds_singles:
            return False
        partition = self._batcher.choose(topic, record)
        lane = self._lanes.get((topic.topic_id, partition))
        if lane is None:
            return False
        with lane.lock:
            given = lane.given
            now_ms = self._clock.monotonic_ms()
            if given is None or len(lane.sent) >= given.room or now_ms >= given.until_ms:
                return False
            batch = self._batcher.build_single(topic, record, partition)
            sequence = (given.next_sequence + len(lane.sent)) & SEQUENCE_MAX
            batch.stamp(given.producer_id, given.producer_epoch, sequence)
            alone = Alone(next(self._request_ids), batch, now_ms)
            if not is_free():
                return False
            lane.sent.append(alone)  # from here on it is accepted
            self._write(given, alone)
        if not self._is_watched:
            self._put(None)
        return True

    def _write(self, given: Pass, alone: Alone) -> None:
        batch = alone.batch
        request = ProduceRequest(
            self._acks,
            self._timeout_ms,
            [ProducePartition(batch.topic_id, batch.partition, given.leader_epoch)],
            [batch.data],
        )
        reply = partial(_reply, self._put, alone.request_id)
        try:
            self._services.partitions(given.host).produce(request, reply)
        except RayStreamError as error:
            reply(error)
        except Exception as error:  # noqa: BLE001 - a transport failed in its own way: who knows
            reply(OutcomeUnknownError(f"the transport failed: {error!r}"))
        alone.is_written = True

    @property
    def record_bytes(self) -> int:
        """Of all records that the sender has not taken note of."""
        return sum(alone.batch.record_bytes for alone in self._pending())

    def records(self, generation: int | None) -> int:
        """How many of them; only up to this flush, if one is given."""
        return sum(
            1
            for alone in self._pending()
            if generation is None or alone.batch.generation <= generation
        )

    def _pending(self) -> list[Alone]:
        return [alone for lane in list(self._lanes.values()) for alone in list(lane.sent)]

    # --- the sender ------------------------------------------------------------------------------

    def noted(self, batch: Batch) -> None:
        """A lone record went out by the sender: the next one of this partition may have a pass."""
        if self._is_ended:
            return
        key = batch.topic_id, batch.partition
        lane = self._lanes.pop(key, None)
        self._lanes[key] = _Lane() if lane is None else lane
        self._wanting[key] = None
        if len(self._lanes) > LANES_MAX:
            oldest = next(iter(self._lanes))
            with self._lanes[oldest].lock:
                self._lanes[oldest].given = None
            if not self._lanes[oldest].sent:  # else with the next one
                del self._lanes[oldest]
                self._wanting.pop(oldest, None)

    def take(self, adopt: Callable[[list[Alone]], None], now_ms: int, *, close: bool) -> None:
        """Hand over what went out, each partition's in order, all at once.

        Args:
            adopt: takes note of it, at this very time.
            now_ms: monotonic.
            close: take all passes back first. So it is as well when something of it times out now.
        """
        close = close or any(
            alone.sent_ms + self._patience_ms <= now_ms for alone in self._pending()
        )
        went: list[tuple[_Lane, int]] = []
        sent: list[Alone] = []
        for key, lane in self._lanes.items():
            if lane.sent or (close and lane.given is not None):
                self._wanting[key] = None
                with lane.lock:
                    if close:
                        lane.given = None
                    went.append((lane, len(lane.sent)))
                    sent += lane.sent
        if not sent:
            return
        adopt(sent)  # not under a lock: it may call the user's code
        for lane, count in went:
            with lane.lock:
                del lane.sent[:count]
                if lane.given is not None:
                    lane.given = lane.given.after(count)
        self._watched_until_ms = now_ms + 2 * LOOK_MS

    def give(self, pass_of: Callable[[Key], Pass | None]) -> None:
        """Give passes anew where one was used or taken back, or lone records go by the sender."""
        for key in list(self._wanting):
            given, lane = pass_of(key), self._lanes[key]
            if given is not None and given.room >= self._room:
                del self._wanting[key]
            with lane.lock:
                if not lane.sent:  # else the sender takes note of that first, and comes back
                    lane.given = given

    def watch(self, now_ms: int) -> bool:
        """Whether the sender is to look again within `LOOK_MS`; else callers wake it."""
        self._is_watched = now_ms < self._watched_until_ms
        if not self._is_watched and self._pending():  # before a caller could see that
            self._is_watched = True
        return self._is_watched

    def end(self) -> None:
        """No more passes."""
        self._is_ended = True

    def after_fork(self) -> None:
        """This is a copy in a child: locks may be held."""
        self._lanes.clear()


def _reply(
    put: Callable[[ProduceAnswered | None], None],
    request_id: int,
    answer: Any,  # noqa: ANN401 - the answer, or an error
) -> None:
    put(ProduceAnswered(request_id, answer))
