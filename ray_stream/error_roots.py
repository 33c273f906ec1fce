"""The two classes that every error of ours descends from.

Owns: what all errors have. Refuses: the errors; all of them are exported by `errors`.
"""

from typing import ClassVar


class RayStreamError(Exception):
    """Base class of every error of ours."""

    code: ClassVar[int] = -1
    retriable: ClassVar[bool] = False


class RetriableError(RayStreamError):
    """The same request may succeed later."""

    retriable = True
