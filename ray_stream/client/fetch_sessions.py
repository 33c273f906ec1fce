"""A consumer's requests that are under way: what to ask which partition actor, and when to give up.

Owns: request ids, deadlines, the sharing of `fetch_max_bytes` among requests. Refuses: what an
answer means for a partition (`consumer_core`), time of its own, transport.

A partition actor has at most one fetch of ours that counts. It waits there for records, and while
it does, a partition that it does not carry may need one (it was sought, resumed, or drained): then
a wider one supersedes it. What a superseded one brings is used if it still fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ray_stream.client.consumer_events import Send
from ray_stream.client.positions import Budget, PartitionState
from ray_stream.client.topics import PartitionAddress
from ray_stream.config import ConsumerConfig, MiB
from ray_stream.metadata.commands import PartitionKey
from ray_stream.rpc.messages import (
    FetchPartition,
    FetchRequest,
    ListOffsetsPartition,
    ListOffsetsRequest,
    MetadataRequest,
)

REQUEST_BYTES_MAX = 8 * MiB
"""More in one answer only delays its first record."""
EXTENT_BYTES_MAX = 64 * MiB
"""Granted of one partition at once: to be read from its leader's file, if that is seen here."""
PARTITION_BYTES_MAX = MiB
"""Asked of one partition when many share a request."""
BUSY_WAIT_MS = 20
"""How long a fetch may wait at its actor while other partitions have records buffered."""
OVERDUE_MS = 1_000
"""A fetch this late is a reason to ask the controller where its partitions are."""
METADATA_TIMEOUT_MS = 3_000


@dataclass(slots=True)
class Asked:
    """One partition of a request, as it stood when it was sent."""

    state: PartitionState
    generation: int
    offset: int


@dataclass(slots=True)
class Outstanding:
    """One request that may still be answered."""

    request_id: int
    host: str
    deadline_ms: int
    asked: dict[PartitionKey, Asked] = field(default_factory=dict)
    overdue_ms: int | None = None
    """When to ask the controller about it; only for fetches."""
    reserved: int = 0
    """Bytes that its answer may bring."""
    may_wait: bool = False
    """Its actor waits for records, or is lost: superseding it costs little."""
    topics: list[str] | None = None
    is_metadata: bool = False


class FetchSessions:
    """The table of requests under way."""

    def __init__(self, config: ConsumerConfig, budget: Budget) -> None:
        """Args: config: limits and timeouts; budget: what is buffered already."""
        self._config = config
        self._budget = budget
        self._outstanding: dict[int, Outstanding] = {}
        self._fetches: dict[str, Outstanding] = {}
        self._reserved = 0
        self._last_id = 0
        self._hosts = 1
        self._without_files: dict[str, None] = {}
        """Partition actors whose files cannot be read here."""

    def expect_hosts(self, hosts: int) -> None:
        """So many partition actors will share the budget."""
        self._hosts = max(1, hosts)

    def read_no_files_of(self, host: str) -> None:
        """This partition actor sends bytes from now on."""
        self._without_files[host] = None

    @property
    def request_bytes(self) -> int:
        """What one fetch may bring: every actor can have one under way, and one is being read."""
        return min(REQUEST_BYTES_MAX, max(1, self._config.fetch_max_bytes // (self._hosts + 1)))

    @property
    def has_room(self) -> bool:
        """Whether another fetch may be sent."""
        free = self._config.fetch_max_bytes - self._budget.used - self._reserved
        return free >= self.request_bytes

    # --- sending ---------------------------------------------------------------------------------

    def fetch(
        self,
        host: str,
        wanting: Sequence[tuple[PartitionState, PartitionAddress]],
        now_ms: int,
        *,
        busy: bool,
    ) -> Send | None:
        """A fetch of these partitions, unless the one under way will do.

        Args:
            host: the partition actor.
            wanting: what it should carry.
            now_ms: monotonic.
            busy: other records wait to be handed out, so the actor should not wait for long.
        """
        current = self._fetches.get(host)
        carried: list[tuple[PartitionState, PartitionAddress]] = []
        if current is not None:
            carried = _carried_by(current)
            urgent = any(_is_urgent(state) for state, _ in wanting)
            if carried and not (current.may_wait and urgent):
                return None
            self._release(current)
            current.overdue_ms = None
        elif not self.has_room:
            return None
        partitions = [*wanting, *carried]
        wait_ms = self._config.fetch_max_wait_ms
        if busy:
            wait_ms = min(wait_ms, BUSY_WAIT_MS)
        request = self._new(host, now_ms + wait_ms + self._config.request_timeout_ms)
        request.overdue_ms = now_ms + wait_ms + OVERDUE_MS
        request.reserved = self.request_bytes
        request.may_wait = all(
            state.fetch_position >= state.readable_end for state, _ in partitions
        )
        self._reserved += request.reserved
        self._fetches[host] = request
        share = max(request.reserved // len(partitions), PARTITION_BYTES_MAX)
        entries = [
            self._entry(request, state, address, min(share, request.reserved))
            for state, address in partitions
        ]
        message = FetchRequest(
            max_wait_ms=wait_ms,
            # What is known to be there is not waited for: whole batches may never add up to more.
            min_bytes=self._config.fetch_min_bytes if request.may_wait else 1,
            max_bytes=request.reserved,
            partitions=entries,
            isolation_level=self._config.isolation_level,
            extent_bytes=0 if host in self._without_files else EXTENT_BYTES_MAX,
        )
        return Send(request.request_id, host, message)

    def _entry(
        self,
        request: Outstanding,
        state: PartitionState,
        address: PartitionAddress,
        bytes_max: int,
    ) -> FetchPartition:
        _bind(request, state, address)
        return FetchPartition(
            address.topic_id,
            state.name.partition,
            address.leader_epoch,
            state.fetch_position,
            bytes_max,
        )

    def look_up(
        self, host: str, wanting: Sequence[tuple[PartitionState, PartitionAddress]], now_ms: int
    ) -> Send:
        """Ask for the positions of partitions that have none."""
        request = self._new(host, now_ms + self._config.request_timeout_ms)
        request.overdue_ms = now_ms + OVERDUE_MS
        questions = []
        for state, address in wanting:
            assert state.reset is not None, "a partition without a position has a reset"
            _bind(request, state, address)
            questions.append(
                ListOffsetsPartition(
                    address.topic_id, state.name.partition, address.leader_epoch, state.reset
                )
            )
        message = ListOffsetsRequest(questions, self._config.isolation_level)
        return Send(request.request_id, host, message)

    def ask_metadata(self, topics: list[str] | None, now_ms: int) -> Send:
        """Ask the controller."""
        request = self._new("", now_ms + METADATA_TIMEOUT_MS)
        request.is_metadata = True
        request.topics = topics
        return Send(request.request_id, "", MetadataRequest(topics))

    def _new(self, host: str, deadline_ms: int) -> Outstanding:
        self._last_id += 1
        request = Outstanding(self._last_id, host, deadline_ms)
        self._outstanding[request.request_id] = request
        return request

    # --- ending ----------------------------------------------------------------------------------

    def answered(self, request_id: int) -> Outstanding | None:
        """The request that this answers; None when it was answered or given up before."""
        request = self._outstanding.pop(request_id, None)
        if request is not None:
            self._forget(request)
        return request

    def expired(self, now_ms: int) -> list[Outstanding]:
        """The requests that are given up now."""
        late = [one for one in self._outstanding.values() if one.deadline_ms <= now_ms]
        for request in late:
            del self._outstanding[request.request_id]
            self._forget(request)
        return late

    def any_overdue(self, now_ms: int) -> bool:
        """Whether an answer is so late that its actor may be gone; each is told once a while."""
        overdue = False
        for request in self._outstanding.values():
            if request.overdue_ms is not None and request.overdue_ms <= now_ms:
                request.overdue_ms = now_ms + OVERDUE_MS
                request.may_wait = True
                overdue = True
        return overdue

    def clear(self) -> None:
        """Forget every request; answers that still come are ignored."""
        self._outstanding.clear()
        self._fetches.clear()
        self._reserved = 0

    def next_timer_ms(self) -> int | None:
        """When `expired` or `any_overdue` has something to tell."""
        first: int | None = None
        for one in self._outstanding.values():  # a loop, because every step and wait asks this
            at_ms = one.deadline_ms
            if one.overdue_ms is not None and one.overdue_ms < at_ms:
                at_ms = one.overdue_ms
            if first is None or at_ms < first:
                first = at_ms
        return first

    def _forget(self, request: Outstanding) -> None:
        if self._fetches.get(request.host) is request:
            del self._fetches[request.host]
        self._release(request)

    def _release(self, request: Outstanding) -> None:
        self._reserved -= request.reserved
        request.reserved = 0


def _carried_by(request: Outstanding) -> list[tuple[PartitionState, PartitionAddress]]:
    """The partitions that still wait for this request."""
    return [
        (asked.state, PartitionAddress(topic_id, request.host, asked.state.leader_epoch))
        for (topic_id, _), asked in request.asked.items()
        if asked.state.request_id == request.request_id
    ]


def _is_urgent(state: PartitionState) -> bool:
    """Whether it should not wait for the answer to a fetch that does not carry it."""
    return not state.buffer or state.fetch_position < state.readable_end


def _bind(request: Outstanding, state: PartitionState, address: PartitionAddress) -> None:
    state.request_id = request.request_id
    state.host = address.host
    state.leader_epoch = address.leader_epoch
    request.asked[address.topic_id, state.name.partition] = Asked(
        state, state.generation, state.fetch_position
    )
