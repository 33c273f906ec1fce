"""Which partition of the internal topic a group belongs to.

Owns: that one function, which may never change: the logs on disk are laid out by it. Refuses: who
leads the partition (the controller's metadata).
"""

import zlib


def partition_of(group_id: str, partitions: int) -> int:
    """The partition whose leader coordinates the group.

    Args:
        group_id: any name.
        partitions: how many the internal topic has; 16, fixed when it is made.
    """
    return zlib.crc32(group_id.encode()) % partitions
