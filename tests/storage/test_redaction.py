"""What is left of a URL in messages, rejects and outputs, wherever in a text it is and however it is written."""

from __future__ import annotations

import itertools
import json
import pickle

import pytest

from jobs.parser import Parser
from pipeline.errors import ConfigError, JobError, Reason, RejectedRow, Stage
from pipeline.redaction import redacted, redacted_audio, redacted_line, without_query
from tests.support.cases import case

C = "CANARY"
HTTP, LOCAL = "https://host/m.jsonl", "/data/m.jsonl"


URIS = [
    (f"https://u:{C}@host:8080/a.wav?X-Amz-Signature={C}#{C}", "https://host:8080/a.wav"),
    (f"https://{C}@host/a.wav", "https://host/a.wav"),
    (f"HTTP://host/a.wav#{C}", "HTTP://host/a.wav"),
    (f"http://u:{C}?{C}@host/a.wav", "http://…"),
    (f"http:/host/a.wav?{C}", "http:/host/a.wav"),
    (f"ftp://u:{C}@host/a.wav?{C}", "ftp://host/a.wav"),
    (f"simplecache::https://host/a.wav?{C}", "simplecache::https://host/a.wav"),
    (f"s3://key:{C}@bucket/a.wav", "s3://bucket/a.wav"),
    ("http://[::1]:8000/a.wav?x", "http://[::1]:8000/a.wav"),
    ("abfss://container@account.dfs.core.windows.net/a?b", "abfss://container@account.dfs.core.windows.net/a?b"),
    ("s3://b/q?0.wav", "s3://b/q?0.wav"),
    ("s3://b/q#0.wav", "s3://b/q#0.wav"),
    ("s3://b/k?versionId=3", "s3://b/k?versionId=3"),
    ("s3://b/http://site/page?id=1.wav", "s3://b/http://site/page?id=1.wav"),
    ("gs://b/what?/a.wav#17", "gs://b/what?/a.wav#17"),
    ("/x/what?.wav", "/x/what?.wav"),
    ("file:///x/what?.wav", "file:///x/what?.wav"),
]


def test_without_query() -> None:
    """Fails if a query, a fragment or a user name is shown, or the name of an object is cut at a `?` that belongs to it."""
    for uri, shown in URIS:
        with case(uri, shown):
            assert without_query(uri) == shown == without_query(shown)


def test_credentials_in_keys_are_told_apart_and_not_shown() -> None:
    """Fails if a query that was pasted onto an object's name is shown, or if two such names become one."""
    names = [
        f"s3://b/a.wav?{name}={C}{n}&part=1"
        for n in range(3)
        for name in ("X-Amz-Signature", "sig", "token", "Signature")
    ]
    shown = list(map(without_query, names))
    assert C not in "".join(shown) and len(set(shown)) == len(names)
    assert all(name.startswith("s3://b/a.wav?") and name.endswith("&part=1") for name in shown)
    assert list(map(without_query, shown)) == shown


URLS = [
    f"https://host/a.wav?X-Amz-Credential=x&X-Amz-Signature={C}",
    f"https://host/a.wav?{C}",
    f"https://host/my own.wav?k={C}",
    f"https://host/a.wav?name=J S&k={C}",
    f"https://host/a.wav#{C}",
    f"https://user:{C}@host/a.wav",
    f"https://{C}@host/a.wav",
    f"s3://bucket/a.wav?sig={C}",
    f"a/x.wav?X-Amz-Signature={C}",
    f"/x.wav?p=1&token={C}",
    f"//user:{C}@host/x.wav",
    f"a/x.wav?{C}",
    f"a/x.wav#{C}",
]
LINES = {
    "JSON": lambda url: json.dumps({"id": "row-1", "audio": url, "text": "Are you there? Yes."}),
    "JSON of PHP": lambda url: json.dumps({"id": "row-1", "audio": url}).replace("/", "\\/"),
    "JSON of Go": lambda url: json.dumps({"id": "row-1", "audio": url}).replace("&", "\\u0026").replace("?", "\\u003f"),
    "cut JSON": lambda url: json.dumps({"id": "row-1", "audio": url})[:-2],
    "single quotes": lambda url: str({"id": "row-1", "audio": url}),
    "CSV": lambda url: f"row-1,{url},some text",
    "quoted CSV": lambda url: f'row-1,"{url}","some text"',
    "TSV": lambda url: f"row-1\t{url}\tsome text",
    "cut in the URL": lambda url: f"row-1,{url[: url.find(C) + 4]}",
}


def test_lines_of_an_http_manifest() -> None:
    """Fails if a rejected line keeps a token, whatever the URL and the format; or loses what is before it."""
    for form, url in itertools.product(LINES, URLS):
        with case(form, url):
            shown = redacted_line(LINES[form](url), HTTP)
            assert C[:4] not in shown and "row-1" in shown
            assert redacted_line(shown, HTTP) == shown


def test_lines_keep_the_rest() -> None:
    """Fails if more than the query is cut from a line."""
    line = json.dumps({"id": "1", "audio": f"https://host/a.wav?k={C}", "text": "Who? Me.", "size": 7})
    assert redacted_line(line, LOCAL) == line.replace(f"?k={C}", "?…")
    for line in ('{"audio": "s3://b/q?0.wav", "text": "Who?"}', "/data/what?.wav,Who?,https://host/a.wav"):
        assert redacted_line(line, LOCAL) == line


ENDS = [":", ",", ".", ")", "; so", ": no answer", "/: no answer", "/a.wav, and"]


HOSTS = [
    "http://127.0.0.1:8265",
    "https://host",
    "http://[::1]:80",
    "http://[::1]",
    "s3://bucket",
]


def test_sentences_around_a_url_stay() -> None:
    """Fails if the colon behind an address makes its port look like a password."""
    for end, host in itertools.product(ENDS, HOSTS):
        with case(end, host):
            assert redacted(f"no head answers at {host}{end}") == f"no head answers at {host}{end}"


def test_audio_of_rejects() -> None:
    """Fails if the audio of a row that was refused before it was resolved keeps its token, or a local file its `?` not."""
    assert redacted_audio(f"a/x.wav?{C}", HTTP) == "a/x.wav" == redacted_audio(f"a/x.wav#{C}", HTTP)
    assert redacted_audio(f"//u:{C}@h/x.wav", HTTP) == "//h/x.wav"
    assert redacted_audio("what?.wav", LOCAL) == "what?.wav"
    assert redacted_audio(f"https://h/a?{C}", LOCAL) == "https://h/a"


@pytest.mark.parametrize("url", URLS[:-2])
def test_errors_redact_their_messages(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if an error that quotes a URL shows its token: ours, one that wraps aiohttp's, one of the command line."""
    quoted = f"403, message='Forbidden', url={url!r}; see {url!r}, and {url!r}"
    rejected = RejectedRow(Reason.FETCH_FAILED, quoted, Stage.FETCH, 2)
    again = pickle.loads(pickle.dumps(rejected))
    errors = [ConfigError(quoted), JobError(quoted), rejected, again, pickle.loads(pickle.dumps(JobError(quoted)))]
    assert not [error for error in errors if C in str(error)]
    assert again.detail == rejected.detail == redacted(quoted)
    with pytest.raises(SystemExit):
        Parser("p").error(f"invalid int value: {url!r}")
    assert C not in capsys.readouterr().err
