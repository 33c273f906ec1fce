"""The bytes of facts."""

import pytest

from ray_stream.errors import CorruptMetadataError, InvariantViolationError
from ray_stream.groups.commands import Subscription
from ray_stream.groups.image import Image
from ray_stream.groups.records import (
    ClockAdvanced,
    EpochFloorSet,
    GroupEpochSet,
    GroupKept,
    GroupRemoved,
    GroupSubscribed,
    MemberAdvanced,
    MemberAssigned,
    MemberAway,
    MemberCommitted,
    MemberDescribed,
    MemberRemoved,
    OffsetsForgotten,
    OffsetsStored,
    Record,
    TargetAssigned,
    decode_record,
    encode_record,
)

WANTS = Subscription(["f"], "p.*", "range", 5, 6, "n", "r", "c")
EACH: list[tuple[Record, str]] = [
    (GroupEpochSet("g", 7), "019301a16707"),
    (
        GroupSubscribed("g", "uniform", True, [("t", "f", 4, 2)]),
        "019502a167a7756e69666f726dc39194a174a1660402",
    ),
    (
        MemberDescribed("g", "m", "i", 3, WANTS),
        "019603a167a16da1690398" + "91a166a3702e2aa572616e67650506a16ea172a163",
    ),
    (MemberRemoved("g", "m", "it left", 9), "019504a167a16da76974206c65667409"),
    (TargetAssigned("g", 7, [("m", [("t", [0, 1])])]), "019405a167079192a16d9192a174920001"),
    (
        MemberAssigned("g", "m", 2, 7, 6, [("t", [0], [5])], [("t", [1], [4])]),
        "019806a167a16d0207069193a17491009105" + "9193a17491019104",
    ),
    (MemberAdvanced("g", "m", 7), "019407a167a16d07"),
    (MemberAway("g", "m"), "019308a167a16d"),
    (OffsetsStored("g", 8, 9, [("t", 0, 42, 3, "x")]), "019509a16708099195a174002a03a178"),
    (OffsetsForgotten("g", [("t", [0])], "old"), "01940aa1679192a1749100a36f6c64"),
    (GroupRemoved("g", "old"), "01930ba167a36f6c64"),
    (ClockAdvanced(9), "01920c09"),
    (EpochFloorSet(9), "01920d09"),
    (GroupKept("g", 7, 6, -1), "01950ea1670706ff"),
    (
        MemberCommitted("g", "m", 5, 8, 9, [("t", 0, 42, 3, "x")]),
        "01970fa167a16d0508099195a174002a03a178",
    ),
]


@pytest.mark.parametrize(("record", "data"), EACH, ids=lambda one: type(one).__name__)
def test_a_fact_is_written_with_the_bytes_that_were_decided(record: Record, data: str) -> None:
    assert encode_record(record).hex() == data
    assert decode_record(bytes.fromhex(data)) == record


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\x02\x92\x0c\x09", "newer version"),
        (b"\x01", "cannot be read"),
        (b"\x01\x92\x63\x07", "cannot be read"),
        (b"\x01\x92\x0c\xa1x", "cannot be read"),
        (b"\x01\x93\x0c\x09\x09", "cannot be read"),
    ],
)
def test_bytes_that_are_not_a_fact_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(CorruptMetadataError, match=words):
        decode_record(data)


BEGINNING: list[Record] = [
    GroupEpochSet("g", 1),
    MemberDescribed("g", "a", "i", 1, WANTS),
    MemberDescribed("g", "b", "", 1, WANTS),
    MemberAssigned("g", "a", 1, 1, 0, [("t", [0], [1])], [("t", [1], [1])]),
]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (GroupEpochSet("g", 1), "does not rise"),
        (MemberAssigned("g", "b", 1, 1, 0, [("t", [0], [1])], []), "a owns it"),
        (MemberAssigned("g", "b", 1, 1, 0, [("t", [1], [1])], []), "a owns it"),
        (MemberAssigned("g", "a", 1, 1, 0, [], []), "comes twice"),
        (MemberAssigned("g", "a", 2, 0, 0, [], []), "goes back"),
        (MemberAdvanced("g", "a", 1), "does not rise"),
        (MemberAway("g", "b"), "not static"),
        (MemberDescribed("g", "c", "i", 1, WANTS), "two members"),
        (MemberRemoved("g", "c", "", 0), "no member c"),
        (TargetAssigned("g", 2, []), "ahead"),
        (OffsetsForgotten("g", [("t", [0])], ""), "has not"),
        (GroupRemoved("g", ""), "with its members"),
        (GroupRemoved("h", ""), "no group h"),
        (EpochFloorSet(3), "after groups"),
    ],
)
def test_a_fact_that_contradicts_the_others_stops_everything(record: Record, words: str) -> None:
    image = Image()
    for fact in BEGINNING:
        image.apply(fact)
    with pytest.raises(InvariantViolationError, match=words):
        image.apply(record)


def test_a_group_made_anew_must_not_use_epochs_of_the_one_before() -> None:
    image = Image()
    for fact in (GroupEpochSet("g", 5), GroupRemoved("g", "")):
        image.apply(fact)
    with pytest.raises(InvariantViolationError, match="an epoch of an earlier one"):
        image.apply(GroupEpochSet("h", 5))
