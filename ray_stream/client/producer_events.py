"""What happens to a producer's core, and what it wants done.

Owns: the shapes. Refuses: deciding (`producer_core`) and doing (`sender`, the simulator).
"""

from dataclasses import dataclass
from typing import NamedTuple

from ray_stream.client.batch import Batch
from ray_stream.errors import RayStreamError
from ray_stream.metadata.commands import InitProducerId, ProducerIdGiven
from ray_stream.rpc.messages import (
    MetadataRequest,
    MetadataResponse,
    ProduceRequest,
    ProduceResponse,
)
from ray_stream.types import SEQUENCE_MAX


class Pass(NamedTuple):
    """What lets lone records of a partition go out past the core, numbered in its name."""

    producer_id: int
    producer_epoch: int
    next_sequence: int
    room: int
    """So many may be under way before the core takes note of them."""
    host: str
    leader_epoch: int
    until_ms: int
    """Monotonic."""

    def after(self, count: int) -> "Pass":
        """What is left of it when so many went."""
        return self._replace(
            next_sequence=(self.next_sequence + count) & SEQUENCE_MAX, room=self.room - count
        )


class Alone:
    """One lone record that went out by a pass."""

    __slots__ = ("batch", "is_written", "request_id", "sent_ms")

    def __init__(self, request_id: int, batch: Batch, sent_ms: int) -> None:
        self.request_id = request_id
        self.batch = batch
        self.sent_ms = sent_ms
        self.is_written = False
        """Not, when its caller was interrupted: then nobody knows."""


# --- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchesBuilt:
    """Batches to deliver, behind all earlier ones of their partitions."""

    batches: list[Batch]


@dataclass(frozen=True, slots=True)
class WentAlone:
    """Batches went out by passes, each partition's in this order."""

    sent: list[Alone]


@dataclass(frozen=True, slots=True)
class ProduceAnswered:
    """The answer to a `SendProduce`, however late."""

    request_id: int
    answer: ProduceResponse | RayStreamError


@dataclass(frozen=True, slots=True)
class MetadataAnswered:
    """The answer to a `RequestMetadata`."""

    request_id: int
    answer: MetadataResponse | RayStreamError


@dataclass(frozen=True, slots=True)
class ProducerIdAnswered:
    """The answer to a `RequestProducerId`."""

    request_id: int
    answer: ProducerIdGiven | RayStreamError


@dataclass(frozen=True, slots=True)
class TopicWanted:
    """Somebody waits for news of a topic; answered by `TopicsDescribed`."""

    topic: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """Nothing more is to be delivered: give up what is there."""

    error: RayStreamError


Event = (
    BatchesBuilt
    | WentAlone
    | ProduceAnswered
    | MetadataAnswered
    | ProducerIdAnswered
    | TopicWanted
    | Tick
    | Abandoned
)

# --- effects -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendProduce:
    """Send this to a partition actor; effects of one kind are carried out in their order."""

    request_id: int
    host: str
    request: ProduceRequest


@dataclass(frozen=True, slots=True)
class RequestMetadata:
    """Ask the controller."""

    request_id: int
    request: MetadataRequest


@dataclass(frozen=True, slots=True)
class RequestProducerId:
    """Ask the controller."""

    request_id: int
    request: InitProducerId


@dataclass(frozen=True, slots=True)
class TopicsDescribed:
    """There are news of topics in the directory, or an answer that ends the waiting."""

    topics: tuple[str, ...]
    error: RayStreamError | None = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """A batch is acknowledged."""

    batch: Batch
    base_offset: int
    """-1 with `acks=0`."""
    append_timestamp: int
    """ms, where the log's clock stamps the records; else -1."""
    durability: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A batch was given up; `OutcomeUnknownError`: it may stand in the log all the same."""

    batch: Batch
    error: RayStreamError


Effect = SendProduce | RequestMetadata | RequestProducerId | TopicsDescribed | Delivered | Failed


def is_acknowledgement(event: Event) -> bool:
    """Whether it only says that batches are written."""
    return (
        isinstance(event, ProduceAnswered)
        and isinstance(event.answer, ProduceResponse)
        and all(result.error is None for result in event.answer.results)
    )
