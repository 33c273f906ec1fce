"""Commits on their way to the coordinator: one after the other, each one as it was first sent.

Owns: their order, which offsets are news, the epoch that each one carries. Refuses: who may commit
(`membership_core`, the coordinator).

One at a time, because a later commit that overtook an earlier one would be undone by it; and
counted, so that a copy that comes late undoes nothing either. The epoch is that of the moment when
it was asked for: so a commit that is repeated after its partition was elsewhere for a while is
refused.
"""

from collections import deque
from collections.abc import Iterable, Mapping

from ray_stream.client.coordinator_core import CoordinatorLink, Errand
from ray_stream.client.membership_events import Effect, Expired, Finished, Identity
from ray_stream.errors import RayStreamError
from ray_stream.groups.commands import (
    STANDALONE_EPOCH,
    CommittedOffset,
    OffsetCommit,
    OffsetsCommittedAnswer,
    PartitionKey,
)


class Commit:
    """Some positions to store."""

    __slots__ = ("epoch", "errand", "give_up_ms", "number", "offsets")

    def __init__(
        self,
        number: int | None,
        offsets: Mapping[PartitionKey, int],
        epoch: int,
        give_up_ms: int,
    ) -> None:
        self.number = number
        """Of the call that waits; None: nobody does."""
        self.offsets = dict(offsets)
        self.epoch = epoch
        self.give_up_ms = give_up_ms
        self.errand: Errand | None = None


class Commits:
    """Everything that one client has to commit."""

    def __init__(self, identity: Identity, link: CoordinatorLink) -> None:
        """Args: link: the way to the coordinator, whose answers come to `answered`."""
        self._identity = identity
        self._link = link
        self._queue: deque[Commit] = deque()
        self._count = 0
        self._latest: dict[PartitionKey, int] = {}
        """What is stored, or on its way."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is on its way."""
        return not self._queue

    def concerns(self, key: PartitionKey) -> bool:
        """Whether an offset of the partition is on its way."""
        return any(key in one.offsets for one in self._queue)

    def begin(self, key: PartitionKey, offset: int) -> None:
        """This is stored already."""
        self._latest[key] = offset

    def forget(self, key: PartitionKey) -> None:
        """The partition is somebody else's."""
        self._latest.pop(key, None)

    def add(self, commit: Commit) -> None:
        """Store these, behind all others; if nobody waits, only what is news."""
        if commit.number is None:
            news = {k: at for k, at in commit.offsets.items() if self._latest.get(k) != at}
            if not news:
                return
            commit.offsets = news
        self._latest |= commit.offsets
        self._queue.append(commit)

    def plan(self, now_ms: int) -> list[Effect]:
        """Have the first one sent."""
        effects: list[Effect] = []
        while self._queue and self._queue[0].errand is None:
            commit = self._queue[0]
            if now_ms >= commit.give_up_ms:
                effects += self._over(commit, Expired(self._link.last_error))
                continue
            self._count += 1
            me = self._identity
            as_member = commit.epoch != STANDALONE_EPOCH
            request = OffsetCommit(
                me.group,
                me.member_id if as_member else "",
                commit.epoch,
                [CommittedOffset(*key, offset) for key, offset in commit.offsets.items()],
                me.instance_id if as_member else "",
                self._count,
            )
            commit.errand = self._link.ask(request, commit, give_up_ms=commit.give_up_ms)
        return effects

    def answered(self, commit: Commit, answer: object) -> list[Effect]:
        """The coordinator's answer, its refusal of all of it, or `Expired`."""
        if commit not in self._queue:
            return []  # it was told that it failed
        if isinstance(answer, OffsetsCommittedAnswer):
            for one in answer.refused:
                self._latest.pop((one.topic_id, one.partition), None)
            self._queue.remove(commit)
            if commit.number is None and not answer.refused:
                return []
            return [Finished(commit.number, answer.refused)]
        return self._over(commit, answer)

    def _over(self, commit: Commit, result: object) -> list[Effect]:
        """It came to nothing, as far as is known."""
        self._queue.remove(commit)
        self._forget_all(commit.offsets)
        return [Finished(commit.number, result)]

    def _forget_all(self, keys: Iterable[PartitionKey]) -> None:
        for key in keys:
            self._latest.pop(key, None)

    def fail(self, error: RayStreamError) -> list[Effect]:
        """None of them can be stored any more."""
        effects: list[Effect] = []
        for commit in list(self._queue):
            if commit.errand is not None:
                self._link.drop(commit.errand)
            effects += self._over(commit, error)
        self._latest.clear()
        return effects
