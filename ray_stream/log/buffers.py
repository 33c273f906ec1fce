"""Memory for long reads.

Owns: where it comes from. Refuses: files, and what is read.

A read of megabytes into fresh memory costs more for the pages that the kernel has to clear than for
the bytes: malloc hands long pieces back to the kernel as soon as they are free. Arrow's pool keeps
them for a moment, so that a reader that drops what it has read gets the same pages again.
"""

import numpy as np
import pyarrow as pa

from ray_stream.log.storage import File

SHORT_BYTES = 64 * 1024
"""Below that, malloc keeps the pages as well."""
FRAME_BYTES = 512 * 1024
"""What arrives in shorter pieces comes from malloc, too: the pool's first piece costs a process two
huge pages, 4 MiB, which those that see only small requests do without."""


def new_buffer(length: int) -> memoryview:
    """Room for so many bytes, with arbitrary contents.

    Raises:
        MemoryError: there is not that much.
    """
    return memoryview(pa.allocate_buffer(length)).cast("B")


def new_frame(length: int) -> memoryview:
    """As `new_buffer`, for what arrives: mostly small pieces, and sometimes long ones."""
    if length < FRAME_BYTES:
        return np.empty(length, np.uint8).data
    return new_buffer(length)


def read_view(file: File, length: int, position: int) -> memoryview:
    """As `File.read`, for reads of any length."""
    if length < SHORT_BYTES:
        return memoryview(file.read(length, position))
    view = new_buffer(length)
    return view[: file.read_into(view, position)]
