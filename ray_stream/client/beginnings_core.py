"""Where partitions begin that a group has given: the committed offset, or as the options say.

Owns: asking the coordinator for committed offsets and leaders for ends, until each partition has a
beginning. Refuses: who has which partition (`membership_core`), positions.

`latest` is fixed here, when a partition is given, and not at the next poll. A partition that is
newer than the group's subscription begins at its first record, whatever the options say, so that
no record falls between. Whatever is away delays only the partitions that wait for it.
"""

from dataclasses import dataclass

from ray_stream.client.consumer_events import NOWHERE
from ray_stream.client.coordinator_core import ATTEMPT_MS, CoordinatorLink, Errand
from ray_stream.client.membership import Begin
from ray_stream.client.membership_events import Effect, Identity, Send
from ray_stream.client.topics import PartitionAddress, TopicDirectory
from ray_stream.config import ConsumerConfig
from ray_stream.errors import StaleMemberEpochError
from ray_stream.groups.commands import OffsetFetch, OffsetsFetched, PartitionKey
from ray_stream.groups.image import grouped
from ray_stream.rpc.messages import (
    EARLIEST,
    LATEST,
    ListOffsetsPartition,
    ListOffsetsRequest,
    ListOffsetsResponse,
)


@dataclass(slots=True, eq=False)
class _Wanting:
    """One partition on its way to a beginning."""

    key: PartitionKey
    topic: str
    is_newer: bool
    """Than the subscription."""
    is_fetched: bool = False
    committed: int = -1
    end: int | None = None
    is_asked: bool = False
    retry_at_ms: int = 0
    attempts: int = 0


@dataclass(slots=True)
class _LookUp:
    """A question to one leader."""

    asked: list[_Wanting]
    deadline_ms: int


class Beginnings:
    """The partitions of one member that have no beginning yet."""

    def __init__(
        self,
        identity: Identity,
        config: ConsumerConfig,
        directory: TopicDirectory,
        link: CoordinatorLink,
    ) -> None:
        """Args: link: the way to the coordinator, whose answers come to `fetched`."""
        self._identity = identity
        self._config = config
        self._directory = directory
        self._link = link
        self._wanting: dict[PartitionKey, _Wanting] = {}
        self._errand: Errand | None = None
        self._asked: list[_Wanting] = []
        self._look_ups: dict[int, _LookUp] = {}
        self._fetch_at_ms = 0

    @property
    def is_empty(self) -> bool:
        """Whether all have their beginnings."""
        return not self._wanting

    def topics(self) -> list[str]:
        """Those whose leaders matter."""
        return sorted({one.topic for one in self._wanting.values() if self._needs_end(one)})

    def want(self, key: PartitionKey, topic: str, *, is_newer: bool) -> None:
        """A partition was given.

        Args:
            key: which.
            topic: its topic's name.
            is_newer: it came after the group had subscribed.
        """
        self._wanting[key] = _Wanting(key, topic, is_newer)

    def forget(self, key: PartitionKey) -> None:
        """It was taken away."""
        self._wanting.pop(key, None)

    def clear(self) -> None:
        """All were."""
        self._wanting.clear()
        self._look_ups.clear()
        if self._errand is not None:
            self._link.drop(self._errand)
            self._errand = None

    # --- what to send ----------------------------------------------------------------------------

    def plan(self, epoch: int, now_ms: int) -> list[Effect]:
        """Ask for what is missing.

        Args:
            epoch: the member's.
            now_ms: monotonic.
        """
        for request_id, look_up in list(self._look_ups.items()):
            if now_ms >= look_up.deadline_ms:
                del self._look_ups[request_id]
                for one in look_up.asked:
                    self._failed(one, now_ms)
        unknown = [one for one in self._wanting.values() if not one.is_fetched]
        if unknown and self._errand is None and now_ms >= self._fetch_at_ms:
            me = self._identity
            request = OffsetFetch(
                me.group, grouped(one.key for one in unknown), me.member_id, epoch
            )
            self._asked = unknown
            self._errand = self._link.ask(request, self)
        return self._plan_look_ups(now_ms)

    def _plan_look_ups(self, now_ms: int) -> list[Effect]:
        hosts: dict[str, list[tuple[_Wanting, PartitionAddress]]] = {}
        for one in self._wanting.values():
            if not self._needs_end(one) or one.is_asked or one.retry_at_ms > now_ms:
                continue
            address = self._directory.address(one.topic, one.key[1])
            if address is None or address.topic_id != one.key[0]:
                self._link.want_metadata()
            else:
                hosts.setdefault(address.host, []).append((one, address))
        effects: list[Effect] = []
        for host, asked in hosts.items():
            request_id = self._link.new_request_id()
            for one, _ in asked:
                one.is_asked = True
            self._look_ups[request_id] = _LookUp([one for one, _ in asked], now_ms + ATTEMPT_MS)
            questions = [
                ListOffsetsPartition(*one.key, address.leader_epoch, LATEST)
                for one, address in asked
            ]
            request = ListOffsetsRequest(questions, self._config.isolation_level)
            effects.append(Send(request_id, host, request))
        return effects

    def _needs_end(self, one: _Wanting) -> bool:
        return one.is_fetched and one.end is None and (self._is_bounded or self._is_latest(one))

    @property
    def _is_bounded(self) -> bool:
        return self._config.until == "end"

    def _is_latest(self, one: _Wanting) -> bool:
        reset = self._config.auto_offset_reset
        return one.committed < 0 and not one.is_newer and reset == "latest"

    def next_deadline_ms(self, now_ms: int) -> int | None:
        """When `plan` has something to do though nothing arrives."""
        due = [one.deadline_ms for one in self._look_ups.values()]
        due += [
            one.retry_at_ms
            for one in self._wanting.values()
            if not one.is_asked and one.retry_at_ms > now_ms
        ]
        if self._errand is None and self._fetch_at_ms > now_ms:
            due.append(self._fetch_at_ms)
        return min(due, default=None)

    # --- answers ---------------------------------------------------------------------------------

    def fetched(self, answer: object, now_ms: int) -> None:
        """What the coordinator says is committed; `StaleMemberEpochError`: ask again."""
        self._errand = None
        if isinstance(answer, StaleMemberEpochError):
            self._fetch_at_ms = now_ms + self._link.backoff_ms(1)
            return
        assert isinstance(answer, OffsetsFetched), "every other error ends the membership"
        offsets = {(one.topic_id, one.partition): one.offset for one in answer.offsets}
        for one in self._asked:
            one.is_fetched = True
            one.committed = offsets.get(one.key, -1)

    def looked_up(self, request_id: int, answer: object, now_ms: int) -> None:
        """What a leader says; late and unknown answers are harmless."""
        look_up = self._look_ups.pop(request_id, None)
        if look_up is None:
            return
        ends: dict[PartitionKey, int] = {}
        if isinstance(answer, ListOffsetsResponse):
            ends = {
                (one.topic_id, one.partition): one.offset
                for one in answer.results
                if one.error is None and one.offset >= 0
            }
        for one in look_up.asked:
            if one.key in ends:
                one.end = ends[one.key]
                one.is_asked = False
            else:
                self._failed(one, now_ms)

    def _failed(self, one: _Wanting, now_ms: int) -> None:
        """Its leader is away or another one; the controller says who."""
        one.is_asked = False
        one.retry_at_ms = now_ms + self._link.backoff_ms(one.attempts)
        one.attempts += 1
        self._link.want_metadata()

    def take(self) -> dict[PartitionKey, Begin]:
        """Those that have a beginning now; they are no concern of this any more."""
        found = {}
        for key, one in list(self._wanting.items()):
            if one.is_fetched and not self._needs_end(one):
                found[key] = self._begin(one)
                del self._wanting[key]
        return found

    def _begin(self, one: _Wanting) -> Begin:
        end = one.end if self._is_bounded else None
        topic_id = one.key[0]
        if one.committed >= 0:
            return Begin(topic_id, one.committed, end)
        if self._is_latest(one):
            assert one.end is not None, "a partition begins when it needs nothing more"
            return Begin(topic_id, one.end, end, fixed_here=True)
        reset = self._config.auto_offset_reset
        nowhere = reset == "error" and not one.is_newer
        return Begin(topic_id, NOWHERE if nowhere else EARLIEST, end)
