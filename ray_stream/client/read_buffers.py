"""Memory that fetched bytes are read into, used again as soon as nobody looks at it.

Owns: a few large buffers. Refuses: knowing who looks at them: it counts references, and a buffer
of which a record, a column or a table still holds a view is left alone.

Pages that are touched for the first time cost more than reading a file that is in the page cache.
"""

import sys

import numpy as np
import numpy.typing as npt

BUFFER_BYTES = 8 * 1024 * 1024
BUFFERS_MAX = 8
_OWN_REFERENCES = 3
"""The pool's list, the loop's name, and the argument of `getrefcount` itself."""


class ReadBuffers:
    """Buffers of one consumer."""

    def __init__(self) -> None:
        self._buffers: list[npt.NDArray[np.uint8]] = []

    def take(self, length: int) -> memoryview:
        """Writable memory of that length; what was in it before is still there."""
        if length > BUFFER_BYTES:
            return memoryview(np.empty(length, np.uint8))
        for buffer in self._buffers:
            if sys.getrefcount(buffer) == _OWN_REFERENCES:
                return memoryview(buffer)[:length]
        buffer = np.empty(BUFFER_BYTES, np.uint8)
        if len(self._buffers) < BUFFERS_MAX:
            self._buffers.append(buffer)
        return memoryview(buffer)[:length]
