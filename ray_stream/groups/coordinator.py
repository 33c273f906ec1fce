"""The group coordinator's mind: commands in, facts and answers out.

Owns: one image (durable) and one life's signs (not), which module decides what, the queries, and
every invariant. Refuses: I/O, clocks, randomness, timers, and which group is whose: one machine is
one internal partition, and all groups that hash to it.

`decide` changes nothing. Its facts go through `apply` when they are appended and when they are
replayed; its signs go through `notice`, once, behind them. What it answers may leave once the facts
are durable, and so may what it shows.

How a shell drives it:

1. Recover: a new `GroupCoordinator()`, `apply` each record of the snapshot and of the log behind
   it, then `begin(monotonic_ms)`: every session and every revocation starts in full.
2. Before each command `tell_time(monotonic_ms)`; then `resolution = decide(command, now_ms)`, where
   `now_ms` is the wall clock and only ever shown. A refusal is raised: nothing happened.
3. Append `resolution.records` as one batch (they are true together or not at all), then
   `accept(resolution)`, and send `resolution.response` when the log is synced up to here: also when
   there are no records, because the answer may show what an earlier command wrote.
   After an append that failed: drop the machine, replay.
4. `MetadataSeen` with all topics after `begin`, and whenever the controller shows another version.
   Before a heartbeat for which `needs_metadata(command)` holds, show what the controller says now:
   else a topic that exists already is taken for a newer one than the subscription.
5. `Tick()` a few times a second, or when `next_due_ms` is reached: sessions, retention.
6. Hold an answer that tells nothing new (`assignment is None`, no records) for as long as the
   heartbeat interval, and send the heartbeat through `decide` again as soon as
   `has_news(heartbeat)`; look after each decision that had records, for that group. That makes a
   rebalance take round trips instead of heartbeat intervals. `MemberSuspected` shortens a session.
7. Snapshot: `snapshot()` gives records which, applied to an empty machine, rebuild the image.
"""

from collections.abc import Callable
from typing import Any

from ray_stream.groups.commands import (
    JOIN_EPOCH,
    Command,
    ConsumerGroupHeartbeat,
    DeleteGroup,
    DeleteOffsets,
    DescribeGroup,
    ListGroups,
    MemberSuspected,
    MetadataSeen,
    OffsetCommit,
    OffsetFetch,
    ResetOffsets,
    Tick,
)
from ray_stream.groups.image import Image
from ray_stream.groups.invariants import check_image, check_signs
from ray_stream.groups.limits import Limits
from ray_stream.groups.membership import heartbeat
from ray_stream.groups.offsets import (
    commit,
    delete_group,
    delete_offsets,
    fetch,
    known_group,
    reset,
)
from ray_stream.groups.reconciliation import next_step
from ray_stream.groups.records import (
    MemberAssigned,
    MemberAway,
    MemberRemoved,
    Record,
)
from ray_stream.groups.resolution import Resolution
from ray_stream.groups.retelling import snapshot
from ray_stream.groups.signs import Sign, Signs
from ray_stream.groups.upkeep import see_metadata, suspect, tick
from ray_stream.groups.views import describe_group, list_groups


class GroupCoordinator:
    """Consumer groups as a fold over their log."""

    def __init__(self, limits: Limits | None = None) -> None:
        """Args: limits: what is allowed; Kafka's defaults."""
        self.limits = limits or Limits()
        self.image = Image()
        self.signs = Signs()

    def begin(self, monotonic_ms: int) -> None:
        """Everything is replayed: a new life. All members have their whole sessions again."""
        self.signs = Signs(
            begun_ms=monotonic_ms,
            served_before_ms=self.image.served_ms,
            clock_ms=monotonic_ms,
            next_due_ms=monotonic_ms,
            next_check_ms=monotonic_ms + self.limits.retention_check_ms,
        )
        for group in self.image.groups.values():
            for member in group.members.values():
                key = (group.group_id, member.member_id)
                self.signs.hear(key, member.subscription.session_timeout_ms)
                if member.revoking:
                    self.signs.watch_revocation(key, member.subscription.rebalance_timeout_ms)

    def tell_time(self, monotonic_ms: int) -> None:
        """What the shell's monotonic clock shows; an earlier value changes nothing."""
        self.signs.clock_ms = max(self.signs.clock_ms, monotonic_ms)

    # --- the machine ---------------------------------------------------------------------------

    def decide(self, command: Command, now_ms: int) -> Resolution:
        """Answer a command without changing anything; raise to refuse it.

        Args:
            command: what is asked.
            now_ms: the wall clock, stamped on commits and never compared.

        Raises:
            RayStreamError: whatever the command's own rules refuse.
        """
        return _DECIDE[type(command)](self, command, now_ms)

    def apply(self, record: Record) -> None:
        """Fold one durable fact in, and start or end the time-outs that follow from it."""
        self.image.apply(record)
        match record:
            case MemberRemoved():
                self.signs.forget((record.group_id, record.member_id))
            case MemberAssigned():
                key = (record.group_id, record.member_id)
                if record.revoking:
                    member = self.image.groups[record.group_id].members[record.member_id]
                    self.signs.watch_revocation(key, member.subscription.rebalance_timeout_ms)
                else:
                    self.signs.revocations.pop(key, None)
            case MemberAway():
                self.signs.revocations.pop((record.group_id, record.member_id), None)
            case _:
                pass

    def notice(self, sign: Sign) -> None:
        """Take in what is true only now."""
        self.signs.notice(sign)

    def accept(self, resolution: Resolution) -> None:
        """Apply every fact and notice every sign of one decision."""
        for record in resolution.records:
            self.apply(record)
        for sign in resolution.signs:
            self.notice(sign)

    def check(self) -> None:
        """Raise `InvariantViolationError` if anything that must always hold does not."""
        check_image(self.image)
        check_signs(self.image, self.signs)

    def snapshot(self) -> list[Record]:
        """Facts which, applied to an empty machine, rebuild an equal image."""
        return list(snapshot(self.image))

    # --- queries -------------------------------------------------------------------------------

    @property
    def next_due_ms(self) -> int:
        """By the monotonic clock: before then a `Tick` finds nothing."""
        return min(self.signs.next_due_ms, self.signs.next_check_ms)

    def needs_metadata(self, command: ConsumerGroupHeartbeat) -> bool:
        """Whether to show what the controller says now before this heartbeat is decided."""
        wants = command.subscription
        if wants is None:
            return False
        view = self.signs.view
        if view is None or any(view.named(name) is None for name in wants.names):
            return True
        group = self.image.groups.get(command.group_id)
        members = () if group is None else group.members.values()
        known = any(member.subscription.regex == wants.regex for member in members)
        return bool(wants.regex) and not known

    def has_news(self, command: ConsumerGroupHeartbeat) -> bool:
        """Whether this heartbeat would be answered otherwise than with "go on as you are"."""
        if command.member_epoch <= JOIN_EPOCH:
            return True
        group = self.image.groups.get(command.group_id)
        member = None if group is None else group.members.get(command.member_id)
        if group is None or member is None or member.away:
            return True
        if (command.member_epoch, command.revision) != (member.epoch, member.revision):
            return True
        target = group.targets[command.member_id]
        return next_step(group, member, target, group.target_epoch, released=False) is not None


_DECIDE: dict[type[Command], Callable[[GroupCoordinator, Any, int], Resolution]] = {
    ConsumerGroupHeartbeat: lambda m, command, _: heartbeat(m.image, m.signs, m.limits, command),
    OffsetCommit: lambda m, command, now_ms: commit(m.image, m.signs, m.limits, command, now_ms),
    OffsetFetch: lambda m, command, _: fetch(m.image, command),
    DescribeGroup: lambda m, command, _: Resolution(
        [], describe_group(known_group(m.image, command.group_id))
    ),
    ListGroups: lambda m, _command, _: Resolution([], list_groups(m.image)),
    DeleteGroup: lambda m, command, _: delete_group(m.image, command),
    ResetOffsets: lambda m, command, now_ms: reset(m.image, m.signs, m.limits, command, now_ms),
    DeleteOffsets: lambda m, command, _: delete_offsets(m.image, command),
    MetadataSeen: lambda m, command, _: see_metadata(m.image, m.signs, command),
    MemberSuspected: lambda m, command, _: suspect(m.image, command),
    Tick: lambda m, _command, _: tick(m.image, m.signs, m.limits),
}
