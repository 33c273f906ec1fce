"""Memory for long reads.

Owns: where it comes from. Refuses: files, and what is read.

A read of megabytes into fresh memory costs more for the pages that the kernel has to clear than for
the bytes: malloc hands long pieces back to the kernel as soon as they are free. Arrow's pool keeps
them for a moment, so that a reader that drops what it has read gets the same pages again.
"""

import pyarrow as pa

from ray_stream.log.storage import File

SHORT_BYTES = 64 * 1024
"""Below that, malloc keeps the pages as well."""


def new_buffer(length: int) -> memoryview:
    """Room for so many bytes, with arbitrary contents.

    Raises:
        MemoryError: there is not that much.
    """
    return memoryview(pa.allocate_buffer(length)).cast("B")


def read_view(file: File, length: int, position: int) -> memoryview:
    """As `File.read`, for reads of any length."""
    if length < SHORT_BYTES:
        return memoryview(file.read(length, position))
    view = new_buffer(length)
    return view[: file.read_into(view, position)]
