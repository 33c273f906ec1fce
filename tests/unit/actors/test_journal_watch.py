"""What a journal does without is said, and said once."""

import logging

import pytest

from ray_stream.actors.journal_watch import JournalWatch
from ray_stream.metadata.journal import MetadataJournal
from ray_stream.testing.memory import MemoryStorage

PATH = "/data/metadata"


def opened(storage: MemoryStorage) -> MetadataJournal:
    return MetadataJournal.open(storage, PATH, boot_id="b", now_ms=1)


def sync(journal: MetadataJournal) -> None:
    while (job := journal.sync_job()) is not None:
        job.run()
        journal.synced(job)


@pytest.fixture
def storage() -> MemoryStorage:
    """A metadata log with its first fact."""
    storage = MemoryStorage()
    storage.make_directory("/data")
    journal = MetadataJournal.create(storage, PATH, boot_id="b", now_ms=1)
    journal.format("c" * 32, "d" * 32, "h", 1)
    journal.claim([], 1)
    sync(journal)
    return storage


def test_a_snapshot_that_could_not_be_kept_is_told_once_and_so_is_its_success(
    storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    journal = opened(storage)
    watch = JournalWatch(journal, "metadata log")
    watch.look()
    assert caplog.messages == []
    storage.faults.fail_sync(path_part=".image")
    journal.take_snapshot()
    watch.look()
    watch.look()
    (said,) = caplog.messages
    assert "metadata log" in said
    assert str(journal.snapshot_error) in said
    caplog.clear()
    journal.take_snapshot()
    watch.look()
    watch.look()
    assert caplog.messages == ["a snapshot of the metadata log was kept again"]


def test_a_damaged_snapshot_is_told_once(
    storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    journal = opened(storage)
    journal.take_snapshot()
    journal.close()
    (image,) = (one for one in storage.list_directory(PATH) if one.endswith(".image"))
    storage.flip_bit(f"{PATH}/{image}", 50)
    watch = JournalWatch(opened(storage), "metadata log")
    watch.look()
    watch.look()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert image in record.getMessage()
