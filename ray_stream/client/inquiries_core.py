"""What a producer asks the controller: where topics are served, and for a producer id.

Owns: when to ask, one request of each kind at a time, asking again. Refuses: what the answers mean
for batches (`producer_core`).
"""

from collections.abc import Callable

from ray_stream.client.producer_events import (
    Effect,
    RequestMetadata,
    RequestProducerId,
)
from ray_stream.config import ProducerConfig
from ray_stream.errors import RayStreamError
from ray_stream.metadata.commands import InitProducerId, ProducerIdGiven
from ray_stream.rpc.messages import MetadataRequest

REFRESH_MS = 60_000
"""Topics in use are described anew so often, to notice new partitions and settings."""
_OVERDUE_KEPT = 16


class Inquiries:
    """The open questions.

    Args:
        config: time-outs and backoff.
        new_request_id: gives ids that no other request has.
    """

    def __init__(self, config: ProducerConfig, new_request_id: Callable[[], int]) -> None:
        self._timeout_ms = config.request_timeout_ms
        self._backoff_ms = config.retry_backoff_ms
        self._backoff_max_ms = config.retry_backoff_max_ms
        self._new_request_id = new_request_id
        self.identity: ProducerIdGiven | None = None
        """The producer id that lanes start with."""
        self._wanted: dict[str, int] = {}
        """Topics to ask for, and from when on."""
        self._asked: dict[str, int] = {}
        """When each topic was last asked for."""
        self._doubts: dict[str, int] = {}
        """How often in a row asking for a topic did not help."""
        self._metadata: tuple[int, int, tuple[str, ...]] | None = None
        """Request id, deadline, topics."""
        self._overdue: dict[int, tuple[str, ...]] = {}
        """Questions that were asked again; where answers are slow, only late ones ever come."""
        self._id_wanted_at_ms: int | None = None
        self._id_request: tuple[int, int] | None = None
        """Request id, deadline."""

    @property
    def next_deadline_ms(self) -> int | None:
        """When `ask` has something to do, if nothing else happens."""
        times = []
        if self._metadata is not None:
            times.append(self._metadata[1])
        elif self._wanted:
            times.append(min(self._wanted.values()))
        if self._id_request is not None:
            times.append(self._id_request[1])
        elif self._id_wanted_at_ms is not None:
            times.append(self._id_wanted_at_ms)
        return min(times, default=None)

    # --- topics ------------------------------------------------------------------------------

    def want(self, topic: str, now_ms: int) -> None:
        """Ask for a topic at once; an answer to a question asked earlier does not count."""
        self._wanted[topic] = now_ms

    def doubt(self, topic: str, now_ms: int) -> None:
        """What is known of the topic is wrong or incomplete: ask, but not too often."""
        if topic in self._wanted:
            return
        at_ms = now_ms
        if topic in self._asked:
            times = self._doubts[topic] = self._doubts.get(topic, 0) + 1
            pause_ms = min(self._backoff_max_ms, self._backoff_ms << min(times - 1, 20))
            at_ms = max(now_ms, self._asked[topic] + pause_ms)
        self._wanted[topic] = at_ms

    def trust(self, topic: str) -> None:
        """What is known of the topic proved right."""
        self._doubts.pop(topic, None)

    def refresh(self, topic: str, now_ms: int) -> None:
        """The topic is in use: ask again once in a while."""
        asked_ms = self._asked.get(topic)
        if asked_ms is not None and now_ms - asked_ms >= REFRESH_MS:
            self._wanted.setdefault(topic, now_ms)

    def metadata_answered(self, request_id: int) -> tuple[str, ...] | None:
        """The topics that this answer is about; None when there was no such question."""
        if self._metadata is None or self._metadata[0] != request_id:
            return self._overdue.pop(request_id, None)
        _, _, topics = self._metadata
        self._metadata = None
        return topics

    # --- producer id -------------------------------------------------------------------------

    def want_producer_id(self, now_ms: int) -> None:
        """Some lane cannot number its batches."""
        if self._id_request is None and self._id_wanted_at_ms is None:
            self._id_wanted_at_ms = now_ms

    def drop_producer_id(self, producer_id: int | None) -> None:
        """Somebody else uses that id: lanes start with a new one."""
        if self.identity is not None and self.identity.producer_id == producer_id:
            self.identity = None

    def producer_id_answered(
        self, request_id: int, answer: ProducerIdGiven | RayStreamError, now_ms: int
    ) -> RayStreamError | None:
        """Take the id, however late; returns an error that asking again cannot mend."""
        awaited = self._id_request is not None and self._id_request[0] == request_id
        if isinstance(answer, ProducerIdGiven):
            if awaited or self.identity is None:
                self.identity = answer
                self._id_request = self._id_wanted_at_ms = None
            return None
        if not awaited:
            return None
        self._id_request = None
        self._id_wanted_at_ms = now_ms + self._backoff_ms
        return None if answer.retriable else answer

    # --- both --------------------------------------------------------------------------------

    def forget(self) -> None:
        """Ask for nothing more."""
        self._wanted.clear()
        self._metadata = None
        self._id_wanted_at_ms = None
        self._id_request = None

    def ask(self, now_ms: int) -> list[Effect]:
        """The requests to send now."""
        effects: list[Effect] = []
        if self._metadata is not None and now_ms >= self._metadata[1]:
            late_id, _, topics = self._metadata
            self._metadata = None
            self._overdue[late_id] = topics
            if len(self._overdue) > _OVERDUE_KEPT:
                del self._overdue[next(iter(self._overdue))]
            for topic in topics:
                self._wanted.setdefault(topic, now_ms)
        due = tuple(topic for topic, at_ms in self._wanted.items() if at_ms <= now_ms)
        if due and self._metadata is None:
            for topic in due:
                del self._wanted[topic]
                self._asked[topic] = now_ms
            request_id = self._new_request_id()
            self._metadata = (request_id, now_ms + self._timeout_ms, due)
            effects.append(RequestMetadata(request_id, MetadataRequest(list(due))))
        if self._id_request is not None and now_ms >= self._id_request[1]:
            self._id_request = None
            self._id_wanted_at_ms = now_ms
        if self._id_wanted_at_ms is not None and self._id_wanted_at_ms <= now_ms:
            self._id_wanted_at_ms = None
            request_id = self._new_request_id()
            self._id_request = (request_id, now_ms + self._timeout_ms)
            effects.append(RequestProducerId(request_id, InitProducerId()))
        return effects
