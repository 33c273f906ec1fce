"""`verify` and `repair`: a data directory, with nothing running on it.

Owns: how findings and reports read, which logs a repair takes on, exit statuses. Refuses: what is
right and what is wrong (`log.verify`, `log.repair`).
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.progress import Progress

from ray_stream.boot import boot_id
from ray_stream.cli.application import FAILED
from ray_stream.cli.data_directory import CountingStorage, broker_directories, unused
from ray_stream.cli.options import debug_option, json_option
from ray_stream.cli.output import note, print_json, progress
from ray_stream.clock import SystemClock
from ray_stream.config import TopicConfig
from ray_stream.errors import CorruptMetadataError, RayStreamError
from ray_stream.log import directory
from ray_stream.log.checkpoint import read_checkpoint
from ray_stream.log.offline import read_marker
from ray_stream.log.options import LogOptions
from ray_stream.log.repair import repair_partition
from ray_stream.log.storage import DiskStorage
from ray_stream.log.verify import Finding, verify_directory
from ray_stream.metadata import journal
from ray_stream.types import NO_OFFSET, Durability

_data_dir = click.argument(
    "data_dir", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DATA_DIR"
)


class Log(NamedTuple):
    """One log in a broker directory."""

    path: str
    name: str
    """`topic-partition`, or what is known of it."""
    options: LogOptions


@click.command()
@_data_dir
@json_option
@debug_option
@click.pass_context
def verify(ctx: click.Context, data_dir: Path, as_json: bool) -> None:
    """Check every checksum, offset and index entry in a data directory; changes nothing.

    DATA_DIR is as given to start, or a directory inside of it. Its cluster must be stopped.

    Exits with 1 when there is anything to report. A finding begins with its kind, from bad to
    harmless: corrupt (records that were durable are damaged), unusable (a file without which
    nothing is served), offline (a sync failed: see repair), torn (an unfinished end, which the next
    start cuts off), hint (an index or snapshot, which is made again when it is needed).
    """
    roots = broker_directories(data_dir)
    findings = []
    with ExitStack() as held, progress(speed=True) as shown:
        for root in roots:
            held.enter_context(unused(root))
        sizes = sum(one.stat().st_size for root in roots for one in root.rglob("*.log"))
        for finding in _verified(roots, sizes, shown):
            findings.append(finding)
            if not as_json:
                click.echo(_line(finding))
    if as_json:
        print_json([_plain(finding) for finding in findings])
    many = len(findings)
    note(f"{many or 'no'} finding{'s' * (many != 1)} in {sizes:,} bytes of records")
    if findings:
        ctx.exit(FAILED)


def _verified(roots: list[Path], sizes: int, shown: Progress) -> Iterator[Finding]:
    task = shown.add_task("verifying", total=sizes or None)
    storage = CountingStorage(lambda length: shown.advance(task, length))
    for root in roots:
        yield from verify_directory(storage, str(root))


def _line(finding: Finding) -> str:
    name = _name(finding.path)
    return f"{name}: {finding}" if name else str(finding)


def _plain(finding: Finding) -> dict[str, Any]:
    has_records = finding.first_offset != NO_OFFSET
    return {
        "kind": str(finding.kind),
        "partition": _name(finding.path),
        "path": finding.path,
        "position": finding.position,
        "first_offset": finding.first_offset if has_records else None,
        "next_offset": finding.next_offset if has_records else None,
        "message": finding.message,
    }


def _name(path: str) -> str:
    """`topic-partition` of a file in a log; empty where it belongs to none."""
    parent = path.rpartition("/")[0]
    parsed = directory.parse_partition_name(parent.rpartition("/")[2])
    if parsed is None:
        return ""
    hint = directory.read_partition_hint(DiskStorage(), parent)
    return f"{hint.topic if hint else parsed.topic_id}-{parsed.partition}"


@click.command()
@_data_dir
@json_option
@debug_option
@click.pass_context
def repair(ctx: click.Context, data_dir: Path, as_json: bool) -> None:
    """Bring back partitions that went offline after a failed sync, or lost their checkpoint.

    DATA_DIR is as given to start, or a directory inside of it. Its cluster must be stopped; the
    next start serves what was repaired. Each such log is read again from the disk, not from the
    page cache. Other logs are left alone.

    Exits with 1 when records that were acknowledged cannot be read any more, or a repair failed.
    """
    storage = DiskStorage()
    reports: list[dict[str, Any]] = []
    with ExitStack() as held, progress() as shown:
        roots = broker_directories(data_dir)
        for root in roots:
            held.enter_context(unused(root))
        broken = [
            log for root in roots for log in _logs(storage, str(root)) if _needs(storage, log)
        ]
        task = shown.add_task("repairing", total=len(broken))
        for log in broken:
            report = _repaired(storage, log)
            reports.append(report)
            if not as_json:
                click.echo(_told(report))
            shown.advance(task)
    if as_json:
        print_json(reports)
    elif not reports:
        click.echo("nothing to repair: no log is offline")
    if any(report["error"] or report["lost"] for report in reports):
        ctx.exit(FAILED)


def _logs(storage: DiskStorage, root: str) -> Iterator[Log]:
    metadata = f"{root}/{directory.METADATA_NAME}"
    if storage.is_directory(metadata):
        yield Log(metadata, "the metadata log", journal.OPTIONS)
    for topic_id, partition in directory.list_partitions(storage, root):
        path = directory.partition_path(root, topic_id, partition)
        hint = directory.read_partition_hint(storage, path)
        config = hint.config if hint else TopicConfig()
        options = LogOptions(
            topic=hint.topic if hint else topic_id,
            topic_id=topic_id,
            partition=partition,
            durability=Durability(config.durability),
            segment_bytes=config.segment_bytes,
            segment_ms=config.segment_ms,
            index_interval_bytes=config.index_interval_bytes,
            batch_bytes_max=config.max_batch_bytes,
            log_append_time=config.message_timestamp_type == "LogAppendTime",
        )
        yield Log(path, options.name, options)


def _needs(storage: DiskStorage, log: Log) -> bool:
    if read_marker(storage, log.path) is not None:
        return True
    try:
        read_checkpoint(storage, log.path)
    except CorruptMetadataError:
        return True
    return False


def _repaired(storage: DiskStorage, log: Log) -> dict[str, Any]:
    try:
        report = repair_partition(
            storage, log.path, log.options, boot_id=boot_id(), now_ms=SystemClock().now_ms()
        )
    except RayStreamError as error:
        return {"log": log.name, "path": log.path, "error": str(error), "lost": []}
    return {
        "log": log.name,
        "path": log.path,
        "error": "",
        "reason": report.reason,
        "start_offset": report.start_offset,
        "kept_end": report.kept_end,
        "bytes_cut": report.bytes_cut,
        "lost": [one._asdict() for one in report.lost],
        "readable_again": [one._asdict() for one in report.readable_again],
        "checkpoint_rebuilt": report.checkpoint_rebuilt,
    }


def _told(report: dict[str, Any]) -> str:
    if report["error"]:
        return f"{report['log']}: not repaired: {report['error']}"
    parts = [f"records [{report['start_offset']}, {report['kept_end']}) are kept"]
    if report["lost"]:
        parts.append(f"but {_ranges(report['lost'])} cannot be read")
    if report["readable_again"]:
        parts.append(f"{_ranges(report['readable_again'])} can be read again")
    parts.append(f"{report['bytes_cut']} bytes behind them were cut off")
    if report["checkpoint_rebuilt"]:
        parts.append("the checkpoint was made anew")
    return f"{report['log']}: {', '.join(parts)}"


def _ranges(ranges: list[dict[str, Any]]) -> str:
    return ", ".join(f"[{one['first_offset']}, {one['next_offset']})" for one in ranges)
