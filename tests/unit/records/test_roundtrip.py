"""What was built is what is read."""

import pyarrow as pa

from ray_stream.records.batch import check_batch, split_batches
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.reader import to_user_batch
from ray_stream.records.schema import RECORD_SCHEMA


def test_two_batches_one_behind_the_other_are_read_back_with_offsets_and_values() -> None:
    columns = RecordColumns(value=pa.array([b"a", None, b"c"], pa.binary()), base_timestamp=5)
    batch = b"".join(build_batch(columns))
    check_batch(batch, batch_bytes_max=1024)

    found = []
    for position, (header, payload) in enumerate(split_batches(batch + batch)):
        stamped = header._replace(base_offset=3 * position)
        found.append(to_user_batch(stamped, payload, "flights", 2, start_offset=1))

    table = pa.Table.from_batches(found)
    assert table.schema == RECORD_SCHEMA
    assert table["offset"].to_pylist() == [1, 2, 3, 4, 5]
    assert table["value"].to_pylist() == [None, b"c", b"a", None, b"c"]
    assert set(table["timestamp"].to_pylist()) == {5}
