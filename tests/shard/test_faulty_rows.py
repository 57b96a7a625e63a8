"""A row's own fault rejects that row, and no run stops for it; audio that is missing as a whole stops the run instead."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.prune import find_leftovers
from pipeline.dataset.verify.audit import audit
from pipeline.errors import JobError, StuckPlansError
from pipeline.manifest.python_values import plain_values
from pipeline.storage.store import open_store
from tests.support.noop_driver import CLIP, Killed, NoOpDriver, without_ray


@pytest.fixture
def noop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NoOpDriver:
    return without_ray(tmp_path, monkeypatch)


def sound(noop: NoOpDriver) -> None:
    found = audit(open_store(str(noop.output)), deep=True)
    assert not found.violations and found.status == "sound", found.violations


# -- values that Python does not have

BIG = 2**62
TIMES = {
    "infinity": pa.array([BIG, 0, None], pa.timestamp("us")),
    "before Christ": pa.array([-BIG, 0, None], pa.timestamp("ms")),
    "seconds": pa.array([2**50, 0, None], pa.timestamp("s")),
    "nanoseconds": pa.array([1, 0, None], pa.timestamp("ns")),
    "in a zone": pa.array([BIG, 0, None], pa.timestamp("us", tz="Europe/Madrid")),
    "in a zone of nowhere": pa.array([1, 0, None], pa.timestamp("us", tz="Foo/Bar")),
    "date": pa.array([2**30, 0, None], pa.date32()),
    "duration": pa.array([BIG, 0, None], pa.duration("s")),
    "in a struct": pa.array([{"at": BIG}, {"at": 0}, None], pa.struct([("at", pa.timestamp("us"))])),
    "in a list": pa.array([[BIG, 1], [], None], pa.list_(pa.timestamp("us"))),
    "in a map": pa.array([[("a", BIG)], [], None], pa.map_(pa.string(), pa.timestamp("us"))),
    "anywhere": pa.array([random.randrange(-(2**63), 2**63) for _ in range(3)], pa.timestamp("us")),
}


@pytest.mark.parametrize("name", TIMES)
def test_a_time_past_the_year_9999_passes_through(noop, name):
    """Fails if a value that Arrow holds and Python does not ends the job, changes, or brings down planning or the audit:
    in rows that are annotated, refused while planning, rejected later, repeated, or repeated with another content.
    """
    times = TIMES[name]
    ids = ["good", "repeated", "repeated", "refused", "gone", "clash", "clash"]
    column = times.take(pa.array([0, 0, 0, 0, 0, 0, 1]))
    audio = [str(CLIP)] * 4 + [str(noop.folder / "gone.wav")] + [str(CLIP)] * 2
    languages = ["en"] * 3 + ["xx"] + ["en"] * 3
    manifest = noop.folder / "m.parquet"
    pq.write_table(pa.table({"id": ids, "audio": audio, "language": languages, "until": column}), manifest)
    (run,) = noop.job(manifest)
    assert run == ("000001", 2, {"DUPLICATE_ID": 2, "NOT_FOUND": 1, "UNSUPPORTED_LANGUAGE": 1})
    found = noop.utterances()
    # Parquet has no seconds
    kind = pq.read_table(manifest)["until"].type
    assert (
        found["until"].type == kind
        and plain_values(found["until"]) == plain_values(pq.read_table(manifest)["until"])[:1] * 2
    )
    rejects = pq.read_table(noop.output / "rejects/000001.parquet")
    kept = dict(zip(rejects["recording_id"].to_pylist(), plain_values(rejects["until"]), strict=True))
    assert kept["gone"] == kept["refused"] == plain_values(found["until"])[0]
    sound(noop)
    assert noop.job(manifest) == []


@pytest.mark.parametrize("column", ["md5", "SHA256"])
def test_a_checksum_that_is_a_time_rejects_its_row(noop, column):
    """Fails if a column that is read, and not passed on alone, ends the job by a value that Python does not have."""
    table = pa.table({"id": ["a", "b"], "audio": [str(CLIP)] * 2, column: pa.array([BIG, None], pa.timestamp("us"))})
    pq.write_table(table, noop.folder / "m.parquet")
    assert noop.job(noop.folder / "m.parquet") == [("000001", 1, {"BAD_FIELD": 1})]
    sound(noop)


def test_a_time_that_names_no_folder_rejects_its_row(noop):
    """Fails if partitioning by such a column ends the job while planning."""
    table = pa.table({"id": ["a", "b"], "audio": [str(CLIP)] * 2, "day": pa.array([2**30, 0], pa.date32())})
    pq.write_table(table, noop.folder / "m.parquet")
    assert noop.job(noop.folder / "m.parquet", partition_by="day") == [("000001", 1, {"BAD_FIELD": 1})]
    sound(noop)


# -- spans


@pytest.mark.parametrize("mode", ["audio", "text"])
@pytest.mark.parametrize(
    "span",
    [{"offset": 1e308}, {"duration": 1e308}, {"offset": 1.7e308, "duration": 1.7e308}, {"offset": 1e25}, {"offset": 2.0**63},
     {"offset": random.uniform(1e14, 1e300)}],
    ids=str,
)  # fmt: skip
def test_a_span_beyond_all_numbers_rejects_its_row(noop, span, mode):
    """Fails if an offset or duration that no sample count can hold counts as a bug of ours and stops the job."""
    rows = [{"id": f"r{n}", "audio": str(CLIP), **(span if n < 12 else {})} for n in range(20)]
    manifest = noop.manifest("m.jsonl", rows)
    assert noop.job(manifest, mode=mode) == [("000001", 8, {"BAD_SPAN": 12})]
    rejects = pq.read_table(noop.output / "rejects/000001.parquet")
    assert max(map(len, rejects["detail"].to_pylist())) < 200
    assert noop.job(manifest, mode=mode) == []
    sound(noop)
    noop.driver.config = noop.driver.config.model_copy(update={"output": str(noop.folder / "other")})
    assert noop.driver.describe()["audio_hours_expected"]


# -- names and answers that refuse one object


def loop(folder: Path, number: int) -> str:
    path = folder / f"loop{number}.wav"
    path.symlink_to(path.name)
    return str(path)


@pytest.mark.parametrize("roots", [[], ["/"]])
@pytest.mark.parametrize(
    "name",
    [lambda _, n: f"{'x' * 300}{n}.wav", lambda _, n: f"{'y' * 252}{n:02d}.wav", lambda _, n: f"{'ñ' * 200}{n}.wav",
     lambda _, n: f"{'d/' * 2500}{n}.wav", loop],
    ids=["300", "258", "utf8", "path", "loop"],
)  # fmt: skip
def test_names_that_no_file_can_have_reject_their_rows(noop, name, roots):
    """Fails if five names in a row that the file system refuses count as a store that is gone."""
    rows = [{"id": f"r{n}", "audio": name(noop.folder, n) if n < 6 else str(CLIP)} for n in range(40)]
    ((_, annotated, rejects),) = noop.job(noop.manifest("m.jsonl", rows), audio_root=roots)
    assert (annotated, rejects) == (34, {"REFUSED": 6})
    details = pq.read_table(noop.output / "rejects/000001.parquet")["detail"].to_pylist()
    assert all(len(detail) < 400 for detail in details)
    sound(noop)


class Host(BaseHTTPRequestHandler):
    """A clip under `/good...`, else the status and body that the server is given; a query other than `valid` is a 403."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        status, body = 200, CLIP.read_bytes()
        if (self.server.valid is not None and not self.path.endswith(self.server.valid)) or "/bad" in self.path:
            status, body = self.server.refusal
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the handler's naming

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.daemon_threads, server.handle_error, server.valid, server.refusal = (
        True,
        lambda *_: None,
        None,
        (403, b"expired"),
    )
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [400, 405, 414, 451, 499])
def test_http_4xx_answers_reject_their_rows(noop, host, status):
    """Fails if a refusal of five objects in a row, which is about these objects, counts as a store that is gone."""
    host.refusal = (status, b"<Error><Code>InvalidArgument</Code></Error>")
    rows = [{"id": f"r{n}", "audio": f"{host.url}/{'bad' if n < 6 else 'good'}{n}.wav?sig=SECRET"} for n in range(24)]
    assert noop.job(noop.manifest("m.jsonl", rows), audio_root=[host.url]) == [("000001", 18, {"REFUSED": 6})]
    rejects = pq.read_table(noop.output / "rejects/000001.parquet")
    assert f"HTTP {status}" in rejects["detail"][0].as_py() and "SECRET" not in str(rejects.to_pylist())


@pytest.mark.parametrize(
    "refusal", [(403, b"expired"), (400, b"<Error><Code>ExpiredToken</Code></Error>"), (407, b"proxy")]
)
def test_signatures_that_count_no_longer_are_no_rows_fault(noop, host, refusal):
    """Fails if an expired signature, which Google and S3 may answer with 400, makes permanent rejects of a whole run."""
    host.refusal, host.valid = refusal, "none is valid"
    rows = [{"id": f"r{n}", "audio": f"{host.url}/{n}.wav?sig=SECRET"} for n in range(16)]
    with pytest.raises(StuckPlansError, match="cannot be read below") as stuck:
        noop.job(noop.manifest("m.jsonl", rows), audio_root=[host.url])
    assert "SECRET" not in str(stuck.value)
    assert not (noop.output / "utterances").exists()


# -- pre-signed URLs


def signed(
    host: ThreadingHTTPServer, signature: str, numbers: Iterator[int] | range, **more: object
) -> list[dict[str, object]]:
    return [{"id": f"r{n}", "audio": f"{host.url}/{n}.wav?X-Sig={signature}", **more} for n in numbers]


@pytest.mark.parametrize("done", [0, 1, 2])
def test_expired_signatures_are_replaced_by_the_manifest_given_now(noop, host, done):
    """Fails if a plan of pre-signed URLs that expired can never be finished, or holds up the rows beside it."""
    roots, host.valid = [host.url], "one"
    noop.kill_after = done
    with pytest.raises(Killed):
        noop.job(noop.manifest("m.jsonl", signed(host, "one", range(20))), audio_root=roots)
    noop.kill_after, host.valid = None, "two"
    plan = {path: path.read_bytes() for path in (noop.output / "_runs/000001").rglob("*") if path.is_file()}
    new = noop.manifest("n.jsonl", signed(host, "two", range(100, 103)))
    with pytest.raises(StuckPlansError, match="run 000001 cannot be finished"):
        noop.job(new, audio_root=roots)
    again = noop.manifest("m.jsonl", signed(host, "two", range(20), speaker="changed", offset=999.0))
    assert noop.job(again, audio_root=roots) == [("000001", 20, {})]
    assert all(path.read_bytes() == content for path, content in plan.items())
    assert sorted(noop.utterances()["recording_id"].to_pylist()) == sorted(
        f"r{n}" for n in [*range(20), *range(100, 103)]
    )
    assert not any("?" in uri for uri in noop.utterances()["audio"].to_pylist())
    sound(noop)
    (left,) = [
        leftover for leftover in find_leftovers(open_store(str(noop.output)), now_s=4e9) if "/shards/" in leftover.key
    ]
    assert left.key.startswith("_runs/000001/shards/")


@pytest.mark.parametrize(
    "other", ["/elsewhere/{n}.wav?X-Sig=two", "/{n}.wav/?X-Sig=two", "/{n}.WAV?X-Sig=two", "/{n}.wav"]
)
def test_nothing_but_the_query_is_taken_from_the_manifest_given_now(noop, host, other):
    """Fails if a later manifest can make a plan read other objects under its ids."""
    roots, host.valid = [host.url], "one"
    noop.kill_after = 0
    with pytest.raises(Killed):
        noop.job(noop.manifest("m.jsonl", signed(host, "one", range(8))), audio_root=roots)
    noop.kill_after, host.valid = None, "two"
    rows = [{"id": f"r{n}", "audio": host.url + other.format(n=n)} for n in range(8)]
    with pytest.raises(StuckPlansError, match="cannot be read below"):
        noop.job(noop.manifest("m.jsonl", rows), audio_root=roots)


# -- audio that is missing as a whole


@pytest.mark.parametrize("shard_rows", [2, 8, 64])
@pytest.mark.parametrize("rows", [10, 30, 200])
def test_a_disk_that_is_not_mounted_rejects_nothing(noop, rows, shard_rows):
    """Fails if an audio disk that is missing for a night makes permanent rejects of that night's rows."""
    clips = noop.clips("mnt", rows)
    manifest = noop.manifest("m.jsonl", clips)
    (noop.folder / "mnt").rename(noop.folder / "away")
    with pytest.raises(JobError, match=rf"are missing.*below {noop.folder}/mnt/.*run the same command again"):
        noop.job(manifest, shard_rows=shard_rows)
    assert not (noop.output / "utterances").exists() and not (noop.output / "rejects").exists()
    (noop.folder / "away").rename(noop.folder / "mnt")
    assert noop.job(manifest, shard_rows=shard_rows) == [("000001", rows, {})]
    sound(noop)


def test_a_disk_that_goes_away_in_the_middle_rejects_nothing(noop):
    """Fails if only the first rows of a run are looked at."""
    clips = noop.clips("mnt", 200)
    manifest, prepared = noop.manifest("m.jsonl", clips), []

    def before(shard):
        prepared.append(shard)
        if len(prepared) == 20:
            (noop.folder / "mnt").rename(noop.folder / "away")

    noop.before = before
    with pytest.raises(JobError, match="are missing"):
        noop.job(manifest)
    (noop.folder / "away").rename(noop.folder / "mnt")
    assert noop.job(manifest) == [("000001", 200, {})]


@pytest.mark.parametrize("missing", [1, 9, 50, 80])
def test_files_that_are_missing_among_others_are_rejects(noop, missing):
    """Fails if a folder that was deleted, or most of a corpus, stops a run whose other audio is there."""
    rows = 9 if missing < 10 else 90  # the first hundred of more may happen to be missing
    clips = noop.clips("mnt", rows)
    for row in clips[:missing]:
        Path(str(row["audio"])).unlink()
    ((_, annotated, rejects),) = noop.job(noop.manifest("m.jsonl", clips))
    assert (annotated, rejects) == (rows - missing, {"NOT_FOUND": missing})
    sound(noop)


def test_a_gateway_that_refuses_everything_stops_the_run(noop, host):
    """Fails if a gateway that answers every request with 400 makes rejects of the whole corpus."""
    host.refusal = (400, b"no")
    rows = [{"id": f"r{n}", "audio": f"{host.url}/bad{n}.wav"} for n in range(120)]
    with pytest.raises(JobError, match="are missing"):
        noop.job(noop.manifest("m.jsonl", rows), audio_root=[host.url], shard_rows=16)
    shutil.rmtree(noop.output)
    assert noop.job(noop.manifest("m.jsonl", rows[:6]), audio_root=[host.url]) == [("000001", 0, {"REFUSED": 6})]
