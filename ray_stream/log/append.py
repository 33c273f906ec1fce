"""Which batches of a request enter the log, at which offsets, and with which header.

Owns: judging and stamping. Refuses: writing, and everything that needs a file.

A refused batch hurts no other, except the later ones of its own producer, which sequence rules then
refuse by themselves.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ray_stream.errors import RayStreamError
from ray_stream.log.options import LogOptions
from ray_stream.log.producers import ProducersDraft
from ray_stream.records.batch import check_batch
from ray_stream.records.header import (
    HEADER_BYTES,
    BatchHeader,
    Buffer,
    encode_stamped,
    stamp_header,
)


class Appended(NamedTuple):
    """Where a batch stands. It is durable once `synced_end` has reached `next_offset`."""

    base_offset: int
    next_offset: int
    append_timestamp: int
    """The leader's clock, ms; that of the first time for a duplicate."""
    duplicate: bool = False
    """The batch was there already: a retry whose first answer was lost."""


class Staged(NamedTuple):
    """A batch that will be written."""

    number: int
    """Which of the request's batches it is."""
    header: BatchHeader
    """As stamped."""
    encoded: Buffer
    """The header's bytes, to be written in front of the payload."""
    payload: memoryview


class Stamps(NamedTuple):
    """What the leader stamps into each header of a request."""

    next_offset: int
    leader_epoch: int
    append_timestamp: int
    durable_offset: int


def stage(
    batches: Sequence[Buffer],
    options: LogOptions,
    draft: ProducersDraft,
    stamps: Stamps,
    *,
    produced: bool = True,
) -> tuple[list[Appended | RayStreamError], list[Staged]]:
    """Judge batches one after the other.

    Args:
        batches: as they were received.
        options: the log's settings.
        draft: what is known of producers.
        stamps: what to stamp; offsets count from `next_offset` on.
        produced: as in `check_batch`.

    Returns:
        An answer for each batch, and what to write so that the answers are true.
    """
    results: list[Appended | RayStreamError] = []
    staged: list[Staged] = []
    offset, leader_epoch, append_timestamp, durable_offset = stamps
    last = len(batches) - 1
    for number, batch in enumerate(batches):
        raw = memoryview(batch)
        try:
            header = check_batch(raw, batch_bytes_max=options.batch_bytes_max, produced=produced)
        except RayStreamError as error:
            results.append(error)
            continue
        verdict = draft.check(header)
        if verdict is None:
            header = stamp_header(
                header,
                base_offset=offset,
                leader_epoch=leader_epoch,
                append_timestamp=append_timestamp,
                durable_offset=durable_offset,
                log_append_time=options.log_append_time,
            )
            if number < last:  # only what comes behind it is judged by it
                draft.add(header)
            encoded = encode_stamped(raw, header)
            staged.append(Staged(number, header, encoded, raw[HEADER_BYTES:]))
            next_offset = header.next_offset
            results.append(Appended(offset, next_offset, append_timestamp))
            offset = next_offset
        elif isinstance(verdict, RayStreamError):
            results.append(verdict)
        else:
            results.append(
                Appended(verdict.base_offset, verdict.next_offset, verdict.append_timestamp, True)
            )
    return results, staged


def refuse_rest(
    results: list[Appended | RayStreamError], first: int, error: RayStreamError
) -> None:
    """What was judged after the first unwritten batch was judged as if that were there."""
    results[first:] = [error] * (len(results) - first)
