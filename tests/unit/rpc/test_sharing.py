"""What is received about thousands of partitions shares what is the same."""

import numpy as np
import pyarrow as pa

from ray_stream.config import TopicConfig
from ray_stream.log.buffers import FRAME_BYTES, new_frame
from ray_stream.metadata.commands import (
    AssignedPartition,
    BrokerAssignment,
    PartitionServed,
    ReportServed,
)
from ray_stream.rpc import wire


def test_partitions_of_an_assignment_share_names_and_settings() -> None:
    config = TopicConfig(durability="replicated")
    partitions = [
        AssignedPartition("a" * 32, "flights", number, "d" * 32, "0", True, config, 0, 2)
        for number in range(2)
    ]
    sent = BrokerAssignment(1, 0, [], [], partitions, [])
    first, second = wire.decode([bytes(one) for one in wire.encode(sent)]).partitions
    assert [first, second] == partitions
    for name in ("topic_id", "topic", "directory_id", "slot", "config"):
        assert getattr(first, name) is getattr(second, name), name


def test_what_is_served_shares_the_ids_of_topics() -> None:
    served = [PartitionServed("".join(["a"] * 32), number, 0, 0) for number in range(2)]
    sent = [bytes(one) for one in wire.encode(ReportServed(0, 0, "host", served))]
    first, second = wire.decode(sent).partitions
    assert first.topic_id is second.topic_id


def test_what_arrives_in_short_pieces_does_not_touch_arrows_pool() -> None:
    before = pa.total_allocated_bytes()
    short = new_frame(FRAME_BYTES - 1)
    assert pa.total_allocated_bytes() == before
    long = new_frame(FRAME_BYTES)
    assert pa.total_allocated_bytes() > before
    for view in (short, long):
        np.frombuffer(view, np.uint8)[:] = 7
        assert (view.itemsize, view.readonly) == (1, False)
