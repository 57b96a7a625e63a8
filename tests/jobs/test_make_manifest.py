"""Manifests of folders, corpora and other toolkits: rows, labels, speakers, and what is left out and said.

The corpora are trees of empty files under the names the corpora really give; headers are read from recordings of ours.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import soundfile

from jobs.make_manifest import main
from pipeline.manifest.read import read_manifest
from pipeline.storage.store import open_store
from tests.support.corpus import AUDIO
from tests.support.s3_server import S3Server

SEVEN = {"angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"}
MELD_HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"


def tree(folder: Path, *names: str, **tables: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    for name, text in tables.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def made(source: Path | str, out: Path, *options: str, expect: int = 0) -> list[dict[str, object]]:
    assert main([str(source), "--output", str(out), *options]) == expect
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if expect == 0 else []


def only(rows: list[dict[str, object]], ending: str) -> dict[str, object]:
    (row,) = [row for row in rows if str(row["audio"]).endswith(ending)]
    return row


def test_ravdess(tmp_path, capsys):
    """Fails if a field of the name is read for another, a woman for a man, or calm takes a class that nobody gave it."""
    names = [
        f"Actor_{actor:02}/03-01-{emotion:02}-01-02-01-{actor:02}.wav" for actor in (1, 24) for emotion in range(1, 9)
    ]
    source = tree(tmp_path / "ravdess", *names, "Actor_05/02-01-03-02-01-02-05.mp4", "Actor_05/03-02-03-02-01-02-05.wav",
                  "Actor_05/._03-02-03-02-01-02-05.wav", "Actor_05/notes.wav")  # fmt: skip
    rows = made(source, tmp_path / "m.jsonl", "--layout", "ravdess")
    assert {row["label"] for row in rows} == SEVEN and len(rows) == 2 * 7 + 1
    row = only(rows, "03-01-08-01-02-01-24.wav")
    assert row == {
        "id": "ravdess-03-01-08-01-02-01-24", "audio": str(source / "Actor_24/03-01-08-01-02-01-24.wav"), "label": "surprise",
        "corpus_label": "surprised", "language": "en", "text": "Dogs are sitting by the door", "intensity": "normal",
        "vocal_channel": "speech", "repetition": 1, "sex": "female", "speaker": "ravdess_24", "dataset": "ravdess",
    }  # fmt: skip
    sung = only(rows, "03-02-03-02-01-02-05.wav")
    assert (sung["vocal_channel"], sung["intensity"], sung["repetition"], sung["sex"]) == ("song", "strong", 2, "male")
    said = capsys.readouterr().out
    assert "left out: 2, calm, which is not one of the seven classes: 03-01-02-01-02-01-01.wav" in said
    assert (
        "left out: 1, video without sound" in said
        and "left out: 1, not named as the corpus names its files: notes.wav" in said
    )


def test_tess(tmp_path):
    """Fails if pleasant surprise is not surprise, or the file that begins with OA_ is lost."""
    source = tree(tmp_path / "TESS", "OAF_Fear/OAF_back_fear.wav", "YAF_pleasant_surprised/YAF_dog_ps.wav",
                  "OAF_neutral/OA_bite_neutral.wav", "YAF_happy/YAF_youth_happy.wav")  # fmt: skip
    rows = made(source, tmp_path / "m.jsonl", "--layout", "tess")
    assert [row["label"] for row in rows] == ["fear", "neutral", "happy", "surprise"]
    assert {row["sex"] for row in rows} == {"female"}
    assert only(rows, "YAF_dog_ps.wav") | {"audio": ""} == {
        "id": "tess-YAF_dog_ps", "audio": "", "label": "surprise", "corpus_label": "pleasant surprise", "language": "en",
        "text": "Say the word dog", "sex": "female", "speaker": "tess_YAF", "dataset": "tess",
    }  # fmt: skip


def test_savee_in_both_of_its_forms(tmp_path):
    """Fails if `sa01` is read as an `a`, or the copies that write the speaker into the name are not known."""
    folders = tree(
        tmp_path / "one",
        "AudioData/DC/sa01.wav",
        "AudioData/KL/n30.wav",
        "AudioData/JE/a15.wav",
        "AudioData/JK/su03.wav",
    )
    flat = tree(tmp_path / "two", "ALL/DC_sa01.wav", "ALL/KL_n30.wav", "ALL/JE_a15.wav", "ALL/JK_su03.wav")
    for source in (folders, flat):
        rows = made(source, tmp_path / f"{source.name}.jsonl", "--layout", "savee")
        assert {(row["speaker"], row["label"], row["sex"]) for row in rows} == {
            ("savee_DC", "sad", "male"), ("savee_KL", "neutral", "male"), ("savee_JE", "angry", "male"),
            ("savee_JK", "surprise", "male"),
        }  # fmt: skip
        assert len({row["id"] for row in rows}) == 4 and "text" not in rows[0]


def test_crema_d_with_and_without_its_demographics(tmp_path):
    """Fails if the one file whose level is X is lost, a sentence code gives another sentence, or a sex is made up."""
    names = ["AudioWAV/1001_IEO_ANG_HI.wav", "AudioWAV/1040_ITH_SAD_X.wav", "AudioWAV/1091_WSI_HAP_XX.wav"]
    bare = tree(tmp_path / "bare", *names)
    rows = made(bare, tmp_path / "bare.jsonl", "--layout", "crema-d")
    assert [(row["label"], row["intensity"], row["text"]) for row in rows] == [
        ("angry", "high", "It's eleven o'clock"), ("sad", "unspecified", "I think I have a doctor's appointment"),
        ("happy", "unspecified", "We'll stop in a couple of minutes"),
    ]  # fmt: skip
    assert not any("sex" in row for row in rows)
    table = "ActorID,Age,Sex,Race,Ethnicity\n1001,51,Male,Caucasian,Not Hispanic\n1040,42,Female,Caucasian,Hispanic\n"
    rows = made(tree(bare, **{"VideoDemographics.csv": table}), tmp_path / "m.jsonl", "--layout", "crema-d")
    assert [row.get("sex") for row in rows] == ["male", "female", None]


def test_emo_db(tmp_path, capsys):
    """Fails if a German letter is read as an English one (W is Wut, T is Trauer), or boredom becomes a class."""
    source = tree(
        tmp_path / "emodb", *(f"wav/{speaker}b03{letter}a.wav" for speaker in ("03", "16") for letter in "WLEAFTN")
    )
    rows = made(source, tmp_path / "m.jsonl", "--layout", "emo-db")
    assert {str(row["audio"])[-6]: row["label"] for row in rows} == {
        "W": "angry", "E": "disgust", "A": "fear", "F": "happy", "T": "sad", "N": "neutral",
    }  # fmt: skip
    assert {(row["speaker"], row["sex"], row["language"]) for row in rows} == {
        ("emo-db_03", "male", "de"), ("emo-db_16", "female", "de"),
    }  # fmt: skip
    assert "left out: 2, boredom" in capsys.readouterr().out


def test_meld(tmp_path, capsys):
    """Fails if dialogues of the three splits, which are numbered alike, take each other's rows, or Windows quotes stay."""
    line = '1,"You\x92re late, {split}",Chandler,{emotion},negative,0,3,8,21,"00:16:16,059","00:16:21,731"\n'
    tables = {
        f"{split}_sent_emo.csv": MELD_HEADER + line.format(split=split, emotion=emotion)
        for split, emotion in (("train", "joy"), ("dev", "anger"), ("test", "sadness"))
    }
    source = tree(
        tmp_path / "MELD.Raw", "train_splits/dia0_utt3.mp4", "dev_splits_complete/dia0_utt3.mp4",
        "output_repeated_splits_test/dia0_utt3.mp4", "output_repeated_splits_test/._dia0_utt3.mp4",
        "output_repeated_splits_test/final_videos_testdia0_utt3.mp4", "train_splits/dia9_utt9.mp4",
    )  # fmt: skip
    (source / "dev_splits_complete/dia0_utt3.mp4").unlink()
    rows = made(tree(source, **tables), tmp_path / "m.jsonl", "--layout", "meld")
    assert [(row["id"], row["split"], row["label"], row["text"], row["speaker"]) for row in rows] == [
        ("meld-train-dia0_utt3", "train", "happy", "You’re late, train", "meld_Chandler"),
        ("meld-test-dia0_utt3", "test", "sad", "You’re late, test", "meld_Chandler"),
    ]
    said = capsys.readouterr().out
    assert "left out: 1, named in a table, but its audio is missing: dev/dia0_utt3" in said
    assert "left out: 2, audio that no table names" in said


def test_spanish_meacorpus_keeps_the_six_spanish_words(tmp_path, capsys):
    """Fails if Spanish labels become English words, which the Spanish models do not have."""
    table = '"filename","label","transcription","split"\n'
    table += "".join(f'"{n}a-{n}b.mp3","{word}","Texto {n}, con coma","{split}"\n' for n, word, split in (
        (1, "anger", "train"), (2, "disgust", "train"), (3, "fear", "test"), (4, "joy", "test"), (5, "neutral", "train"),
        (6, "sadness", "train"), (7, "joy", "train")))  # fmt: skip
    source = tree(tmp_path / "mea", *(f"segments/{n}a-{n}b.mp3" for n in range(1, 6)), "segments/6a-6b.wav",
                  **{"spanish-meacorpus-2023-dataset.csv": table})  # fmt: skip
    rows = made(source, tmp_path / "m.jsonl", "--layout", "meacorpus")
    assert [row["label"] for row in rows] == ["anger", "disgust", "fear", "joy", "neutral", "sadness"]
    assert rows[2] | {"audio": ""} == {
        "id": "meacorpus-3a-3b", "audio": "", "label": "fear", "corpus_label": "fear", "language": "es",
        "text": "Texto 3, con coma", "split": "test", "dataset": "meacorpus",
    }  # fmt: skip
    assert "left out: 1, named in a table, but its audio is missing: 7a-7b.mp3" in capsys.readouterr().out


def test_a_manifest_of_a_corpus_is_read_without_a_reject(tmp_path):
    """Fails if a row has a value that the job's own reader refuses, or two rows one id."""
    source = tree(tmp_path / "r", *(f"03-01-{n:02}-01-01-0{m}-01.wav" for n in (1, 3, 4) for m in (1, 2)))
    made(source, tmp_path / "m.jsonl", "--layout", "ravdess")
    (chunk,) = read_manifest(str(tmp_path / "m.jsonl"))
    assert not chunk.rejects and len(set(chunk.rows["recording_id"].to_pylist())) == 6
    assert set(chunk.rows["manifest_label"].to_pylist()) == {"neutral", "happy", "sad"}


@pytest.mark.parametrize("pattern", ["", "/*.wav", "/sub", "/sub/x*.wav", "/su"])
def test_a_folder_a_glob_or_a_prefix(tmp_path, pattern):
    """Fails if a bucket's prefix that is no folder lists nothing, or files that are no audio become rows."""
    tree(tmp_path / "in", "a.wav", "sub/x1.wav", "sub/x2.WAV", "sub/readme.txt", ".hidden.wav", "sub/x3.opus")
    names = {"": ["a.wav", "x1.wav", "x2.WAV", "x3.opus"], "/*.wav": ["a.wav"], "/sub/x*.wav": ["x1.wav"]}
    rows = made(f"{tmp_path}/in{pattern}", tmp_path / "m.jsonl", "--language", "en")
    assert [Path(str(row["audio"])).name for row in rows] == names.get(pattern, ["x1.wav", "x2.WAV", "x3.opus"])
    assert {row["language"] for row in rows} == {"en"}


def test_durations_are_those_of_the_files(tmp_path, capsys):
    """Fails if a duration is that of another file, or a file that is no audio stops the others or goes unsaid."""
    (tmp_path / "in").mkdir()
    for name in ("en_16k_pcm16.wav", "en_22k05.mp3", "en_48k.opus", "en_44k1_stereo.flac"):
        (tmp_path / "in" / name).write_bytes((AUDIO / name).read_bytes())
    (tmp_path / "in" / "no.wav").write_text("no audio")
    rows = made(tmp_path / "in", tmp_path / "m.jsonl", "--durations")
    assert len(rows) == 5
    for row in rows:
        if str(row["audio"]).endswith("no.wav"):
            assert "duration" not in row
        else:
            assert row["duration"] == pytest.approx(soundfile.info(str(row["audio"])).duration, abs=1e-5)
    assert "without duration: 1" in capsys.readouterr().out


def test_channels_are_those_of_the_files(tmp_path, capsys):
    """Fails if a number of channels is that of another file, is not counted, or is read although nobody asked."""
    (tmp_path / "in").mkdir()
    for name in ("en_16k_pcm16.wav", "en_22k05.mp3", "en_44k1_stereo.flac"):
        (tmp_path / "in" / name).write_bytes((AUDIO / name).read_bytes())
    (tmp_path / "in" / "no.wav").write_text("no audio")
    rows = made(tmp_path / "in", tmp_path / "m.jsonl", "--channels")
    assert [(Path(str(row["audio"])).name, row.get("channels")) for row in rows] == [
        ("en_16k_pcm16.wav", 1), ("en_22k05.mp3", 1), ("en_44k1_stereo.flac", 2), ("no.wav", None),
    ]  # fmt: skip
    assert not any("duration" in row for row in rows)
    assert "channels: 1 2, 2 1" in capsys.readouterr().out
    both = made(tmp_path / "in", tmp_path / "both.jsonl", "--channels", "--durations")
    assert [("duration" in row, "channels" in row) for row in both] == [(True, True)] * 3 + [(False, False)]
    assert not any("channels" in row for row in made(tmp_path / "in", tmp_path / "d.jsonl", "--durations"))


def test_a_bucket(s3: S3Server, tmp_path):
    """Fails if objects are listed under names that cannot be opened, or the manifest cannot be written beside them."""
    bucket = f"s3://{s3.bucket}/make-manifest"
    store = open_store(bucket)
    for name in ("day-1/a.wav", "day-1/b.flac", "day-2/c.wav"):
        store.put_if_absent(f"calls/{name}", (AUDIO / "en_16k_pcm16.wav").read_bytes())
    assert main([f"{bucket}/calls/day-1", "--output", f"{bucket}/m.jsonl", "--durations"]) == 0
    rows = [json.loads(line) for line in store.read("m.jsonl").splitlines()]
    assert [row["audio"] for row in rows] == [f"{bucket}/calls/day-1/a.wav", f"{bucket}/calls/day-1/b.flac"]
    assert all(row["duration"] > 1 for row in rows)
    assert main([f"{bucket}/calls/day-1", "--output", f"{bucket}/m.jsonl"]) == 2
    assert main([f"{bucket}/calls/day", "--output", f"{bucket}/m.jsonl", "--overwrite"]) == 0
    assert len(store.read("m.jsonl").splitlines()) == 3


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        ("nowhere", [], "the folder has no files"),
        ("in", ["--layout", "savee"], "none of the 1 audio files has a savee name"),
        ("in", ["--layout", "meld"], "train_sent_emo.csv"),
        ("in", ["--layout", "meacorpus"], "spanish-meacorpus-2023-dataset.csv"),
        ("in", ["--layout", "lhotse"], "*recordings*.jsonl"),
        ("texts", [], "audio extension"),
        ("https://example.org/audio/", [], "cannot be listed"),
    ],
)
def test_nothing_to_make_one_of(tmp_path, capsys, source, options, sentence):
    """Fails if a wrong folder or layout gives an empty manifest, or one, instead of a sentence and status 2."""
    tree(tmp_path, "in/a.wav", "texts/a.txt", "texts/b.txt")
    made(source if "://" in source else tmp_path / source, tmp_path / "m.jsonl", *options, expect=2)
    assert sentence in capsys.readouterr().err and not (tmp_path / "m.jsonl").exists()


def test_a_replaced_file_is_a_new_row_where_versions_count(tmp_path, capsys):
    """Fails if a file that was replaced keeps its id, one that was not loses it, or ids hang on versions unasked."""
    folder = tree(tmp_path / "in", "a.wav", "b.wav")
    plain = made(folder, tmp_path / "plain.jsonl")
    before = made(folder, tmp_path / "1.jsonl", "--versions")
    assert [str(row["id"]).rpartition("-")[0] for row in before] == [row["id"] for row in plain]
    (folder / "b.wav").write_bytes(b"")  # as long as it was
    os.utime(folder / "b.wav", (1e9, 1e9))
    after = made(folder, tmp_path / "2.jsonl", "--versions")
    assert after[0] == before[0] and after[1]["audio"] == before[1]["audio"]
    assert after[1]["id"] != before[1]["id"] and after[1]["version"] == "0-1000000000.000000"
    assert made(folder, tmp_path / "plain.jsonl", "--overwrite") == plain
    with pytest.raises(SystemExit):
        main([str(folder), "--versions", "--layout", "tess", "--output", str(tmp_path / "3.jsonl")])
    assert "--layout files" in capsys.readouterr().err


def test_a_version_in_a_bucket_is_its_content(tmp_path, s3: S3Server):
    """Fails if the same bytes, uploaded again, are a new version, or other bytes are none."""
    key, store = f"{s3.bucket}/versions/a.wav", s3.filesystem()

    def put(content: bytes) -> dict[str, object]:
        store.pipe_file(key, content)
        (row,) = made(f"s3://{s3.bucket}/versions", tmp_path / "m.jsonl", "--versions", "--overwrite")
        return row

    first = put(b"one")
    assert put(b"one") == first and put(b"two")["id"] != first["id"]
    assert first["version"] == hashlib.md5(b"one", usedforsecurity=False).hexdigest()
    assert put(b"one") == first


def test_nothing_is_overwritten_unasked(tmp_path, capsys):
    """Fails if a manifest that somebody completed by hand is lost."""
    tree(tmp_path, "in/a.wav")
    (tmp_path / "m.jsonl").write_text("mine\n")
    made(tmp_path / "in", tmp_path / "m.jsonl", expect=2)
    assert (tmp_path / "m.jsonl").read_text() == "mine\n" and "--overwrite" in capsys.readouterr().err
    assert len(made(tmp_path / "in", tmp_path / "m.jsonl", "--overwrite")) == 1
    assert not list(tmp_path.glob(".*"))
