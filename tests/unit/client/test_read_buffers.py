"""Memory is used again when, and only when, nobody looks at it any more."""

import pyarrow as pa

from ray_stream.client.read_buffers import BUFFER_BYTES, BUFFERS_MAX, ReadBuffers


def address(view: memoryview) -> int:
    return int(pa.py_buffer(view).address)


def test_memory_that_nobody_looks_at_is_used_again() -> None:
    buffers = ReadBuffers()
    first = address(buffers.take(100))
    assert address(buffers.take(200)) == first


def test_memory_that_a_column_looks_at_is_left_alone() -> None:
    buffers = ReadBuffers()
    view = buffers.take(8)
    view[:] = b"abcdefgh"
    column = pa.Array.from_buffers(pa.uint8(), 4, [None, pa.py_buffer(view[2:6])])
    del view
    for _ in range(2 * BUFFERS_MAX):
        buffers.take(8)[:] = b"********"
    assert bytes(column.to_pylist()) == b"cdef"
    place = column.buffers()[1].address - 2
    del column
    assert address(buffers.take(8)) == place


def test_what_is_larger_than_a_buffer_gets_memory_of_its_own() -> None:
    assert len(ReadBuffers().take(BUFFER_BYTES + 1)) == BUFFER_BYTES + 1
