"""What malloc keeps of large blocks that are free again.

Owns: the one setting of it. Refuses: processes that carry records: there the same large blocks are
needed again at once, and clearing new pages for them would cost more than keeping the old ones.

glibc takes a large block from the kernel and gives it back, until the first one was freed: from
then on it keeps blocks of that size. A message about thousands of partitions is a megabyte, comes
seldom, and would stay in every heap that ever held one.
"""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
LARGE_BYTES = 128 * 1024
"""glibc's own default, which it forgets unless it is set."""


def give_back_large_blocks() -> None:
    """Let malloc return blocks of `LARGE_BYTES` and more to the kernel; elsewhere do nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, LARGE_BYTES)
