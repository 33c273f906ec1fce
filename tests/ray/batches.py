"""Batches sent by hand: as a producer that repeats itself after a restart would."""

import pyarrow as pa

from ray_stream import Cluster
from ray_stream.client.calls import Deadline, call
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.rpc.messages import ProducePartition, ProduceRequest, ProduceResult

TIMEOUT_S = 30.0


def send(
    cluster: Cluster, topic: str, values: list[bytes], *, producer_id: int, sequence: int
) -> ProduceResult:
    """Append one batch to partition 0, or repeat one."""
    (described,) = (one for one in cluster.metadata().topics if one.name == topic)
    columns = RecordColumns(value=pa.array(values, pa.binary()), base_timestamp=1)
    pieces = build_batch(columns, producer_id=producer_id, producer_epoch=0, base_sequence=sequence)
    place = described.partitions[0]
    response = call(
        cluster._services.partitions(place.host).produce,
        ProduceRequest(
            -1,
            int(TIMEOUT_S * 1000),
            [ProducePartition(described.topic_id, 0, place.leader_epoch)],
            [b"".join(pieces)],
        ),
        deadline=Deadline(cluster.clock, TIMEOUT_S),
        what="sending a batch",
    )
    result: ProduceResult = response.results[0]
    if result.error is not None:
        raise result.error.to_error()
    return result
