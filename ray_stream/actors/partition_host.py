"""The partitions of one partition actor: requests in, one write and one sync a turn, answers out.

Owns: the logs that it leads, the requests that wait for a sync or for records, and the check of
leader epochs. Refuses: threads, Ray, clocks of its own, deciding what to serve
(`metadata.hosting`).

Turns: everything that arrived is taken in first, then `end_turn` appends what was staged (one write
a partition), starts syncs, and answers. A sync runs elsewhere (`Syncer`) and comes back as a call
on the owner's thread. So appends of the next turn overlap the sync of the last, and a sync is
shared by everyone who waits for it.

Invariant: an answer, a read and a duplicate's answer never go past `PartitionLog.readable_end`.
"""

from collections.abc import Callable
from typing import Protocol

from ray_stream.actors.hosted import Hosted, ParkedFetch, PendingProduce, Waiting
from ray_stream.clock import Clock
from ray_stream.errors import (
    FencedLeaderEpochError,
    InvalidArgumentError,
    NotLeaderOrFollowerError,
    OutcomeUnknownError,
    RayStreamError,
    StorageError,
    StorageOfflineError,
    UnknownLeaderEpochError,
)
from ray_stream.log import reader
from ray_stream.log.open_logs import OpenLogs
from ray_stream.log.partition_log import Appended, SyncJob
from ray_stream.log.storage import Buffer
from ray_stream.metadata.commands import PartitionKey
from ray_stream.rpc.messages import (
    EARLIEST,
    LATEST,
    ErrorInfo,
    Extent,
    FetchPartition,
    FetchRequest,
    FetchResponse,
    FetchResult,
    ListOffsetsPartition,
    ListOffsetsRequest,
    ListOffsetsResponse,
    ListOffsetsResult,
    ProducePartition,
    ProduceRequest,
    ProduceResponse,
    ProduceResult,
)
from ray_stream.rpc.services import Reply
from ray_stream.types import Durability

ACKS_NONE = 0
_FSYNC = str(Durability.FSYNC)
OPEN_LOGS_MAX = 1024
"""Logs with open files, where the limit of the process does not say otherwise."""
UNSYNCED_SEGMENTS_MAX = 8
"""Of one log. Until they are synced they stay open: were one closed, nobody might be told that the
kernel could not write it."""
FETCH_BYTES_MAX = 64 * 1024 * 1024
"""Of one answer, whatever is asked for."""
FETCH_WAIT_MS_MAX = 300_000
"""The longest that `fetch_max_wait_ms` may be: what a peer that is gone has left ends then."""


class Syncer(Protocol):
    """Runs sync jobs somewhere, and calls back on the owner's thread."""

    def __call__(self, job: SyncJob, done: Callable[[StorageError | None], None]) -> None:
        """Run `job.run()`; then `done(None)`, or `done(error)` when it raised."""
        ...


class PartitionHost:
    """`PartitionService` over one actor's partitions. Everything runs on its owner's thread."""

    def __init__(
        self,
        clock: Clock,
        syncer: Syncer,
        boot_id: str = "",
        open_logs_max: int = OPEN_LOGS_MAX,
    ) -> None:
        """Make one that has nothing open.

        Args:
            clock: stamps and deadlines.
            syncer: where syncs run.
            boot_id: of this machine; readers on it are told where to read. Empty: nobody is.
            open_logs_max: so many logs keep their files open for the next write; up to twice as
                many while syncs are under way.
        """
        self._clock = clock
        self._boot_id = boot_id
        self._syncer = syncer
        self._partitions: dict[PartitionKey, Hosted] = {}
        self._dirty: dict[PartitionKey, Hosted] = {}
        self._fetches: dict[int, ParkedFetch] = {}
        self._expiry_ms = 0
        """No fetch's wait is over before; only looked at while there are any."""
        self._open_logs: OpenLogs[PartitionKey] = OpenLogs(open_logs_max)
        self.failures = 0
        """Logs that went offline here; a change of it tells the broker to look."""

    @property
    def partitions(self) -> dict[PartitionKey, Hosted]:
        """What is open here; changed only by `actors.partition_control`."""
        return self._partitions

    # --- PartitionService ------------------------------------------------------------------------

    def produce(self, request: ProduceRequest, reply: Reply[ProduceResponse]) -> None:
        """Stage batches; they are appended and answered by the turn's end or a later sync."""
        if len(request.batches) != len(request.partitions):
            reply(
                InvalidArgumentError(
                    f"{len(request.partitions)} partitions with {len(request.batches)} batches: "
                    "one batch for each partition is needed"
                )
            )
            return
        count = len(request.partitions)
        pending = PendingProduce(reply, [None] * count, count, request.acks)
        if not count:
            reply(ProduceResponse([]))
        for position, (address, batch) in enumerate(
            zip(request.partitions, request.batches, strict=True)
        ):
            hosted = self._leader(address)
            if isinstance(hosted, RayStreamError):
                pending.settle(position, _produce_error(address, hosted))
                continue
            hosted.staged.append((batch, pending, position))
            self._dirty[address.topic_id, address.partition] = hosted

    def fetch(self, request: FetchRequest, reply: Reply[FetchResponse]) -> None:
        """Answer now when there is enough to say, else park until there is."""
        wait_ms = min(request.max_wait_ms, FETCH_WAIT_MS_MAX)
        fetch = ParkedFetch(request, reply, self._clock.monotonic_ms() + wait_ms)
        if self._try_fetch(fetch, expired=request.max_wait_ms == 0):
            return
        if not self._fetches or fetch.deadline_ms < self._expiry_ms:
            self._expiry_ms = fetch.deadline_ms
        self._fetches[id(fetch)] = fetch
        for address in request.partitions:
            self._partitions[address.topic_id, address.partition].parked[id(fetch)] = fetch

    def list_offsets(self, request: ListOffsetsRequest, reply: Reply[ListOffsetsResponse]) -> None:
        """Look up offsets by position or time."""
        reply(ListOffsetsResponse([self._list_offset(one) for one in request.partitions]))

    # --- turns -----------------------------------------------------------------------------------

    def end_turn(self) -> None:
        """Append what was staged, start syncs, answer what may be answered."""
        dirty, self._dirty = self._dirty, {}
        for hosted in dirty.values():
            if hosted.staged:
                self._append_staged(hosted)
                self._keep_few_open(hosted)
            self._advance(hosted)
        for key in self._open_logs.rest():
            self.sync_in_background(self._partitions[key])

    def _keep_few_open(self, hosted: Hosted) -> None:
        """Sync what was sealed; sync and close one, should so many wait with their files open."""
        crowding = self._open_logs.used(hosted.key, hosted.log)
        if unsynced := hosted.log.unsynced_segments:
            if unsynced > UNSYNCED_SEGMENTS_MAX:
                self._rest_now(hosted)
            else:
                self.sync_in_background(hosted)
        if crowding is not None:
            self._rest_now(self._partitions[crowding])

    def _rest_now(self, hosted: Hosted) -> None:
        self._open_logs.forget(hosted.key)
        try:
            hosted.log.rest(sync=True)
        except StorageOfflineError:
            self.went_offline(hosted)
        self._advance(hosted)

    def expire(self) -> None:
        """Answer the fetches whose wait is over."""
        now_ms = self._clock.monotonic_ms()
        for fetch in [one for one in self._fetches.values() if one.deadline_ms <= now_ms]:
            self._try_fetch(fetch, expired=True)
        self._expiry_ms = min((one.deadline_ms for one in self._fetches.values()), default=0)

    def next_deadline_ms(self) -> int | None:
        """When `expire` has to look, on the monotonic clock; None: nothing waits.

        Perhaps too early: not with each fetch that is answered all others are looked at.
        """
        return self._expiry_ms if self._fetches else None

    def changed(self, hosted: Hosted) -> None:
        """Have this partition looked after at the turn's end (its options or epoch changed)."""
        self._dirty[hosted.key] = hosted

    def refuse_staged(self, hosted: Hosted) -> None:
        """A new leader epoch is about to begin: what was taken in under the old one is not it."""
        staged, hosted.staged = hosted.staged, []
        error = FencedLeaderEpochError(
            f"a new leader epoch of {hosted.name} begins: refresh the metadata and ask again"
        )
        for _, pending, position in staged:
            pending.settle(position, _produce_error(_address_of(hosted), error))

    def dismiss(self, hosted: Hosted) -> None:
        """Answer everything that waits on a partition which is not led here any more."""
        self._open_logs.forget(hosted.key)
        error = NotLeaderOrFollowerError(f"{hosted.name} is not led here any more: ask again")
        for batch, pending, position in hosted.staged:
            del batch
            pending.settle(position, _produce_error(_address_of(hosted), error))
        waiting, hosted.waiting, hosted.staged = hosted.waiting, [], []
        unknown = OutcomeUnknownError(
            f"{hosted.name} went away after the batch was written and before it was synced: "
            "send it again, byte for byte"
        )
        for one in waiting:
            one.pending.settle(one.position, _produce_error(_address_of(hosted), unknown))
        for fetch in list(hosted.parked.values()):
            self._try_fetch(fetch, expired=True)
        hosted.parked.clear()

    # --- produce ---------------------------------------------------------------------------------

    def _leader(
        self, address: ProducePartition | FetchPartition | ListOffsetsPartition
    ) -> Hosted | RayStreamError:
        hosted = self._partitions.get((address.topic_id, address.partition))
        if hosted is None or not hosted.leading:
            return NotLeaderOrFollowerError(
                f"partition {address.partition} of topic id {address.topic_id} is not led here: "
                "refresh the metadata and ask again"
            )
        current = hosted.log.leader_epoch
        if address.leader_epoch == current:
            return hosted
        if address.leader_epoch < current:
            return FencedLeaderEpochError(
                f"leader epoch {address.leader_epoch} of {hosted.name} is over, it is {current} "
                "now: refresh the metadata and ask again"
            )
        return UnknownLeaderEpochError(
            f"leader epoch {address.leader_epoch} of {hosted.name} is not known here, it is "
            f"{current}: ask again a little later"
        )

    def _append_staged(self, hosted: Hosted) -> None:
        staged, hosted.staged = hosted.staged, []
        log, config = hosted.log, hosted.spec.config
        topic_id, partition = hosted.key
        leader_epoch, log_start = log.leader_epoch, log.start_offset
        appended = log.append(
            [batch for batch, _, _ in staged],
            leader_epoch=leader_epoch,
            now_ms=self._clock.now_ms(),
            keep=any(one.request.min_bytes <= 1 for one in hosted.parked.values()),
        )
        is_log_append_time = config.message_timestamp_type == "LogAppendTime"
        for (_, pending, position), outcome in zip(staged, appended, strict=True):
            if not isinstance(outcome, Appended):
                pending.settle(position, _produce_error(_address_of(hosted), outcome))
                continue
            base_offset, next_offset, append_timestamp, is_duplicate = outcome
            is_promised = pending.acks != ACKS_NONE
            durability = config.durability if is_promised else "none"
            # In the order of its fields: names would cost as much as the rest of it.
            result = ProduceResult(
                topic_id,
                partition,
                None,
                base_offset,
                append_timestamp,
                is_log_append_time,
                log_start,
                leader_epoch,
                durability,
                is_duplicate,
            )
            end_offset = next_offset if is_promised else 0
            waiting = Waiting(end_offset, pending, position, result, durability == _FSYNC)
            hosted.waiting.append(waiting)
        if hosted.log.offline:
            self.went_offline(hosted)

    def _advance(self, hosted: Hosted) -> None:
        """Start a sync where one is due, and answer what the readable end has passed.

        Fetches first: whoever is waited for elsewhere is the one that has asked for records.
        """
        is_fsync = hosted.spec.config.durability == _FSYNC
        if is_fsync or hosted.altered:
            self.sync_in_background(hosted)
        if hosted.parked:
            for fetch in list(hosted.parked.values()):
                self._try_fetch(fetch, expired=False)
            hosted.log.forget_kept()
        if hosted.waiting:
            self._settle(hosted)
            if hosted.waiting and not is_fsync:  # it was when these were written
                self.sync_in_background(hosted)
        log = hosted.log
        while hosted.altered and (log.offline or hosted.altered[0][0] <= log.synced_end):
            hosted.altered.pop(0)[1]()

    def _settle(self, hosted: Hosted) -> None:
        """Answer for the batches that are as durable as the answer says."""
        synced_end, readable_end = hosted.log.synced_end, hosted.log.readable_end
        due: list[Waiting] = []
        left: list[Waiting] = []
        for one in hosted.waiting:
            is_due = one.end_offset <= (synced_end if one.wants_sync else readable_end)
            (due if is_due else left).append(one)
        hosted.waiting = left
        for one in due:
            one.pending.settle(one.position, one.result)

    def _sync_ended(self, hosted: Hosted, job: SyncJob, error: StorageError | None) -> None:
        if self._partitions.get(hosted.key) is not hosted:
            return
        if error is None:
            hosted.log.synced(job)
        else:
            self.went_offline(hosted, hosted.log.sync_failed(job, error))
        self._advance(hosted)
        hosted.log.forget_kept()

    def went_offline(self, hosted: Hosted, told: RayStreamError | None = None) -> None:
        """A log is offline: nobody waits for it any longer, and the broker looks, once.

        Args:
            hosted: the partition.
            told: to whoever waits; None: that what was written may be there later, or not.
        """
        if hosted.is_offline:
            return
        hosted.is_offline = True
        self._open_logs.forget(hosted.key)
        self.failures += 1
        told = told or OutcomeUnknownError(
            f"{hosted.name} is offline: {hosted.log.offline}; what was written before may be there "
            "when it is opened next, or not"
        )
        waiting, hosted.waiting = hosted.waiting, []
        for one in waiting:
            one.pending.settle(one.position, _produce_error(_address_of(hosted), told))

    def sync_in_background(self, hosted: Hosted) -> None:
        """Sync a partition whose answers do not wait for it (a `replicated` topic)."""
        job = hosted.log.sync_job()
        if job is not None:
            self._syncer(job, lambda error: self._sync_ended(hosted, job, error))

    # --- fetch -----------------------------------------------------------------------------------

    def _try_fetch(self, fetch: ParkedFetch, *, expired: bool) -> bool:
        """Answer if there is an error, enough bytes, or no time left; say whether it was."""
        request = fetch.request
        is_neighbour = bool(self._boot_id) and request.boot_id == self._boot_id
        extent_bytes = min(request.extent_bytes, FETCH_BYTES_MAX) if is_neighbour else 0
        if not (expired or extent_bytes or request.min_bytes <= 1 or self._may_be_enough(request)):
            return False
        results: list[FetchResult] = []
        batches: list[Buffer] = []
        got = 0
        failed = False
        left = min(request.max_bytes, FETCH_BYTES_MAX)
        for address in request.partitions:
            result, buffers, length = self._read(address, left, extent_bytes)
            results.append(result)
            batches += buffers
            got += length
            left -= length if result.extent is None else 0
            failed = failed or result.error is not None
        if not (failed or expired or got >= request.min_bytes):
            return False
        self._unpark(fetch)
        fetch.reply(FetchResponse(results, batches))
        return True

    def _may_be_enough(self, request: FetchRequest) -> bool:
        """Whether to read at all: otherwise each append would have all of it read again."""
        got = 0
        for address in request.partitions:
            result, _, length = self._read(address, FETCH_BYTES_MAX, FETCH_BYTES_MAX)
            got += length
            if result.error is not None or got >= request.min_bytes:
                return True
        return False

    def _read(
        self, address: FetchPartition, bytes_left: int, extent_bytes: int
    ) -> tuple[FetchResult, list[Buffer], int]:
        hosted = self._reader(address)
        if isinstance(hosted, RayStreamError):
            return (
                FetchResult(address.topic_id, address.partition, ErrorInfo.of(hosted)),
                [],
                0,
            )
        log = hosted.log
        end_offset = log.readable_end
        error = extent = None
        buffers: list[Buffer] = []
        if address.fetch_offset != end_offset and bytes_left > 0:
            try:
                read = log.read(
                    address.fetch_offset,
                    bytes_max=extent_bytes or min(address.max_bytes, bytes_left),
                    end_offset=end_offset,
                    in_place=bool(extent_bytes),
                )
                buffers = list(read.batches)
                extent = _told(read.extent)
            except RayStreamError as refused:
                error = ErrorInfo.of(refused)
        result = FetchResult(
            address.topic_id,
            address.partition,
            error=error,
            buffers=len(buffers),
            high_watermark=end_offset,
            last_stable_offset=end_offset,
            log_start=log.start_offset,
            leader_epoch=log.leader_epoch,
            extent=extent,
        )
        length = sum(map(len, buffers)) if extent is None else extent.length
        return result, buffers, length

    def _reader(self, address: FetchPartition | ListOffsetsPartition) -> Hosted | RayStreamError:
        if address.leader_epoch >= 0:
            return self._leader(address)
        hosted = self._partitions.get((address.topic_id, address.partition))
        if hosted is None or not hosted.leading:
            return NotLeaderOrFollowerError(
                f"partition {address.partition} of topic id {address.topic_id} is not led here"
            )
        return hosted

    def _unpark(self, fetch: ParkedFetch) -> None:
        if self._fetches.pop(id(fetch), None) is None:
            return
        for address in fetch.request.partitions:
            hosted = self._partitions.get((address.topic_id, address.partition))
            if hosted is not None:
                hosted.parked.pop(id(fetch), None)

    # --- offsets ---------------------------------------------------------------------------------

    def _list_offset(self, question: ListOffsetsPartition) -> ListOffsetsResult:
        hosted = self._reader(question)
        if isinstance(hosted, RayStreamError):
            info = ErrorInfo.of(hosted)
            return ListOffsetsResult(question.topic_id, question.partition, error=info)
        log = hosted.log
        offset, timestamp = -1, -1
        try:
            if question.timestamp == EARLIEST:
                offset = log.start_offset
            elif question.timestamp == LATEST:
                offset = log.readable_end
            else:
                found = log.offset_for_timestamp(question.timestamp)
                if found is not None and found[0] < log.readable_end:
                    offset, timestamp = found
        except RayStreamError as refused:
            info = ErrorInfo.of(refused)
            return ListOffsetsResult(question.topic_id, question.partition, error=info)
        return ListOffsetsResult(
            question.topic_id,
            question.partition,
            offset=offset,
            timestamp=timestamp,
            leader_epoch=log.leader_epoch,
        )


def _told(extent: reader.Extent | None) -> Extent | None:
    if extent is None:
        return None
    return Extent(extent.path, extent.position, extent.length, extent.header, extent.end_offset)


def _address_of(hosted: Hosted) -> ProducePartition:
    return ProducePartition(hosted.spec.topic_id, hosted.spec.partition, hosted.log.leader_epoch)


def _produce_error(address: ProducePartition, error: RayStreamError) -> ProduceResult:
    return ProduceResult(address.topic_id, address.partition, error=ErrorInfo.of(error))
