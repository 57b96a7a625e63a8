"""`--turns` through the steps of a shard: utterances by speaker, given texts, rejects that cost only their row, the audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from pipeline import SAMPLING_RATE
from pipeline.audio.decode import decode
from pipeline.config import load_config
from pipeline.dataset.row_checks import check_rows, check_turns_column
from pipeline.dataset.verify.audit import audit
from pipeline.errors import ConfigError
from pipeline.manifest.read import read_manifest
from pipeline.models.roles import needs_of
from pipeline.shard import prepare as prepare_module
from pipeline.shard import turns as turns_module
from pipeline.shard.prepare import prepare
from pipeline.storage.access import AudioRoots
from tests.support.golden import LONG, PARITY
from tests.support.manifests import jsonl
from tests.support.shards import (
    CLIP,
    FakeTranscriber,
    by_hand,
    causes,
    models_of,
    parts,
    published,
    real_recogniser,
    row,
    work_of,
)

EN, ES = (decode((PARITY / "audio" / name).read_bytes()) for name in ("en_16k_pcm16.wav", "es_16k_pcm16.wav"))
LENGTH_S = round((len(EN) + len(ES)) / SAMPLING_RATE, 3)
MIDDLE_S = round(len(EN) / SAMPLING_RATE, 3)


@pytest.fixture
def talk(tmp_path: Path) -> str:
    soundfile.write(tmp_path / "talk.wav", np.concatenate([EN, ES]), SAMPLING_RATE, subtype="FLOAT")
    return str(tmp_path / "talk.wav")


def turn(start_s: float, end_s: float, speaker: str | None = "a", text: str | None = None) -> dict[str, Any]:
    return {"start_s": start_s, "end_s": end_s, "speaker": speaker, "text": text}


def work_with(folder: Path, checkpoints: Path, *records: dict[str, object], **flags: object):
    """A plan of rows with the column `turns`."""
    records = tuple({"text": None, "language": "en", **record} for record in records)
    return work_of(folder, records, models_of(checkpoints, "mean", ["en"]), turns="turns", **flags)


def test_utterances_are_the_turns(tmp_path, checkpoints, talk):
    """Fails if a turn is lost or has another's time, speaker, text or overlap; if a text that is given is transcribed; or if
    the column, which repeats in every utterance, is copied."""
    turns = [turn(MIDDLE_S - 0.5, LENGTH_S, "bob", "Hola."), turn(0.0, MIDDLE_S, "ann"), turn(0.25, 0.75, None, "")]
    work = work_with(tmp_path / "w", checkpoints, {"id": "t", "audio": talk, "text": "all of it", "turns": turns})
    heard = FakeTranscriber("en")
    _, finished = by_hand(work, heard, lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ()
    found = parts(work).to_pylist()
    names = ("utterance_id", "start_s", "speaker_id", "text", "text_source")
    assert [tuple(each[name] for name in names) for each in found] == [
        ("t#0000", 0.0, "ann", "heard words", "asr"),
        ("t#0001", 0.25, None, "", "manifest"),
        ("t#0002", pytest.approx(MIDDLE_S - 0.5, abs=1e-4), "bob", "Hola.", "manifest"),
    ]
    assert [each["end_s"] for each in found] == pytest.approx([MIDDLE_S, 0.75, LENGTH_S], abs=1e-3)
    both = [1.0 / MIDDLE_S, 1.0, 0.5 / (LENGTH_S - MIDDLE_S + 0.5)]
    assert [each["overlap_share"] for each in found] == pytest.approx(both, abs=1e-3)
    assert len(heard.asked) == 1 and "turns" not in found[0] and "turns" in work.plan.extra.names
    assert parts(work).schema.names.index("speaker_id") == parts(work).schema.names.index("channel") + 1
    assert not audit(published(work), deep=True).violations


def test_an_rttm_file_beside_the_manifest(tmp_path, checkpoints, talk):
    """Fails if a relative RTTM file is not looked for at the manifest, or the turns of another recording are taken."""
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "all.rttm").write_text(
        f"SPEAKER talk 1 0.0 {MIDDLE_S} <NA> <NA> ann <NA> <NA>\n"
        "SPEAKER other 1 0.0 500 <NA> <NA> bob <NA> <NA>\n"
        f"SPEAKER my_row 1 1.0 1.0 <NA> <NA> cleo <NA> <NA>\n"
    )
    work = work_with(
        tmp_path / "w", checkpoints, {"id": "t", "audio": talk, "turns": "all.rttm"},
        {"id": "my row", "audio": CLIP, "turns": "all.rttm"}, {"id": "none", "audio": CLIP, "turns": None},
        audio_root="/",
    )  # fmt: skip
    (shard,) = work.plan.shards()
    table = prepare(work, shard)
    found = [
        (line["row"], line["speaker_id"], line["overlap_share"])
        for line in table.drop_columns(["waveform"]).to_pylist()
    ]
    assert found == [(0, "ann", 0.0), (1, "cleo", 0.0), (2, None, None)]


def test_bad_turns_cost_their_row_alone(tmp_path, checkpoints, talk, monkeypatch):
    """Fails if turns that are wrong, missing, forbidden or too large take a neighbour with them, or have no reason."""
    folder = tmp_path / "w"
    folder.mkdir()
    (folder / "good.rttm").write_text("SPEAKER x 1 0.0 1.0 <NA> <NA> ann\n")
    (folder / "bad.rttm").write_text("SPEAKER x 1 zero 1.0 <NA> <NA> ann\n")
    (folder / "large.rttm").write_text(";" * 500)
    (tmp_path / "outside.rttm").write_text("SPEAKER x 1 0.0 1.0 <NA> <NA> ann\n")
    monkeypatch.setattr(turns_module, "MAX_RTTM_BYTES", 200)
    given = {
        "good.rttm": None, "bad.rttm": "BAD_TURNS", "no.rttm": "NOT_FOUND", "large.rttm": "TOO_LARGE",
        str(tmp_path / "outside.rttm"): "NOT_ALLOWED", "ftp://host/x.rttm": "NOT_ALLOWED", "[{}]": "BAD_TURNS",
        '[{"start_s": 0, "end_s": 500}]': "BAD_TURNS", "[]": "NO_SPEECH", '[{"start_s": 0, "end_s": 1}]': None,
    }  # fmt: skip
    records = [{"id": f"r{n}", "audio": talk, "turns": each} for n, each in enumerate(given)]
    work = work_with(folder, checkpoints, *records)
    roots = AudioRoots.parse((str(folder), talk), [])
    work = type(work)(work.output, work.plan, roots)
    (shard,) = work.plan.shards()
    assert causes(prepare(work, shard)) == list(given.values())


def test_a_long_turn_is_cut_and_a_text_is_not(tmp_path, checkpoints):
    """Fails if a turn longer than an utterance may be reaches the models whole, loses time, or a given text is split."""
    long = str(PARITY / LONG)
    length_s = soundfile.info(long).duration
    turns = [turn(1.0, 1.0 + (length_s - 1) / 2, "ann"), turn(1.0 + (length_s - 1) / 2, length_s, "bob", "All of it.")]
    work = work_with(tmp_path / "w", checkpoints, {"id": "t", "audio": long, "turns": turns}, max_segment_s=5.0)
    (shard,) = work.plan.shards()
    lines = prepare(work, shard).drop_columns(["waveform"]).to_pylist()
    ann, bob = ([line for line in lines if line["speaker_id"] == name] for name in ("ann", "bob"))
    assert len(ann) > 2 and max(line["end_s"] - line["start_s"] for line in ann) <= 5.0
    assert min(line["start_s"] for line in ann) >= 1.0 and max(line["end_s"] for line in ann) <= bob[0]["start_s"]
    assert [line["text"] for line in bob] == ["All of it."]
    assert [line["segment_index"] for line in lines] == list(range(len(lines)))


def test_a_long_turn_without_pauses_or_voice_is_cut_evenly(tmp_path, checkpoints):
    """Fails if a turn in which voice activity detection finds nothing rejects its row or vanishes."""
    soundfile.write(tmp_path / "hum.wav", np.full(35 * SAMPLING_RATE, 0.1, np.float32), SAMPLING_RATE)
    record = {"id": "t", "audio": str(tmp_path / "hum.wav"), "turns": [turn(0.0, 35.0)]}
    for number, flags in enumerate(({}, {"segmentation": "vad", "max_segment_s": 20.0}, {"segmentation": "none"})):
        work = work_with(tmp_path / str(number), checkpoints, record, **flags)
        (shard,) = work.plan.shards()
        times = prepare(work, shard).select(["start_s", "end_s"]).to_pylist()
        expected = {0: [(0.0, 30.0), (5.0, 35.0)], 1: [(0.0, 20.0), (15.0, 35.0)], 2: [(0.0, 35.0)]}[number]
        assert [(each["start_s"], each["end_s"]) for each in times] == expected


def test_turns_over_the_budget_are_decoded_again(tmp_path, checkpoints, talk, monkeypatch):
    """Fails if overlapping turns carry more audio than a shard may, or a turn that is decoded again is another one."""
    turns = [turn(0.0, LENGTH_S, "ann"), turn(0.5, MIDDLE_S, "bob")]
    record = {"id": "t", "audio": talk, "turns": turns}
    one = work_with(tmp_path / "one", checkpoints, record)
    by_hand(one, FakeTranscriber("en"), lambda _: real_recogniser(checkpoints))
    monkeypatch.setattr(prepare_module, "PCM_BUDGET_BYTES", round(LENGTH_S * SAMPLING_RATE) * 4 + 1000)
    two = work_with(tmp_path / "two", checkpoints, record)
    (shard,) = two.plan.shards()
    assert prepare(two, shard)["waveform"].null_count == 2
    by_hand(two, FakeTranscriber("en"), lambda _: real_recogniser(checkpoints))
    for first, second in zip(parts(one).to_pylist(), parts(two).to_pylist(), strict=True):
        assert first["scores"] == pytest.approx(second["scores"], abs=1e-6)


# -- options


def config_of(**flags: object):
    return load_config(None, {"manifest": ["m"], "output": "o", "turns": "turns", **flags})


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"channels": "split"}, "--channels split by channel"),
        ({"mode": "text"}, "which mode text does not use"),
        ({"texts": "none"}, "leave out --texts none"),
    ],
)
def test_options_that_exclude_turns(flags, says):
    """Fails if turns are ignored in silence, or words that --texts removes stay in the plan."""
    with pytest.raises(ConfigError, match=says):
        config_of(**flags)


def test_a_column_that_cannot_hold_turns():
    """Fails if a misspelt column annotates a corpus without its turns, or numbers are rejected row by row."""
    lists = pa.list_(pa.struct([("start_s", pa.float64())]))
    for kind in (pa.string(), lists, pa.large_string(), pa.list_(pa.null())):
        check_turns_column(config_of(), pa.schema([("turns", kind)]))
    for schema, says in (
        (pa.schema([("turn", pa.string())]), "no manifest has this column.*turn"),
        (pa.schema([("turns", pa.float64())]), "the column is double"),
        (pa.schema([("turns", pa.list_(pa.string()))]), "the column is list"),
    ):
        with pytest.raises(ConfigError, match=says):
            check_turns_column(config_of(), schema)
    with pytest.raises(ConfigError, match="does not have the column"):
        check_turns_column(config_of(partition_by="turns"), pa.schema([("turns", pa.string())]))


def test_a_manifests_own_speaker_id_keeps_its_values(tmp_path):
    """Fails if a column of the manifest is overwritten by ours, or renamed in an output without turns."""
    manifest = jsonl(tmp_path / "m.jsonl", {**row(0), "speaker_id": "x", "overlap_share": 1, "turns": "a.rttm"})
    (chunk,) = read_manifest(str(manifest))
    roots = AudioRoots.parse(("/",), [])
    for flags, names in (
        ({}, ["manifest_speaker_id", "manifest_overlap_share"]),
        ({"turns": None}, ["speaker_id", "overlap_share"]),
    ):
        rows, rejects = check_rows(config_of(**flags), chunk.rows, version=3, roots=roots, known={"en"})
        assert not rejects and set(names) <= set(rows.schema.names)
    for given, needed in (("a.rttm", True), ([turn(0, 1, "a", "x")], False), ([turn(0, 1)], True)):
        table = pa.table({"language": ["en"], "text": ["x"], "turns": [given]})
        assert needs_of([table], config_of()).asr is needed
