"""What happens to a producer's core, and what it wants done.

Owns: the shapes. Refuses: deciding (`producer_core`) and doing (`sender`, the simulator).
"""

from dataclasses import dataclass

from ray_stream.client.batch import Batch
from ray_stream.errors import RayStreamError
from ray_stream.metadata.commands import InitProducerId, ProducerIdGiven
from ray_stream.rpc.messages import (
    MetadataRequest,
    MetadataResponse,
    ProduceRequest,
    ProduceResponse,
)

# --- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchesBuilt:
    """Batches to deliver, behind all earlier ones of their partitions."""

    batches: list[Batch]


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
