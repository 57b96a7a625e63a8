"""Three nights over a bucket that grows, with the command that a scheduler starts: what is read, written and counted in each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from demo.models import MODELS
from jobs import drift, nightly
from tests.support.corpus import ONE_ACTOR, ROOT
from tests.support.s3_server import S3Server
from tests.support.shared_ray import SharedRay

CLIPS = ROOT / "demo" / "corpus" / "audio"
FIRST = {"day-1/a.wav": "ada-prizes.wav", "day-1/b.mp3": "ben-ticket.mp3", "day-1/c.flac": "ada-goodbye.flac"}
SECOND = {"day-2/d.opus": "cleo-window.opus", "day-1/late.m4a": "ada-hide.m4a"}
THIRD = {"day-3/e.wav": "ben-cheese.wav"}
SAME, OTHER = {"day-1/a.wav": "ada-prizes.wav"}, {"day-1/b.mp3": "cleo-letter.mp3"}
"""Written over with the bytes that were there, and with others."""


class Nights:
    """The bucket, and what one night after another does to it."""

    def __init__(self, s3: S3Server, ray: SharedRay, manifest: Path) -> None:
        self.files, self.ray, self.manifest = s3.filesystem(), ray, manifest
        self.corpus, self.output = f"{s3.bucket}/calls", f"{s3.bucket}/nights"

    def put(self, clips: dict[str, str]) -> None:
        for key, clip in clips.items():
            self.files.put_file(str(CLIPS / clip), f"{self.corpus}/{key}")

    def night(self) -> tuple[set[str], str]:
        """Run the command. Returns: the keys of the audio that was read, and the command's output."""
        requests = self.ray.proxy.requests
        before, seen = self.written(), len(requests)
        words = [f"s3://{self.corpus}", "--manifest", str(self.manifest), "--by", "emotion", "--"]
        options = ["--output", f"s3://{self.output}", "--audio-root", f"s3://{self.corpus}", "--mode", "audio"]
        done = self.ray.run("nightly", *words, *options, "--emotion-model", f"{MODELS}/audio-en", *ONE_ACTOR)
        assert before.items() <= self.written().items(), "something that stood was replaced or removed"
        gets = [r.path for r in requests[seen:] if r.method == "GET" and f"/{self.corpus}/" in r.path]
        return {path.partition(f"/{self.corpus}/")[2] for path in gets}, done.stdout

    def written(self) -> dict[str, tuple[str, str]]:
        found = self.files.find(self.output, detail=True)
        return {name: (info["ETag"], str(info["LastModified"])) for name, info in found.items()}

    def table(self, folder: str) -> pa.Table:
        names = [name for name in self.files.find(f"{self.output}/{folder}") if name.endswith(".parquet")]
        return ds.dataset(names, filesystem=self.files).to_table()


@pytest.fixture
def nights(s3: S3Server, shared_ray: SharedRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nights]:
    """The driver's requests go through the proxy too."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", shared_ray.proxy.endpoint)
    fsspec.filesystem("s3").clear_instance_cache()
    yield Nights(s3, shared_ray, tmp_path / "tonight.jsonl")
    fsspec.filesystem("s3").clear_instance_cache()


def test_three_nights(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a night reads audio that an earlier one has heard, misses a late or a replaced file, takes a file that was
    written again for a new one, loses the rows of a removed one, counts a run twice, or a night with nothing new writes anything.
    """
    nights.put(FIRST)
    read, said = nights.night()
    assert read == set(FIRST) and "run 000001: 3 rows = 3 annotated" in said

    nights.put({**SECOND, **SAME, **OTHER})
    nights.files.rm_file(f"{nights.corpus}/day-1/c.flac")
    read, said = nights.night()
    assert read == {*SECOND, *OTHER} and "run 000002: 3 rows = 3 annotated" in said and "1 new, 2 runs in" in said

    nights.put(THIRD)
    nights.files.rm_file(f"{nights.corpus}/day-1/late.m4a")
    read, said = nights.night()
    assert read == set(THIRD) and "run 000003: 1 rows = 1 annotated" in said and "1 new, 3 runs in" in said

    before = nights.written()
    read, said = nights.night()
    assert not read and "Nothing new" in said and "nothing new, 3 runs in" in said and nights.written() == before

    rows, summed, manifest = nights.table("utterances"), nights.table("summaries"), pa.Table.from_pylist(
        [json.loads(line) for line in nights.manifest.read_text().splitlines()])  # fmt: skip
    with duckdb.connect() as connection:
        tables = {"utterances": rows, "summaries": summed, "tonight": manifest}
        for name, table in tables.items():
            connection.register(name, table)
        ask = lambda query: connection.sql(query).fetchall()  # noqa: E731 - read like the queries of docs/nightly.md
        heard = ask("SELECT regexp_extract(audio, 'day-.*'), run_id FROM utterances ORDER BY ALL")
        assert heard == sorted([*((key, "000001") for key in FIRST), *((key, "000002") for key in {**SECOND, **OTHER}),
                                ("day-3/e.wav", "000003")])  # fmt: skip
        present = ask(
            "SELECT regexp_extract(audio, 'day-.*'), run_id FROM utterances SEMI JOIN tonight ON id = recording_id"
        )
        assert sorted(present) == [("day-1/a.wav", "000001"), ("day-1/b.mp3", "000002"), ("day-2/d.opus", "000002"),
                                   ("day-3/e.wav", "000003")]  # fmt: skip
        connection.register("corpus", nights.table("_runs/corpus").slice(7))
        assert len(ask("SELECT 1 FROM utterances SEMI JOIN corpus USING (recording_id)")) == len(present)
        latest = ask("SELECT version FROM utterances QUALIFY run_id = max(run_id) OVER (PARTITION BY audio) ORDER BY 1")
        assert len(latest) == 6 and set(latest) >= {(row["version"],) for row in manifest.to_pylist()}
        counts = ask("SELECT emotion, sum(utterances) FROM summaries GROUP BY 1 ORDER BY 1")
        assert counts == ask("SELECT emotion, count(*) FROM utterances GROUP BY 1 ORDER BY 1")
    pages = [name.removeprefix(f"{nights.output}/") for name in nights.written() if name.endswith("report.html")]
    assert sorted(pages) == [f"_runs/00000{n}/report.html" for n in (1, 2, 3)]

    assert drift.main([f"s3://{nights.output}"]) == 0, "a night of one recording can show no drift"
    assert "6 recordings in the reference, 1 in the current window" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [(["--", "--output", "o", "--manifest", "n"], "before the --"), (["--", "--output", "o", "--min-confidence", "5"], "min"),
     ([], "output")],
)  # fmt: skip
def test_refused_before_any_work(options: list[str], sentence: str, tmp_path: Path, capsys) -> None:
    """Fails if the manifest is written before the options of the job that reads it are known to be right."""
    (tmp_path / "a.wav").write_bytes(b"")
    assert nightly.main([str(tmp_path), "--manifest", str(tmp_path / "m.jsonl"), *options]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "m.jsonl").exists()


def test_a_step_that_fails_ends_the_night(tmp_path: Path, capsys) -> None:
    """Fails if annotate reads last night's manifest because tonight's could not be made."""
    (tmp_path / "m.jsonl").write_text('{"audio": "/a.wav"}\n')
    assert nightly.main([str(tmp_path / "gone"), "--manifest", str(tmp_path / "m.jsonl"), "--", "--output", "o"]) == 2
    assert "the folder has no files" in capsys.readouterr().err
