"""Audio roots: what a reference means, and that nothing outside the allowed places passes."""

from __future__ import annotations

import os
import pickle
import time
import timeit
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, Reason, RejectedRow, Stage
from pipeline.redaction import without_query
from pipeline.storage.access import AudioRoots
from pipeline.storage.fetch import fetch
from pipeline.storage.uri import resolve_audio
from tests.support.cases import case

LOCAL, BUCKET, HTTP = "/data/sets/m.jsonl", "s3://bucket/sets/m.jsonl", "https://host/sets/m.jsonl?X-Sig=CANARY"


RESOLVED = [
    ("a.wav", LOCAL, "/data/sets/a.wav"),
    ("./x//a.wav", LOCAL, "/data/sets/x/a.wav"),
    ("../a.wav", LOCAL, "/data/a.wav"),
    ("/x/../a.wav", LOCAL, "/a.wav"),
    ("//x/a.wav", LOCAL, "/x/a.wav"),
    ("a.wav", "/m.jsonl", "/a.wav"),
    ("file:///x/a b%20.wav", LOCAL, "/x/a b%20.wav"),
    ("FILE://localhost/x/a.wav", LOCAL, "/x/a.wav"),
    ("~/a.wav", LOCAL, "/data/sets/~/a.wav"),
    ("..\\..\\a.wav", LOCAL, "/data/sets/..\\..\\a.wav"),
    ("C:\\a.wav", LOCAL, "/data/sets/C:\\a.wav"),
    ("%2e%2e/a.wav", LOCAL, "/data/sets/%2e%2e/a.wav"),
    ("12:30:05.wav", LOCAL, "/data/sets/12:30:05.wav"),
    ("what?.wav", LOCAL, "/data/sets/what?.wav"),
    ("niño 🎤.wav", LOCAL, "/data/sets/niño 🎤.wav"),
    ("s3://b/a.wav", LOCAL, "s3://b/a.wav"),
    ("S3://b/x/../a.wav", LOCAL, "s3://b/a.wav"),
    ("a.wav", BUCKET, "s3://bucket/sets/a.wav"),
    ("../a.wav", BUCKET, "s3://bucket/a.wav"),
    ("x//a.wav", BUCKET, "s3://bucket/sets/x//a.wav"),
    ("%2e%2e/a.wav", BUCKET, "s3://bucket/sets/%2e%2e/a.wav"),
    ("/etc/passwd", BUCKET, "/etc/passwd"),
    ("a.wav", "s3://bucket/m.jsonl", "s3://bucket/a.wav"),
    ("a.wav", "memory://m.jsonl", "memory://a.wav"),
    ("a.wav", "memory://sets/m.jsonl", "memory://sets/a.wav"),
    ("a.wav?v=1", HTTP, "https://host/sets/a.wav?v=1"),
    ("/a.wav", HTTP, "https://host/a.wav"),
    ("//other/a.wav", HTTP, "https://other/a.wav"),
    ("http://h/x/./y/../a.wav?p=../..", HTTP, "http://h/x/a.wav?p=../.."),
    ("abfss://c@acc.dfs.core.windows.net/x/a.wav", LOCAL, "abfss://c@acc.dfs.core.windows.net/x/a.wav"),
]


def test_resolve() -> None:
    """Fails if a reference is read against the working directory, or a key is treated as a path or a URL."""
    for audio, manifest, expected in RESOLVED:
        with case(audio, manifest, expected):
            assert resolve_audio(audio, manifest) == expected


def test_resolve_relative_manifest(tmp_path, monkeypatch) -> None:
    """Fails if the folder of a relative manifest is remembered across a change of directory."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert resolve_audio("a.wav", "m.jsonl") == str(tmp_path / name / "a.wav")


NEVER = [
    "ftp://h/a.wav", "gopher://h/a", "sftp://h/a", "data:audio/wav;base64,AAAA", "data://x/a",
    "concat:a.wav|/etc/passwd", "CONCAT:a.wav", "subfile,,start,0,end,9,,:/etc/passwd", "pipe:0",
    "fd:3", "file:/etc/passwd", "file://evil/share/a",
    "local:///etc/passwd", "reference://x", "github://o:r@/a", "zip://a.wav::s3://b/x.zip", "simplecache::s3://b/a.wav",
    "a::b.wav", "filecache://::file:///etc/passwd", "smb://h/a", "git://x/a", "root://x/a", "crypto:a", "tee:a",
    "http:x", "s3:///a.wav", "http:///a.wav", "s3://b/../../c", "s3://b/x/../../c/a.wav", "http://h/../../a", "http://h/%2e%2e/a",
    "http://h/%252e%252e/a", "http://h/x/%2E%2E%2Fa", "http://h/x/..%2fa", "http://h/x/..%5ca", "http://h/x/..\\..\\a",
    "http://h/x/..;/a", "http://h/x/%2e%2e;p=1/a", "http://h/a%00.wav", "http://h/a%0d%0aHost:evil", "a\0.wav",
    "a\n.wav", "s3://b/a\r.wav", "",
]  # fmt: skip


def test_never_opened() -> None:
    """Fails if a pseudo-protocol, a chain or hidden dots get past `resolve_audio`, whatever the manifest's store."""
    for audio in NEVER:
        with case(audio):
            for manifest in (LOCAL, BUCKET, HTTP):
                with pytest.raises(RejectedRow) as caught:
                    resolve_audio(audio, manifest)
                assert (caught.value.reason, caught.value.stage) == (Reason.NOT_ALLOWED, Stage.MANIFEST), manifest


def test_check_refuses_without_resolve() -> None:
    """Fails if `check`, given a reference that nobody resolved, takes it for something under the root."""
    for audio in [uri for uri in NEVER if not uri.startswith("file:/")]:
        with case(audio):
            refused = []
            for prefix in ("/", "s3://b", "http://h", "memory://"):
                try:
                    AudioRoots.parse([prefix], [LOCAL]).check(audio)
                except RejectedRow:
                    refused.append(prefix)
            assert refused == ["/", "s3://b", "http://h", "memory://"]


def test_leaves_bucket() -> None:
    """Fails if `..` climbs from one bucket into another."""
    with pytest.raises(RejectedRow, match="leaves its bucket"):
        resolve_audio("../../other/a.wav", BUCKET)


DEFAULTS = [
    # manifest, audio, allowed
    (LOCAL, "/anywhere/a.wav", True),
    (LOCAL, "file:///anywhere/a.wav", True),
    (LOCAL, "s3://b/a.wav", False),
    (LOCAL, "http://169.254.169.254/latest/meta-data/", False),
    (LOCAL, "memory://a.wav", False),
    (BUCKET, "s3://bucket/a.wav", True),
    (BUCKET, "s3://other-bucket/a.wav", True),
    (BUCKET, "s3a://other-bucket/a.wav", True),
    (BUCKET, "gs://other/a.wav", False),
    (BUCKET, "/etc/passwd", False),
    (BUCKET, "https://bucket.s3.amazonaws.com/a.wav", False),
    (HTTP, "https://host/sets/a.wav", False),
    (HTTP, "/etc/passwd", False),
    ("memory://m.jsonl", "memory://x/a.wav", True),
    ("memory://m.jsonl", "/x/a.wav", False),
    ("az://c/m.jsonl", "abfss://c@acc.dfs.core.windows.net/a.wav", True),
    ("sftp://h/m.jsonl", "sftp://h/a.wav", False),
]


def test_default_is_the_manifests_store() -> None:
    """Fails if a manifest without roots can name another store than its own, above all a bucket's a local file."""
    for manifest, audio, allowed in DEFAULTS:
        with case(manifest, audio, allowed):
            assert _allowed(AudioRoots.parse([], [manifest]), audio) is allowed


def test_mixed_stores_need_prefixes() -> None:
    """Fails if a bucket's manifest read beside a local one could name local files."""
    with pytest.raises(ConfigError, match="--audio-root"):
        AudioRoots.parse([], [LOCAL, BUCKET])
    assert _allowed(AudioRoots.parse(["s3://bucket", "/data"], [LOCAL, BUCKET]), "s3://bucket/a.wav")


PREFIXES = [
    # prefix, audio, allowed
    ("s3://b/audio", "s3://b/audio/a.wav", True),
    ("s3://b/audio/", "s3://b/audio/x/a.wav", True),
    ("s3://b/audio/", "s3://b/audio", True),
    ("s3://b/audio/", "s3://b/audio-private/a.wav", False),
    ("s3://b/audio", "s3://b//audio/a.wav", False),
    ("s3://b/audio", "s3://b/x/../audio/a.wav", False),
    ("s3://b/audio", "s3://b/audio/%2e%2e/x.wav", True),  # a key: S3 does not decode it
    ("s3://b/audio", "s3a://b/audio/a.wav", True),
    ("s3://b/audio", "s3://b2/audio/a.wav", False),
    ("s3://b/audio", "s3://B/audio/a.wav", False),
    ("s3://b/audio", "s3://other-bucket/audio/a.wav", False),
    ("s3://b", "s3://b/any/a.wav", True),
    ("s3://b", "s3://b-2/any/a.wav", False),
    ("s3://b", "/etc/passwd", False),
    ("abfss://c@one.dfs.core.windows.net/x", "abfss://c@two.dfs.core.windows.net/x/a.wav", False),
    ("https://h/audio", "https://h/audio/a.wav?X-Sig=1", True),
    ("https://h/audio", "https://h:443/audio/a.wav", True),
    ("https://h/audio", "HTTPS://H/audio/a.wav", True),
    ("https://h/audio", "http://h/audio/a.wav", False),
    ("https://h/audio", "https://h:8443/audio/a.wav", False),
    ("https://h/audio", "https://h/audio-private/a.wav", False),
    ("https://h/audio", "https://h/?/audio/a.wav", False),
    ("https://h/audio", "https://h/audio/../secret", False),
    ("https://h/audio", "https://h/audio/%2e%2e/secret", False),
    ("https://h/audio", "https://h/audio/..%2fsecret", False),
    ("https://h/audio", "https://h/audio/..;/secret", False),
    ("https://h/audio", "https://h.evil.com/audio/a.wav", False),
    ("https://h/audio", "https://h@evil.com/audio/a.wav", False),
    ("https://h/audio", "https://h:443@evil.com/audio/a.wav", False),
    ("https://h/audio", "https://user:secret@h/audio/a.wav", True),
    ("https://h/audio", "https://evil.com#@h/audio/a.wav", False),
    ("https://h/audio", "https://evil.com\\@h/audio/a.wav", False),
    ("https://h/audio", "https://h /audio/a.wav", False),
    ("https://h/audio", "https://h:x/audio/a.wav", False),
    ("https://h", "https://h/any", True),
    ("https://h", "https://h", True),
    ("http://127.0.0.1:9000/b", "http://127.0.0.1:9000/b/a.wav", True),
    ("http://127.0.0.1:9000/b", "http://127.0.0.1/b/a.wav", False),
    ("http://127.0.0.1", "http://2130706433/a.wav", False),
    ("http://[::1]", "http://[::1]/a.wav", True),
    ("http://h", "http://[::1]/a.wav", False),
    ("memory://x", "memory://x/a.wav", True),
    ("memory://x", "memory://y/a.wav", False),
]


def test_prefixes() -> None:
    """Fails if a prefix is compared as text instead of by host and whole path segments."""
    for prefix, audio, allowed in PREFIXES:
        with case(prefix, audio, allowed):
            assert _allowed(AudioRoots.parse([prefix], [LOCAL]), audio) is allowed


INTERNAL_HOSTS = ["169.254.169.254", "[::1]", "127.0.0.1", "localhost", "2852039166", "0xA9FEA9FE", "0251.0376.0251.0376",
                  "127.1", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "metadata.google.internal", "10.0.0.1"]  # fmt: skip


def test_internal_addresses_say_so() -> None:
    """Fails if an inside address in any spelling passes, or its refusal advises to open it like any other."""
    for host in INTERNAL_HOSTS:
        with case(host), pytest.raises(RejectedRow, match="internal address"):
            AudioRoots.parse(["http://good/audio"], [LOCAL]).check(f"http://{host}/audio/a.wav")


def test_local_roots_follow_links(tmp_path) -> None:
    """Fails if a link inside a root leads out of it, as a file, as a folder, or through `..` behind a link."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "inner").mkdir(parents=True)
    (outside / "deep").mkdir(parents=True)
    (outside / "secret.wav").touch()
    (root / "inner" / "a.wav").touch()
    (root / "link.wav").symlink_to(outside / "secret.wav")
    (root / "folder").symlink_to(outside / "deep")
    (root / "fine.wav").symlink_to(root / "inner" / "a.wav")
    (root / "loop").symlink_to(root / "loop")
    (tmp_path / "alias").symlink_to(root)
    for roots in (AudioRoots.parse([str(root)], []), AudioRoots.parse([f"{tmp_path}/alias/"], [])):
        for name in ("inner/a.wav", "inner/none.wav", "fine.wav", "inner/../inner/a.wav"):
            assert _allowed(roots, f"{root}/{name}"), name
        assert _allowed(roots, f"{tmp_path}/alias/inner/a.wav")
        for name in ("link.wav", "folder/x.wav", "folder/../secret.wav", "../outside/secret.wav", "../root-2/a.wav"):
            assert not _allowed(roots, f"{root}/{name}"), name
    with pytest.raises(RejectedRow, match=r"whose real path is .*outside/secret\.wav"):
        AudioRoots.parse([str(root)], []).check(f"{root}/link.wav")


def test_local_root_of_the_working_directory(tmp_path, monkeypatch) -> None:
    """Fails if a relative root, `.` or `/` is not understood."""
    (tmp_path / "audio").mkdir()
    monkeypatch.chdir(tmp_path)
    for prefix in ("audio", "./audio/", ".", "/", f"file://{tmp_path}/audio"):
        assert _allowed(AudioRoots.parse([prefix], []), f"{tmp_path}/audio/a.wav"), prefix
    assert not _allowed(AudioRoots.parse(["audio"], []), f"{tmp_path}/audio-2/a.wav")


BAD_PREFIXES = [
    "",
    "ftp://h/",
    "s3://",
    "http://",
    "https://h/a?sig=CANARY",
    "https://u:CANARY@h/",
    "zip://x::s3://b",
    "a\nb",
]


def test_bad_prefixes() -> None:
    """Fails if a root that can match nothing, or would match more than meant, is taken in silence."""
    for prefix in BAD_PREFIXES:
        with case(prefix):
            with pytest.raises(ConfigError) as caught:
                AudioRoots.parse([prefix], [LOCAL])
            assert "CANARY" not in str(caught.value)


WITH_SECRETS = [
    "https://u:CANARY@h/x/a.wav?X-Sig=CANARY#CANARY",
    "a.wav?X-Sig=CANARY",
    "ftp://u:p@h/x?CANARY",
    "az://c/a?CANARY",
]


def test_refusals_keep_secrets() -> None:
    """Fails if a refusal quotes a query string, a fragment or a password."""
    for audio in WITH_SECRETS:
        with case(audio):
            roots = AudioRoots.parse(["s3://b"], [HTTP])
            with pytest.raises(RejectedRow) as caught:
                roots.check(resolve_audio(audio, HTTP))
            assert "CANARY" not in caught.value.detail


def test_refusal_names_the_root_that_would_do() -> None:
    """Fails if a refused user is not told the flag to set."""
    with pytest.raises(RejectedRow, match=r"--audio-root s3://b/x/$"):
        AudioRoots.parse([], [LOCAL]).check("s3://b/x/a.wav")


def test_without_query_of_local_files() -> None:
    """Fails if a local name is cut at `?` or `#`, which are ordinary characters there."""
    assert without_query("/x/what?.wav") == "/x/what?.wav"
    assert without_query("s3://b/a#1.wav") == "s3://b/a#1.wav"


def test_pickles() -> None:
    """Fails if the roots cannot travel to a worker, which must check again before it opens."""
    roots = AudioRoots.parse(["s3://b/audio"], [])
    assert pickle.loads(pickle.dumps(roots)) == roots


def test_cost(tmp_path) -> None:
    """Fails if a check costs a walk of the path for every row (20 microseconds of CPU time; 100 allowed)."""
    folder = tmp_path / "/".join("abcdefgh")
    folder.mkdir(parents=True)
    local, bucket = AudioRoots.parse([str(tmp_path)], []), AudioRoots.parse(["s3://b/audio"], [])
    calls = 2000
    for roots, uri in ((local, os.fspath(folder / "x.wav")), (bucket, "s3://b/audio/x/y.wav")):
        timed = timeit.repeat(lambda r=roots, u=uri: r.check(u), number=calls, repeat=3, timer=time.process_time)
        assert min(timed) / calls < 100e-6


def _allowed(roots: AudioRoots, uri: str) -> bool:
    try:
        roots.check(uri)
    except RejectedRow as refused:
        assert refused.reason is Reason.NOT_ALLOWED
        return False
    return True


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_turned_link(tmp_path, depth) -> None:
    """Fails if a folder's link that is turned while a worker lives is still answered for where it led before."""
    root, secret = tmp_path / "root", tmp_path / "secret"
    below = Path(*"abc"[:depth])
    for folder, content in ((root / "real", b"inside"), (secret, b"SECRET")):
        (folder / below).mkdir(parents=True)
        (folder / below / "a.wav").write_bytes(content)
    link = root / "day"
    link.symlink_to(root / "real")
    roots, audio = AudioRoots.parse([str(root)], []), str(link / below / "a.wav")
    roots.check(audio)
    assert fetch(audio, max_bytes=100, allow=roots.check_opened) == b"inside"
    link.unlink()
    link.symlink_to(secret)
    assert not _allowed(roots, audio)
    with pytest.raises(RejectedRow, match="is outside the audio roots") as refused:
        fetch(audio, max_bytes=100, allow=roots.check_opened)
    assert refused.value.reason is Reason.NOT_ALLOWED
    link.unlink()
    link.symlink_to(root / "real")
    assert _allowed(roots, audio)


@pytest.mark.parametrize("what", ["folder", "file", "root"])
def test_link_turned_between_the_check_and_the_opening(tmp_path, what, monkeypatch) -> None:
    """Fails if the name is checked, and the file that is opened a moment later is another."""
    root, secret = tmp_path / "root", tmp_path / "secret"
    for folder, content in ((root / "day", b"inside"), (secret / "day", b"SECRET")):
        folder.mkdir(parents=True)
        (folder / "a.wav").write_bytes(content)
    roots, audio = AudioRoots.parse([str(root)], []), root / "day" / "a.wav"
    turned = {"file": audio, "folder": audio.parent, "root": root}[what]
    other = secret / audio.relative_to(root) if what != "folder" else secret / "day"
    real_open = os.open

    def turn(path, *arguments, **options):
        if str(path) == str(audio) and not turned.is_symlink():
            turned.rename(tmp_path / "away")
            turned.symlink_to(secret if what == "root" else other)
        return real_open(path, *arguments, **options)

    roots.check(str(audio))
    monkeypatch.setattr(os, "open", turn)
    if what == "root":  # a root may be a link: what it leads to now is inside
        assert fetch(str(audio), max_bytes=100, allow=roots.check_opened) == b"SECRET"
        return
    with pytest.raises(RejectedRow, match="is outside the audio roots"):
        fetch(str(audio), max_bytes=100, allow=roots.check_opened)
