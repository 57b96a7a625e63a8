"""Does it listen? The whole job over recordings of sentences and voices that the small models never heard.

The bounds are the quality the models were made for (demo/models/README.md has what was measured on more clips); the controls
show that these tests can fail.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import jiwer
import numpy as np
import pyarrow as pa
import pytest
import soundfile
import soxr

from demo.models import MODELS, options
from demo.run import words
from pipeline import SAMPLING_RATE
from pipeline.analytics.evaluate.evaluation import Options, evaluate, read
from pipeline.audio.decode import decode
from pipeline.models.checkpoints.weights import resolve
from pipeline.models.emotion import EmotionRecogniser
from tests.support.corpus import ONE_ACTOR, ROOT, utterances, write_manifest
from tests.support.shared_ray import SharedRay

HELDOUT = ROOT / "demo" / "heldout"
ROWS = [json.loads(line) for line in (HELDOUT / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
TURNS = [json.loads(line) for line in (HELDOUT / "turns.jsonl").read_text(encoding="utf-8").splitlines()]
CLIPS = [row for row in ROWS if row["heldout"] in ("sentences", "voices")]
LANGUAGES = ("en", "es")
GROUPS = {"sentences": ("sentences",), "voices": ("voices",), "several": ("long", "call")}
"""New sentences by known voices, by new voices, and several of them in a recording or call."""
WORD_ERROR_RATE = {"sentences": 0.05, "voices": 0.05, "several": 0.10}
FUSED = {"sentences": 0.90, "voices": 0.82}
AUDIO = {"sentences": 0.85, "voices": 0.75}
ALONE = 0.03
"""What the bounds give when one language stands alone: half as many clips, 50 to 80."""
SWAPPED, WRONG_RATE = 120, 40


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, shared_ray: SharedRay) -> Path:
    """The output of the job in mode mean, every row listened to."""
    output = tmp_path_factory.mktemp("heldout") / "out"
    shared_ray(HELDOUT / "manifest.jsonl", output, *options(), *ONE_ACTOR)
    return output


@pytest.fixture(scope="module")
def heard(output: Path) -> pa.Table:
    """Its rows."""
    return utterances(output)


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory, shared_ray: SharedRay) -> pa.Table:
    """The controls: rows with the text of another row, and 8 kHz audio under a header that says 16 kHz."""
    folder = tmp_path_factory.mktemp("spoiled")
    new = [row for row in CLIPS if row["heldout"] == "voices"]
    rows = []
    for row in new[:SWAPPED]:
        other = next(
            o for o in new if o["language"] == row["language"] and o["wording"] not in (row["wording"], row["label"])
        )
        rows.append(
            {**row, "id": f"swapped-{row['id']}", "audio": str(HELDOUT / row["audio"]), "text": other["reference"]}
        )
    for row in new[:WRONG_RATE]:
        waveform = decode((HELDOUT / row["audio"]).read_bytes())
        path = folder / f"{row['id']}.wav"
        soundfile.write(path, soxr.resample(waveform, SAMPLING_RATE, SAMPLING_RATE / 2), SAMPLING_RATE, "PCM_16")
        rows.append({**row, "id": f"rate-{row['id']}", "audio": str(path)})
    options_ = [*options(), *ONE_ACTOR, "--audio-root", str(HELDOUT), "--audio-root", str(folder)]
    shared_ray(write_manifest(folder / "manifest.jsonl", rows), folder / "out", *options_)
    return utterances(folder / "out")


def error_rate(table: pa.Table, ids: list[str]) -> float:
    """Word error rate of recordings; the utterances of one are read in order."""
    texts: dict[str, list[str]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: row["segment_index"]):
        texts.setdefault(row["recording_id"], []).append(row["text"])
    references = {row["id"]: row["reference"] for row in ROWS}
    return jiwer.wer(
        [words(references[i.removeprefix("rate-")]) for i in ids], [words(" ".join(texts[i])) for i in ids]
    )


def accuracy(table: pa.Table) -> float:
    return float(np.mean([row["emotion"] == row["manifest_label"] for row in table.to_pylist()]))


def of(table: pa.Table, column: str, value: str) -> pa.Table:
    return table.filter(pa.compute.equal(table[column], value))


@pytest.mark.parametrize("language", [*LANGUAGES, None])
@pytest.mark.parametrize("group", list(WORD_ERROR_RATE))
def test_these_are_the_words(heard, group, language):
    """Fails if audio reaches Whisper at another rate, in pieces, mixed up or padded wrongly, or channels are swapped."""
    ids = [row["id"] for row in ROWS if row["heldout"] in GROUPS[group] and row["language"] in (language or LANGUAGES)]
    assert ids
    assert error_rate(heard, ids) <= WORD_ERROR_RATE[group] + (ALONE if language else 0)


@pytest.mark.parametrize("language", [*LANGUAGES, None])
@pytest.mark.parametrize("heldout", list(FUSED))
def test_this_is_the_emotion(heard, heldout, language):
    """Fails if a label map is off by one, text and voice of different rows meet, or features are wrong."""
    table = of(heard, "heldout", heldout)
    table = of(table, "language", language) if language else table
    assert table.num_rows == sum(
        row["heldout"] == heldout and row["language"] in (language or LANGUAGES) for row in ROWS
    )
    assert accuracy(table) >= FUSED[heldout] - (ALONE if language else 0)


def test_the_evaluation_says_the_same(heard, output):
    """Fails if `jobs.evaluate` counts other rows than these tests, or holds words against another recording's reference."""
    asked = Options(labels="label", slices=("heldout", "language"), resamples=0)
    (found,) = evaluate(read([str(output)], asked), asked).outputs
    labelled = heard.filter(pa.compute.is_valid(heard["manifest_label"]))
    for part in found.slices:
        clips = of(labelled, part.column, part.value)
        assert part.metrics["accuracy"].value == pytest.approx(accuracy(clips))
        ids = list(dict.fromkeys(clips["recording_id"].to_pylist()))
        # one counts `it's` as a word, the other as two
        assert part.words.word_error_rate == pytest.approx(error_rate(heard, ids), abs=0.01)
    assert {part.value for part in found.slices} == {*FUSED, *LANGUAGES}
    assert found.counts.compared == len(CLIPS)


def test_fusion_beats_either_side(heard):
    """Fails if a mode does not use one of its inputs, or a mode's weights are another's."""
    texts, labels = (
        dict(zip(heard["recording_id"].to_pylist(), heard[column].to_pylist(), strict=True))
        for column in ("text", "emotion")
    )
    encoder = resolve(str(ROOT / MODELS / "sentence-encoder"))
    right: dict[tuple[str, str], list[bool]] = {}
    for language in ("en", "es"):
        rows = [row for row in CLIPS if row["language"] == language]
        for row in rows:
            right.setdefault(("mean", row["heldout"]), []).append(labels[row["id"]] == row["label"])
        waveforms = [decode((HELDOUT / row["audio"]).read_bytes()) for row in rows]
        for mode in ("audio", "text", "concat", "multihead"):
            recogniser = EmotionRecogniser(mode, resolve(str(ROOT / MODELS / f"{mode}-{language}")), encoder)
            found = recogniser.recognise(waveforms, [texts[row["id"]] for row in rows])
            emotions = [recogniser.emotions[best] for best in found.scores.argmax(axis=1)]
            for row, emotion in zip(rows, emotions, strict=True):
                right.setdefault((mode, row["heldout"]), []).append(emotion == row["label"])
    shares = {key: float(np.mean(each)) for key, each in right.items()}
    for heldout, bound in FUSED.items():
        assert shares["audio", heldout] >= AUDIO[heldout]
        for mode in ("mean", "concat", "multihead"):
            assert shares[mode, heldout] >= bound
            both = [np.mean(right[each, "sentences"] + right[each, "voices"]) for each in (mode, "audio", "text")]
            assert both[0] > max(both[1:])


def test_long_recordings_come_apart_at_their_turns(heard):
    """Fails if turns are merged, lost or cut in two, or the times are not those of the recording."""
    for row in (row for row in ROWS if row["heldout"] == "long"):
        turns = [turn for turn in TURNS if turn["recording_id"] == row["id"]]
        found = of(heard, "recording_id", row["id"]).to_pylist()
        assert abs(len(found) - len(turns)) <= 1
        for turn in turns:
            middle = (turn["start_s"] + turn["end_s"]) / 2
            assert sum(part["start_s"] <= middle < part["end_s"] for part in found) == 1


def test_each_channel_is_its_own_party(heard):
    """Fails if a call's channels are mixed down or taken for each other: half of the words would be wrong."""
    calls = [row for row in ROWS if row["heldout"] == "call"]
    for row in calls:
        other = next(o for o in calls if o["audio"] == row["audio"] and o["channel"] != row["channel"])
        text = words(" ".join(r["text"] for r in of(heard, "recording_id", row["id"]).to_pylist()))
        assert jiwer.wer(words(row["reference"]), text) < 0.4
        assert jiwer.wer(words(other["reference"]), text) > 0.7


def test_another_rows_text_hurts(heard, spoiled):
    """The control of the emotion tests: a job that mixes up texts must not pass them."""
    swapped = spoiled.filter(pa.compute.starts_with(spoiled["recording_id"], "swapped-"))
    ids = {i.removeprefix("swapped-") for i in swapped["recording_id"].to_pylist()}
    whole = heard.filter(pa.compute.is_in(heard["recording_id"], pa.array(sorted(ids))))
    assert swapped.num_rows == whole.num_rows == SWAPPED
    assert accuracy(swapped) < accuracy(whole) - 0.05


def test_a_wrong_sample_rate_hurts(spoiled):
    """The control of both: audio played at twice its speed must not pass for speech or for its emotion."""
    fast = spoiled.filter(pa.compute.starts_with(spoiled["recording_id"], "rate-"))
    assert fast.num_rows == WRONG_RATE
    assert error_rate(fast, fast["recording_id"].to_pylist()) > 0.5
    assert accuracy(fast) < FUSED["voices"] - 0.2


def test_the_heldout_recordings_are_what_they_say():
    """Fails if the set shrinks, loses a format or a language, or shares a sentence or a voice with training."""
    from tools.demo_models.acting import VARIANTS
    from tools.demo_models.grammar import split_of

    assert Counter(row["heldout"] for row in ROWS) == {"sentences": 110, "voices": 150, "long": 4, "call": 4}
    assert {Path(row["audio"]).suffix for row in CLIPS} == {".wav", ".flac", ".mp3", ".opus", ".m4a"}
    assert {
        split_of(text) for text in [*(row["reference"] for row in CLIPS), *(turn["reference"] for turn in TURNS)]
    } == {"test"}
    voices = {row["speaker"].partition("+")[2] for row in CLIPS if row["heldout"] == "voices"}
    assert voices <= set(VARIANTS["test"]) and not voices & {*VARIANTS["train"], *VARIANTS["validation"]}
    assert {row["language"] for row in CLIPS} == {"en", "es"}


def test_the_models_are_small_and_say_what_they_are_worth():
    """Fails if the weights outgrow the repository, or the measured quality is not beside them or misses its targets."""
    folders = [ROOT / MODELS, HELDOUT, ROOT / "demo" / "corpus"]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert sum(file.stat().st_size for file in files) < 20_000_000
    figures = json.loads((ROOT / MODELS / "quality.json").read_text(encoding="utf-8"))
    readme = (ROOT / MODELS / "README.md").read_text(encoding="utf-8")
    assert all(f"{100 * figure['value']:.1f} ({figure['clips']})" in readme for figure in figures)
