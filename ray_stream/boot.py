"""Which boot of which kernel this is.

Owns: reading it. Refuses: trusting it beyond what it is: two processes with one id see one kernel,
not necessarily one file system, and another id tells that a power loss may have happened since.
"""

from pathlib import Path


def boot_id() -> str:
    """The kernel's id of this boot; empty where there is none, which reads as "another boot"."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
