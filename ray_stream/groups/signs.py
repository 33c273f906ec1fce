"""What one life of a coordinator learnt and will forget: sessions, clocks, the cluster's topics.

Owns: who was heard when, until when a revocation may take, the last view of the cluster. Refuses:
facts (`image`), decisions.

Two clocks, and neither is a wall's. Sessions and rebalance time-outs run on the shell's monotonic
clock (`clock_ms`), and in full again after a recovery: a jump of the wall clock ends no session.
Committed offsets age on the coordinator's own clock (`served_ms`): the time that any life of it
ran, by the monotonic clock again, kept in the log. A wall clock that leaps by years, or a cluster
that was switched off for a month, makes no offset old: its readers had no chance to come back.
The price is that offsets of a cluster that mostly stands still are kept longer than
`offsets_retention_minutes` of calendar time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ray_stream.groups.commands import SeenTopic
from ray_stream.groups.image import Group
from ray_stream.groups.patterns import compiled

MemberKey = tuple[str, str]
"""Group id, member id."""


class View:
    """The cluster's topics, as somebody showed them."""

    def __init__(self, version: int, topics: Iterable[SeenTopic]) -> None:
        """Args: version: the controller's. topics: all of them."""
        self.version = version
        self.topics: dict[str, SeenTopic] = {topic.topic_id: topic for topic in topics}
        self._ids = {topic.name: topic.topic_id for topic in self.topics.values()}
        self._matching: dict[str, Sequence[str]] = {}

    @classmethod
    def of_group(cls, group: Group) -> "View":
        """What the group's own facts say, before the cluster was seen in this life."""
        return cls(-1, (SeenTopic(t[0], t[1], [""] * t[2]) for t in group.topics.values()))

    def named(self, name: str) -> str | None:
        """The id of a topic."""
        return self._ids.get(name)

    def matching(self, regex: str) -> Sequence[str]:
        """Ids of the topics whose whole names match; found once a view."""
        if regex not in self._matching:
            pattern = compiled(regex)
            self._matching[regex] = [
                topic_id for name, topic_id in self._ids.items() if pattern.matches(name)
            ]
        return self._matching[regex]


# --- signs ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """A member is alive; or said that it will be back within its session."""

    member: MemberKey
    session_timeout_ms: int


@dataclass(frozen=True, slots=True)
class Suspected:
    """A member is said to be dead."""

    member: MemberKey
    grace_ms: int


@dataclass(frozen=True, slots=True)
class Viewed:
    """The cluster's topics were shown."""

    view: View


@dataclass(frozen=True, slots=True)
class Looked:
    """All time-outs were looked at; none is due before `next_due_ms`."""

    next_due_ms: int


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Everything that ages was looked at."""

    next_check_ms: int


Sign = Heard | Suspected | Viewed | Looked | Cleaned

FAR_MS = 2**62


@dataclass(slots=True)
class Signs:
    """Everything that one life of a coordinator learnt and will forget."""

    begun_ms: int = 0
    """The monotonic clock at the begin of this life,"""
    served_before_ms: int = 0
    """and the coordinator's own clock then."""
    clock_ms: int = 0
    view: View | None = None
    sessions: dict[MemberKey, int] = field(default_factory=dict)
    """Until when each member has to be heard."""
    revocations: dict[MemberKey, int] = field(default_factory=dict)
    """Until when each member that has to release something has to have done so."""
    next_due_ms: int = 0
    """No time-out is due before; moved on only when all were looked at."""
    next_check_ms: int = 0
    """When offsets and empty groups are looked at again."""

    @property
    def served_ms(self) -> int:
        """The coordinator's own clock."""
        return self.served_before_ms + self.clock_ms - self.begun_ms

    def notice(self, sign: Sign) -> None:
        """Take one sign in."""
        match sign:
            case Heard():
                self.hear(sign.member, sign.session_timeout_ms)
            case Suspected():
                until = self.clock_ms + sign.grace_ms
                if sign.member in self.sessions:
                    self.sessions[sign.member] = min(self.sessions[sign.member], until)
                    self.next_due_ms = min(self.next_due_ms, until)
            case Viewed():
                self.view = sign.view
            case Looked():
                self.next_due_ms = sign.next_due_ms
            case Cleaned():
                self.next_check_ms = sign.next_check_ms

    def hear(self, member: MemberKey, session_timeout_ms: int) -> None:
        """A session begins in full."""
        until = self.clock_ms + session_timeout_ms
        self.sessions[member] = until
        self.next_due_ms = min(self.next_due_ms, until)

    def watch_revocation(self, member: MemberKey, timeout_ms: int) -> None:
        """A member has to release something; what it had to before does not give it longer."""
        until = self.revocations.setdefault(member, self.clock_ms + timeout_ms)
        self.next_due_ms = min(self.next_due_ms, until)

    def forget(self, member: MemberKey) -> None:
        """A member is gone."""
        self.sessions.pop(member, None)
        self.revocations.pop(member, None)

    def due(self) -> Mapping[MemberKey, str]:
        """Members whose time is over, and why; looks only when something can be due."""
        if self.clock_ms < self.next_due_ms:
            return {}
        found = {
            member: "its session timed out"
            for member, until in self.sessions.items()
            if until <= self.clock_ms
        }
        for member, until in self.revocations.items():
            if until <= self.clock_ms:
                found.setdefault(member, "it did not release its partitions in time")
        return found

    def next_after(self, gone: Mapping[MemberKey, str]) -> int:
        """When the first time-out of those that are left is due."""
        return min(
            (
                until
                for times in (self.sessions, self.revocations)
                for member, until in times.items()
                if member not in gone
            ),
            default=FAR_MS,
        )
