"""What goes into the consumer's machine and what comes out of it.

Owns: the shapes. Refuses: everything else.

A start is an offset, or one of `EARLIEST`, `LATEST`, `KEEP` and `NOWHERE`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_stream.config import INTERNAL_PREFIX
from ray_stream.rpc.messages import FetchRequest, ListOffsetsRequest, MetadataRequest
from ray_stream.types import TopicPartition

KEEP = -3
"""Stay where it is, if it is assigned already; else begin as `EARLIEST`."""
NOWHERE = -4
"""There is no position: an error to be raised until somebody seeks."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """What is followed: topics as they grow, or whatever matches."""

    names: tuple[str, ...] = ()
    patterns: tuple[re.Pattern[str], ...] = ()

    def covers(self, topic: str) -> bool:
        """Whether the topic belongs to it; a pattern has to match the whole name.

        What is internal is no user's, whatever matches it.
        """
        if topic in self.names:
            return True
        matches = any(one.fullmatch(topic) for one in self.patterns)
        return matches and not topic.startswith(INTERNAL_PREFIX)


@dataclass(frozen=True, slots=True)
class Assign:
    """Read these partitions from now on, and no others."""

    starts: Mapping[TopicPartition, int]
    ends: Mapping[TopicPartition, int] | None = None
    """Where to stop; None: never. With ends, partitions that appear later are not taken in."""
    subscription: Subscription | None = None
    """Its partitions that appear later are read from their beginning: none of their records is
    older than the subscription."""
    topic_ids: Mapping[str, str] | None = None
    """Given by a group: the incarnations of these topics. One that is gone is no error, since the
    group will take it away. None: the topics as they are now, chosen by the user."""


@dataclass(frozen=True, slots=True)
class Seek:
    """Go on from somewhere else, in partitions that are assigned."""

    starts: Mapping[TopicPartition, int]


@dataclass(frozen=True, slots=True)
class Pause:
    """Deliver nothing of these until `Resume`; what is buffered stays."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class Resume:
    """Deliver these again."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, or an error in its place; late, repeated and unknown ones are harmless."""

    request_id: int
    answer: Any


@dataclass(frozen=True, slots=True)
class Brought:
    """What stands in the file where `ConsumerCore.wanted` said."""

    name: TopicPartition
    wanted: int
    """Bytes that were to be read."""
    view: memoryview | None
    """None: the file cannot be read."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed, or records were taken."""


Event = Assign | Seek | Pause | Resume | Answered | Brought | Tick


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request, and bring its answer back as `Answered`."""

    request_id: int
    host: str
    """The partition actor; empty for the controller."""
    request: FetchRequest | ListOffsetsRequest | MetadataRequest


@dataclass(frozen=True, slots=True)
class Reassigned:
    """A subscription's partitions changed."""

    added: tuple[TopicPartition, ...] = field(default=())
    removed: tuple[TopicPartition, ...] = field(default=())


Effect = Send | Reassigned
