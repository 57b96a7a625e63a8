"""The store on disk and on a real S3 server."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from pipeline.errors import ConfigError, JobError, Reason, RejectedRow
from pipeline.layout import PROBE
from pipeline.redaction import without_query
from pipeline.storage.fetch import fetch
from pipeline.storage.filesystem import resolve
from pipeline.storage.store import LocalStore, Store, open_store, require_conditional_writes
from tests.support.memory_store import MemoryStore
from tests.support.racing import race
from tests.support.s3_server import S3Server


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return open_store(str(tmp_path / "out"))
    server: S3Server = request.getfixturevalue("s3")
    return open_store(f"s3://{server.bucket}/{tmp_path.name}")


def test_the_first_writer_wins_and_stays(store: Store) -> None:
    """Fails if a second write replaces the first, or is told that it won."""
    assert store.put_if_absent("a/b.parquet", b"first")
    assert not store.put_if_absent("a/b.parquet", b"second")
    assert store.read("a/b.parquet") == b"first"


def test_one_of_sixteen_racers_wins(store: Store) -> None:
    """Fails if put-if-absent is a look followed by a write."""
    race(store)


def test_reading_listing_and_tails(store: Store) -> None:
    """Fails if a listing misses an object, shows a key not relative to the root, or a tail is not the end."""
    for key in ("x/one", "x/y/two", "z/three"):
        store.put_if_absent(key, key.encode() * 100)
    assert {entry.key: entry.size_bytes for entry in store.list("x")} == {"x/one": 500, "x/y/two": 700}
    assert list(store.list("nothing/here")) == []
    assert store.read_tail("x/one", 5) == b"x/one"
    assert store.read_tail("x/one", 10_000) == b"x/one" * 100
    with store.open("z/three") as file:
        file.seek(-5, os.SEEK_END)
        assert file.read() == b"three"
    for read in (store.read, store.open):
        with pytest.raises(FileNotFoundError):
            read("absent")


def test_a_listing_shows_what_another_process_wrote_since(store: Store) -> None:
    """Fails if a listing is remembered: a resumed run would do committed shards again."""
    assert list(store.list("late")) == []
    other = open_store(store.root)
    other.put_if_absent("late/part", b"x")
    assert [entry.key for entry in store.list("late")] == ["late/part"]


def test_what_another_process_wrote_after_a_listing_is_there(s3: S3Server, tmp_path: Path) -> None:
    """Fails if fsspec answers from a listing it remembers: an object written since would be absent to `open`, and to the
    look that settles a lost answer, so that losing a race failed the job.
    """
    store = open_store(f"s3://{s3.bucket}/{tmp_path.name}")
    store.put_if_absent("late/one", b"x")
    assert len(list(store.list("late"))) == 1
    s3.filesystem().pipe_file(f"{s3.bucket}/{tmp_path.name}/late/two", b"theirs")
    assert not store.put_if_absent("late/two", b"ours")
    with store.open("late/two") as file:
        assert file.read() == b"theirs"


def test_a_kill_between_write_and_link_leaves_nothing_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a reader could see a half-written file, or the temporary shows up in a listing."""
    store = LocalStore(tmp_path)

    def killed(*_: object, **__: object) -> None:
        os.close(os.open(tmp_path / ".part.0.tmp", os.O_CREAT))  # what a real kill leaves behind
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        store.put_if_absent("part", b"content")
    assert not (tmp_path / "part").exists()
    assert list(store.list("")) == []


@pytest.mark.parametrize("conditional", [True, False])
def test_a_store_that_overwrites_is_refused(conditional: bool) -> None:
    """Fails if the probe lets a store through on which two attempts could both win."""
    store = MemoryStore()
    store.conditional = conditional
    if conditional:
        require_conditional_writes(store, PROBE)
        require_conditional_writes(store, PROBE)
    else:
        with pytest.raises(ConfigError, match="conditional writes"):
            require_conditional_writes(store, PROBE)


@pytest.mark.parametrize("name", ["d//e", "/d", "x/y//", "d///e/f"])
def test_an_output_whose_objects_are_listed_under_other_names_is_refused(s3: S3Server, name: str) -> None:
    """Fails if a job starts whose plans and parts will never be found: this server stores `d//e` as `d/e`."""
    store = open_store(f"s3://{s3.bucket}/renamed/{name}")
    if name.endswith("//"):  # trailing slashes are dropped before anything is written
        require_conditional_writes(store, PROBE)
        assert [file.key for file in store.list("")] == [PROBE]
    else:
        with pytest.raises(ConfigError, match="without empty folder names"):
            require_conditional_writes(store, PROBE)


@pytest.mark.parametrize("root", ["s3://bucket/d//e", "gs://bucket//d"])
def test_an_output_with_empty_folder_names_is_kept_where_the_store_keeps_them(root: str) -> None:
    """Fails if such outputs are refused on stores that list them as they were written, as S3 does."""
    store = MemoryStore()
    store.root = root
    require_conditional_writes(store, PROBE)


def test_a_disk_that_is_full_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if `No space left on device` stands alone, or the half-written temporary stays."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    store = LocalStore(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/a/b.parquet'"):
        store.put_if_absent("a/b.parquet", b"x")
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_an_output_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    """Fails if the user is told something less than which output failed."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="file/out"):
        require_conditional_writes(open_store(str(tmp_path / "file" / "out")), PROBE)


def test_fetch_gives_the_bytes_or_a_reason(tmp_path: Path) -> None:
    """Fails if a missing, forbidden or oversized object is anything but its own row's reject."""
    (tmp_path / "a.wav").write_bytes(b"0123456789")
    assert fetch(str(tmp_path / "a.wav"), max_bytes=10) == b"0123456789"
    cases = {Reason.TOO_LARGE: tmp_path / "a.wav", Reason.NOT_FOUND: tmp_path / "none.wav"}
    for reason, path in cases.items():
        with pytest.raises(RejectedRow) as rejected:
            fetch(str(path), max_bytes=9)
        assert rejected.value.reason == reason


def test_fetch_from_s3(s3: S3Server) -> None:
    """Fails if S3's answers map to other reasons than disk's, or an empty object breaks the fetch."""
    files = s3.filesystem()
    files.pipe_file(f"{s3.bucket}/audio/a.wav", b"0123456789")
    files.pipe_file(f"{s3.bucket}/audio/empty.wav", b"")
    assert fetch(f"s3://{s3.bucket}/audio/a.wav", max_bytes=10) == b"0123456789"
    assert fetch(f"s3://{s3.bucket}/audio/empty.wav", max_bytes=10) == b""
    with pytest.raises(RejectedRow) as rejected:
        fetch(f"s3://{s3.bucket}/audio/none.wav", max_bytes=10)
    assert rejected.value.reason == Reason.NOT_FOUND


def test_wrong_credentials_stop_the_job(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if credentials that do not count cost every row that is left, or the message does not say whose they are."""
    s3.filesystem().pipe_file(f"{s3.bucket}/secret.wav", b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody-WXYZ")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(JobError, match=r"secret\.wav.*access key …WXYZ.*InvalidAccessKeyId"):
        fetch(f"s3://{s3.bucket}/secret.wav", max_bytes=10)
    store = open_store(f"s3://{s3.bucket}/out")
    for call in (lambda: store.read("x"), lambda: list(store.list("x")), lambda: store.put_if_absent("x", b"")):
        with pytest.raises(JobError, match=r"s3://\w+/out/x: .*access key …WXYZ.*InvalidAccessKeyId"):
            call()
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_brown_out_is_ridden_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if one 503 costs a row."""
    (tmp_path / "a.wav").write_bytes(b"x")
    filesystem, _ = resolve(str(tmp_path))
    failures = iter([OSError(5, "503 SlowDown"), TimeoutError()])
    real = type(filesystem).cat_file

    def flaky(self: object, *arguments: object, **options: object) -> object:
        for failure in failures:
            raise failure
        return real(self, *arguments, **options)

    monkeypatch.setattr(type(filesystem), "cat_file", flaky)
    assert fetch(str(tmp_path / "a.wav"), max_bytes=10) == b"x"


def test_secrets_of_a_uri_are_not_shown() -> None:
    """Fails if a pre-signed query or a password reaches a log, a receipt or a message."""
    assert without_query("https://user:pw@host/a.wav?X-Amz-Signature=s") == "https://host/a.wav"
    assert without_query("s3://key:secret@bucket/a.wav") == "s3://bucket/a.wav"
    assert without_query("/local/what?.wav") == "/local/what?.wav"


def test_an_unknown_scheme_is_the_users_error() -> None:
    """Fails if a typo in a scheme is a traceback."""
    with pytest.raises(ConfigError, match="s4"):
        resolve("s4://bucket/key")
