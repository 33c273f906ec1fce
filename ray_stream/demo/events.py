"""What the acts, which run in a child process, tell the process that a person looks at.

Owns: the shapes, one JSON object a line. Refuses: pipes and processes (`child`).
"""

import msgspec


class Began(msgspec.Struct, frozen=True, tag=True):
    """A step of the story begins."""

    step: str
    total: int = 0
    """Records that it will go through; 0: unknown."""
    along: str = ""
    """What goes on beside it, at its own pace."""


class Progressed(msgspec.Struct, frozen=True, tag=True):
    """How far a step, and what goes along with it, have come."""

    done: int
    along: int = 0


class Killed(msgspec.Struct, frozen=True, tag=True):
    """`kill -9` of the process of a partition actor."""

    actor: str
    pid: int
    partitions: list[int]
    after: int
    """Records that had been sent."""


class Written(msgspec.Struct, frozen=True, tag=True):
    """The end of the first act."""

    killed: Killed
    start_s: float
    write_s: float
    records: int
    value_bytes: int
    recovered_s: float
    """From the kill until each of the killed partitions acknowledged a record sent after it."""
    live_records: int
    live_s: float


class KilledConsumer(msgspec.Struct, frozen=True):
    """`kill -9` of the process of a consumer actor."""

    actor: str
    pid: int
    after: int
    """Records that the group had handled."""
    moved_s: float
    """From then on until its partitions belonged to living actors."""


class Consumed(msgspec.Struct, frozen=True, tag=True):
    """What a group of consumer actors did in the second act."""

    actors: int
    records: int
    consume_s: float
    killed: KilledConsumer
    repeated: int
    """Records that were handled twice."""
    more_actors: int
    idle: int
    """Of those."""


class Verified(msgspec.Struct, frozen=True, tag=True):
    """The end of the second act."""

    start_s: float
    read_s: float
    records: int
    consumed: Consumed
    verified: list[str]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The end of either act when something did not hold."""

    reason: str


Event = Began | Progressed | Killed | Written | Verified | Failed

DECODER: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
