"""A process's first record does not wait for the import of pandas."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from ray_stream.records import arrays

SCRIPT = """
import sys
from ray_stream.client.columns import Columns
from ray_stream.client.partitioner import partitions_of_keys
from ray_stream.client.rows import binary_column
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.batch import check_batch
from ray_stream.records.reader import to_user_batch
from ray_stream.client.decoding import integers

keys, values = binary_column([b"k", None, b"l"]), binary_column([b"v", b"w", None])
partitions_of_keys(keys, 6)
columns = RecordColumns(key=keys, value=values, base_timestamp=5)
batch = b"".join(build_batch(columns))
header = check_batch(batch)._replace(base_offset=7)
rows = to_user_batch(header, batch[128:], "flights", 3, 7)
assert integers(rows["offset"]).tolist() == [7, 8, 9]
assert rows["partition"][2].as_py() == 3
print("pandas" in sys.modules)
"""


def test_sending_and_reading_import_no_pandas() -> None:
    pytest.importorskip("pandas")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"


def test_views_are_what_arrow_says() -> None:
    numbers = pa.array([1, -2, 3, 4, 5], pa.int32()).slice(1, 3)
    assert arrays.integers(numbers).tolist() == [-2, 3, 4]
    assert arrays.integers(numbers.slice(0, 0)).dtype == np.int32
    cells = pa.array([None, b"a", None, b"b"] * 5, pa.binary()).slice(3, 11)
    assert arrays.validity(cells).tolist() == cells.is_valid().to_pylist()
    assert arrays.validity(pa.array([b"a"], pa.binary())).tolist() == [True]
    assert arrays.validity(pa.nulls(3, pa.null())).tolist() == [False] * 3
    for value, kind in (("flights", pa.string()), (-7, pa.int32()), (2**40, pa.int64())):
        assert arrays.repeated(value, kind, 3).equals(pa.array([value] * 3, kind))
