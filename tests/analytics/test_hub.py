from __future__ import annotations

import io
import json

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from jobs.compact import main
from jobs.erase import main as erase
from pipeline.analytics.hub import Publication, publish_to_hub
from pipeline.dataset.reader import finished_rows
from pipeline.errors import ConfigError
from pipeline.storage.store import open_store
from tests.support import outputs
from tests.support.hub_standin import serve
from tests.support.outputs import finished_output

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's own client
TOKEN = "hf_a-secret-token"
REPO = "ada/emotions"
NAME = f"datasets/{REPO}"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on loopback that takes commits from the token of the environment."""
    with serve({}) as standin:
        standin.writers.add(TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", standin.endpoint)
        template = standin.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield standin


def made(tmp_path):
    finished_output(str(tmp_path / "out"), tmp_path / "m")
    return finished_rows(open_store(str(tmp_path / "out")))


def files_of(hub):
    repository = hub.repositories[NAME]
    return repository.commits[repository.refs["main"]]


def table_of(hub):
    data = [content for name, content in sorted(files_of(hub).items()) if name.startswith("data/")]
    return pa.concat_tables(pq.read_table(io.BytesIO(content)) for content in data).sort_by("utterance_id")


def test_each_run_is_one_commit_and_none_when_it_is_there(tmp_path, hub, capsys):
    """Fails if publishing again makes a commit, a value is changed, a row is lost or doubled, or the repository is public."""
    rows = made(tmp_path)
    assert [plan.plan for plan in publish_to_hub(rows.of(["000001"]), Publication(REPO, target_bytes=1))] == ["000001"]
    command = [str(tmp_path / "out"), "--publish", "hf", "--repo", REPO]
    assert main(command) == 0 and "1 new, 2 finished runs" in capsys.readouterr().out
    assert main(command) == 0 and "nothing new" in capsys.readouterr().out
    assert len(hub.repositories[NAME].commits) == 1 + 2
    assert hub.repositories[NAME].visibility == "private"
    ours = rows.utterances().to_table().sort_by("utterance_id")
    assert table_of(hub).select(ours.column_names).to_pylist() == ours.to_pylist()


def test_large_runs_are_cut_into_files(tmp_path, hub, monkeypatch):
    """Fails if a file grows past the requested size by more than a row group, or a row is lost between two files."""
    monkeypatch.setattr("pipeline.analytics.hub._ROW_GROUP_BYTES", 1)
    rows = made(tmp_path)
    list(publish_to_hub(rows, Publication(REPO, target_bytes=1)))
    assert len([name for name in files_of(hub) if name.startswith("data/000001-")]) > 2
    assert table_of(hub).num_rows == 15


def test_a_run_that_another_publisher_commits_meanwhile_is_not_committed_twice(tmp_path, hub, monkeypatch):
    """Fails if two publishers at once both commit a run, or the slower one fails or leaves runs out."""
    rows = made(tmp_path)
    real, beaten = huggingface_hub.HfApi.create_commit, []

    def beaten_to_it(api, *given, **options):
        if not beaten:
            beaten.append(True)
            assert [plan.plan for plan in publish_to_hub(rows.of(["000001"]), Publication(REPO))] == ["000001"]
        return real(api, *given, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", beaten_to_it)
    assert [plan.plan for plan in publish_to_hub(rows, Publication(REPO))] == ["000002"]
    assert len(hub.repositories[NAME].commits) == 1 + 2 and table_of(hub).num_rows == 15


def test_the_card_tells_the_models_the_limits_and_the_columns(tmp_path, hub):
    """Fails if the card lacks what a reader must know, names a folder, or the licence is not the user's."""
    output = str(tmp_path / "out")
    made(tmp_path)
    assert main([output, "--publish", "hf", "--repo", REPO, "--license", "cc-by-4.0"]) == 0
    text = files_of(hub)["README.md"].decode()
    metadata = huggingface_hub.RepoCard(text).data.to_dict()
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["configs"] == [{"config_name": "default", "data_files": "data/*.parquet"}]
    assert "Do not base decisions about people" in text and "| 000002 |" in text
    assert (
        "| `emotion` | `string` | the label in one vocabulary" in text
        and "| `take` | `int64` | of the manifest |" in text
    )
    records = [json.loads(content) for name, content in files_of(hub).items() if name.startswith("runs/")]
    assert {record["run_id"]: record["utterances"] for record in records} == {"000001": 12, "000002": 3}
    assert str(tmp_path) not in text + json.dumps(records) and TOKEN not in text


def test_a_card_of_the_user_is_kept(tmp_path, hub):
    """Fails if words or metadata that somebody wrote on the hub are lost with the next run."""
    rows = made(tmp_path)
    list(publish_to_hub(rows.of(["000001"]), Publication(REPO)))
    before = files_of(hub)["README.md"].decode()
    files_of(hub)["README.md"] = (
        before.replace("---\n\n", "language: en\n---\n\nOur own words.\n", 1).encode() + b"And after."
    )
    list(publish_to_hub(rows, Publication(REPO)))
    text = files_of(hub)["README.md"].decode()
    assert "language: en\n" in text and "Our own words." in text and text.endswith("And after.")
    assert text.count("| 000001 |") == text.count("| 000002 |") == 1


@pytest.mark.parametrize("texts", ["none", "hash"])
def test_texts_are_published_as_the_output_keeps_them(tmp_path, hub, monkeypatch, texts):
    """Fails if a text that the output may not keep, or a column that is left out, reaches the hub."""
    monkeypatch.setattr(outputs, "FLAGS", {"texts": texts})
    made(tmp_path)
    command = [str(tmp_path / "out"), "--publish", "hf", "--repo", REPO, "--leave-out", "audio", "take"]
    assert main(command) == 0
    everything = b"".join(files_of(hub).values())
    assert b"Words 1." not in everything and b"/a/1.wav" not in everything
    table = table_of(hub)
    assert not {"audio", "take"} & set(table.column_names)
    assert {len(text or "") for text in table["text"].to_pylist()} == ({0} if texts == "none" else {64})
    assert "Columns left out: audio, take." in files_of(hub)["README.md"].decode()


def test_runs_of_another_output_are_not_taken_for_ours(tmp_path, hub):
    """Fails if run 000001 of a second output is skipped because the repository has a run of this number."""
    list(publish_to_hub(made(tmp_path / "one"), Publication(REPO)))
    with pytest.raises(ConfigError, match="a repository of its own"):
        list(publish_to_hub(made(tmp_path / "two"), Publication(REPO)))


def test_what_cannot_be_published_is_said_in_one_sentence(tmp_path, hub, monkeypatch, capsys):
    """Fails if a missing or wrong token, an ID, a column or a licence ends in a traceback, or the token is printed."""
    output = str(tmp_path / "out")
    made(tmp_path)
    command = [output, "--publish", "hf", "--repo", REPO]
    for words, status, sentence in (
        (["--license", "wrong"], 2, "must be one of"),
        (["--leave-out", "adio"], 2, "did you mean 'audio'"),
        (["--repo", "a/b/c"], 2, "hub dataset a/b/c"),
        (["--table", "x"], 2, "go together"),
    ):
        assert main([*command, *words]) == status and sentence in capsys.readouterr().err
    assert main([output, "--license", "mit"]) == 2
    monkeypatch.setenv("HF_TOKEN", "hf_of-somebody-else")
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "HF_TOKEN" in error and "hf_of" not in error
    monkeypatch.delenv("HF_TOKEN")
    assert main(command) == 2 and "HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert main(command) == 1 and "hub dataset" in capsys.readouterr().err


def test_an_erasure_names_the_copies_that_it_does_not_reach(tmp_path, hub, capsys):
    """Fails if somebody who erases a row is not told that a hub has it, with its history."""
    output = str(tmp_path / "out")
    made(tmp_path)
    assert erase([output, "--recording", "r1"]) == 0 and "hub" not in capsys.readouterr().out
    assert main([output, "--publish", "hf", "--repo", REPO]) == 0
    assert erase([output, "--recording", "r1"]) == 0
    assert f"not erased: the copies in hub dataset {REPO}" in capsys.readouterr().out
    assert erase([output, "--recording", "r1", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["copies_on_a_hub"] == [REPO]
