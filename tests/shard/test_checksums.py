"""Bytes that are not those that were meant."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from pipeline.errors import Reason, RejectedRow
from pipeline.shard.checksums import check_content, identity
from pipeline.shard.prepare import prepare
from tests.support.shards import CLIP, by_hand, causes, models_of, parts, real_recogniser, row, work_of

CONTENT = b"the bytes of a recording"
SHA256 = hashlib.sha256(CONTENT).digest()
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).digest()


@pytest.mark.parametrize(
    "record",
    [
        {}, {"sha256": None, "md5": ""}, {"sha256": SHA256.hex()}, {"sha256": SHA256.hex().upper() + " "}, {"sha256": SHA256},
        {"md5": MD5.hex()}, {"md5": base64.b64encode(MD5).decode()}, {"sha256": base64.b64encode(SHA256).decode(), "md5": MD5},
    ],
    ids=str,
)  # fmt: skip
def test_the_right_bytes_pass(record):
    """Fails if a checksum is read in another encoding than it was written in, or an absent one counts."""
    check_content(CONTENT, record, "a.wav")


def test_one_flipped_bit_is_caught_wherever_it_is():
    """Fails if a byte is not covered by the checksum."""
    for position in range(8 * len(CONTENT)):
        flipped = bytearray(CONTENT)
        flipped[position // 8] ^= 1 << position % 8
        for record in ({"sha256": SHA256.hex()}, {"md5": MD5.hex()}, {"sha256": SHA256.hex(), "md5": MD5.hex()}):
            with pytest.raises(RejectedRow) as caught:
                check_content(bytes(flipped), record, "a.wav")
            assert caught.value.reason == Reason.CHECKSUM
        assert identity(bytes(flipped)) != identity(CONTENT)


@pytest.mark.parametrize("stated", ["abc", "zz" * 32, SHA256.hex()[:-2], 17, b"short"])
def test_a_column_that_holds_no_checksum_says_so(stated):
    """Fails if a column that happens to be called sha256 silently checks nothing."""
    with pytest.raises(RejectedRow, match="sha256") as caught:
        check_content(CONTENT, {"sha256": stated}, "a.wav")
    assert caught.value.reason == Reason.BAD_FIELD


@pytest.mark.parametrize("name", ["SHA256", "Sha256", "sHA256", "MD5", "Md5"])
def test_a_checksum_column_counts_in_any_case(name):
    """Fails if a column spelled `SHA256` is never looked at, and wrong bytes pass."""
    right = (MD5 if name.lower() == "md5" else SHA256).hex()
    check_content(CONTENT, {name: right, "note": "x"}, "a.wav")
    with pytest.raises(RejectedRow) as caught:
        check_content(CONTENT, {name: "0" * len(right)}, "a.wav")
    assert caught.value.reason == Reason.CHECKSUM
    with pytest.raises(RejectedRow, match=f"column '{name}' holds") as caught:
        check_content(CONTENT, {name: "abc"}, "a.wav")
    assert caught.value.reason == Reason.BAD_FIELD


@pytest.mark.parametrize(
    "spellings", [("Sha256", "sha256", "SHA256"), ("sha256", "SHA256", "sha256"), ("MD5", "md5", "Md5")]
)
def test_spellings_of_a_checksum_column_may_be_mixed(tmp_path, spellings):
    """Fails if the first row's spelling decides whether the others are looked at."""
    wrong = "0" * (32 if spellings[0].lower() == "md5" else 64)
    work = work_of(tmp_path, [row(n, **{name: wrong}) for n, name in enumerate(spellings)], {}, mode="audio")
    (shard,) = work.plan.shards()
    assert causes(prepare(work, shard)) == ["CHECKSUM"] * 3


def test_rows_are_held_against_their_manifest(tmp_path, checkpoints):
    """Fails if the checksum columns of a manifest do not reach the bytes, or a bad one costs its neighbours."""
    right = hashlib.sha256(Path(CLIP).read_bytes()).hexdigest()
    records = [row(0, sha256=right), row(1, sha256="0" * 64), row(2)]
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en"]))
    table, finished = by_hand(work, recogniser_for=lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ("CHECKSUM",)
    assert right in causes(table, "detail")[1]
    assert parts(work)["recording_id"].to_pylist() == ["r0", "r2"]
