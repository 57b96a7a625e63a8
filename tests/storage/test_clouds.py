"""Google Cloud Storage, on fake-gcs-server, and Azure, on Azurite where `make test-azure` names one."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from types import SimpleNamespace

import azure.core.exceptions
import google.auth.exceptions
import pytest

from pipeline.errors import ConfigError, JobError, Reason, RejectedRow
from pipeline.layout import PROBE
from pipeline.storage import cleanup
from pipeline.storage.clouds import CloudError, client_options, plain_client_errors
from pipeline.storage.fetch import fetch
from pipeline.storage.retry import is_final, is_refusal, retried
from pipeline.storage.store import Store, open_store, require_conditional_writes
from tests.support.cloud_servers import SERVERS, bucket
from tests.support.racing import race


@pytest.fixture(scope="module", params=sorted(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with bucket(request.param, tmp_path_factory.mktemp(request.param)) as uri:
        yield uri


@pytest.fixture
def store(server: str, request: pytest.FixtureRequest) -> Store:
    return open_store(f"{server}/{request.function.__name__}")


def test_the_first_writer_wins_and_stays(store: Store) -> None:
    """Fails if a second write replaces the first, or is told that it won; the probe must then refuse the store."""
    require_conditional_writes(store, PROBE)
    require_conditional_writes(store, PROBE)
    assert store.put_if_absent("a/b.parquet", b"first")
    assert not store.put_if_absent("a/b.parquet", b"second")
    assert store.read("a/b.parquet") == b"first"


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # by gcsfs and azure-core
def test_a_large_object_is_written_once(store: Store) -> None:
    """Fails if objects of 50 MiB are uploaded in pieces whose last is not conditional."""
    assert store.put_if_absent("large", b"x" * (50 << 20))
    assert not store.put_if_absent("large", b"y" * (50 << 20))
    assert store.read_tail("large", 1) == b"x"


def test_one_of_sixteen_racers_wins(store: Store) -> None:
    """Fails if put-if-absent is a look followed by a write."""
    race(store)


def test_reading_listing_and_tails(store: Store) -> None:
    """Fails if a listing misses an object, also one written since the last listing, or a tail is not the end."""
    for number, key in enumerate(("x/one", "x/y/two", "z/three")):
        assert len(list(store.list(""))) == number and list(store.list("nothing/here")) == []
        store.put_if_absent(key, key.encode() * 100)
    assert {entry.key: entry.size_bytes for entry in store.list("x")} == {"x/one": 500, "x/y/two": 700}
    assert store.read_tail("x/one", 5) == b"x/one" and store.read_tail("x/one", 10_000) == b"x/one" * 100
    store.put_if_absent("empty", b"")
    assert store.read_tail("empty") == b""
    with store.open("z/three") as file:
        file.seek(-5, os.SEEK_END)
        assert file.read() == b"three"
    for read in (store.read, store.open, store.read_tail):
        with pytest.raises(FileNotFoundError):
            read("absent")


def test_audio_is_fetched_or_rejected_with_its_reason(store: Store) -> None:
    """Fails if a missing or oversized object is anything but its own row's reject, or an empty one cannot be read."""
    store.put_if_absent("a.wav", b"0123456789")
    store.put_if_absent("empty.wav", b"")
    assert fetch(f"{store.root}/a.wav", max_bytes=10) == b"0123456789"
    assert fetch(f"{store.root}/empty.wav", max_bytes=10) == b""
    for name, reason in (("a.wav", Reason.TOO_LARGE), ("none.wav", Reason.NOT_FOUND)):
        with pytest.raises(RejectedRow) as rejected:
            fetch(f"{store.root}/{name}", max_bytes=9)
        assert rejected.value.reason == reason


def test_files_are_aged_replaced_and_removed(store: Store) -> None:
    """Fails if jobs.prune or jobs.erase cannot work on such an output."""
    store.put_if_absent("a", b"1")
    (file,) = cleanup.walk(store)
    assert (file.key, file.size_bytes) == ("a", 1) and file.modified_s > 1e9
    cleanup.replace(store, "a", b"22")
    assert store.read("a") == b"22" and list(cleanup.uploads(store)) == []
    cleanup.remove(store, "a")
    cleanup.remove(store, "a")
    assert list(store.list("")) == []


def test_a_bucket_that_is_missing_is_named(server: str) -> None:
    """Fails if the user gets a traceback of the client library."""
    with pytest.raises(ConfigError, match=r"cannot write to the output '.*://nobucket/out'"):
        require_conditional_writes(open_store(f"{server.partition('://')[0]}://nobucket/out"), PROBE)


def of_google(code: int) -> Exception:
    client_options("gs", 1, 1)  # sets what gcsfs reads when it is imported
    import gcsfs.retry

    return gcsfs.retry.HttpError({"code": code, "message": "why"})  # type: ignore[no-any-return]


def of_azure(status: int, code: str = "") -> Exception:
    error = azure.core.exceptions.HttpResponseError("why\nRequestId: 1", SimpleNamespace(status_code=status, reason=""))
    error.error_code = code
    return error


@pytest.mark.parametrize(
    ("error", "kind", "final", "refusal"),
    [
        (of_google(503), CloudError, False, False), (of_azure(503), CloudError, False, False),
        (of_google(429), CloudError, False, False), (of_azure(429), CloudError, False, False),
        (azure.core.exceptions.ServiceRequestError("no connection"), CloudError, False, False),
        (of_google(400), CloudError, True, True), (of_azure(400, "InvalidUri"), CloudError, True, True),
        (ValueError("Bad Request: b\ninvalid name"), CloudError, True, True),
        (of_google(404), FileNotFoundError, True, False), (of_azure(404), FileNotFoundError, True, False),
        (OSError("Forbidden: b/o\nno"), PermissionError, False, False), (of_azure(403), PermissionError, False, False),
    ],
)  # fmt: skip
def test_errors_of_the_clients_are_those_of_a_store(
    error: Exception, kind: type[OSError], final: bool, refusal: bool
) -> None:
    """Fails if a brown-out of one of these stores ends the job, or an error about one object is retried for a minute."""
    with pytest.raises(kind) as raised, plain_client_errors():
        raise error
    assert type(raised.value) is kind and "RequestId" not in str(raised.value)
    if kind is not PermissionError:
        assert is_final(raised.value) == final
    assert is_refusal(raised.value) == refusal
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.parametrize(
    "error",
    [of_google(401), of_azure(401), of_azure(403, "AuthenticationFailed"),
     google.auth.exceptions.DefaultCredentialsError("none were found")],
)  # fmt: skip
def test_credentials_that_do_not_count_stop_the_job(error: Exception) -> None:
    """Fails if an expired token costs every row that is left."""

    def call() -> None:
        raise error

    with pytest.raises(JobError, match="reading x: the store does not accept the credentials"):
        retried(call, what="reading x")


def test_other_errors_stay_as_they_are() -> None:
    """Fails if the translation hides an error of this project, or of the disk."""
    for error in (OSError(28, "No space left on device"), ValueError("x"), KeyError("x"), FileExistsError(17, "x")):
        with pytest.raises(type(error)) as raised, plain_client_errors():
            raise error
        assert raised.value is error
