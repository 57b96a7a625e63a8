from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.drift import main
from pipeline.analytics.drift import Window, compare
from pipeline.dataset.plan import read_shard
from pipeline.dataset.reader import finished_rows
from pipeline.errors import ConfigError, Reason, Reject, Stage
from pipeline.shard.commit import finish
from pipeline.shard.context import Work
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import Store, open_store
from tests.support.outputs import plan_rows, publish_plan, recognised

PEOPLE = 1200


def run_of(store: Store, folder: Path, letter: str, *, count: int = PEOPLE, seed: int = 0, joy: float = 0.0,
           shift: float = 0.0, rejected: float = 0.0, confident: bool = False) -> None:  # fmt: skip
    """A finished run of which a share is joyful, a share rejected, and embeddings moved along one axis."""
    records = [
        {"id": f"{letter}{n}", "audio": f"/a/{letter}{n}.wav", "text": "t", "speaker": "a"} for n in range(count)
    ]
    plan = plan_rows(store, folder / letter, records, shard_rows=count)
    work = Work(store.root, plan, AudioRoots.parse(("/a",), []))
    random, reject = np.random.default_rng(seed), Reject(Reason.NOT_FOUND, "no", Stage.FETCH).document()
    for shard in plan.shards():
        table = recognised(read_shard(store, shard), seed)
        labels = np.where(random.random(count) < joy, "joy", table["label"].to_pylist())
        embedding = np.array(table["audio_embedding"].to_pylist())
        embedding[:, 0] += shift
        bad = random.random(count) < rejected
        for name, column in {
            "label": pa.array(labels),
            "emotion": pa.array(labels),
            "reject": pa.array([reject if each else None for each in bad], table.schema.field("reject").type),
            "audio_embedding": pa.FixedSizeListArray.from_arrays(pa.array(embedding.astype(np.float32).reshape(-1)), 4),
            **({"confidence": pa.array(np.full(count, 0.999, np.float32))} if confident else {}),
        }.items():  # fmt: skip
            table = table.set_column(table.schema.get_field_index(name), name, column)
        finish(work, shard, table, {}, max_denied=1.0)
    publish_plan(store, plan)


@pytest.fixture
def output(tmp_path):
    store = open_store(str(tmp_path / "out"))
    run_of(store, tmp_path, "a", seed=1)
    run_of(store, tmp_path, "b", seed=2)
    return store


def drifted(store, reference="000001", current="000002", **options):
    rows = finished_rows(store)
    found = compare(Window(rows.of([reference])), Window(rows.of([current])), **options)
    return {measure.column for measure in found.measures if measure.drifted}, found


def test_two_runs_of_the_same_do_not_drift(output):
    """Fails if chance is called drift, or large runs are called too few."""
    found, compared = drifted(output)
    assert found == set() and compared.recordings == (PEOPLE, PEOPLE) and not compared.left_out
    assert {measure.verdict for measure in compared.measures} == {"ok"} and len(compared.measures) == 11


@pytest.mark.parametrize(
    ("changed", "columns"),
    [({"joy": 0.5}, {"emotion"}), ({"shift": 1.0}, {"audio_embedding"}), ({"rejected": 0.4}, {"reject reasons"}),
     ({"confident": True}, {"confidence"})],
)  # fmt: skip
def test_what_changed_is_named_and_nothing_else(output, tmp_path, changed, columns):
    """Fails if a change in one column goes unseen, or is seen in another."""
    run_of(output, tmp_path, "c", seed=3, **changed)
    assert drifted(output, current="000003")[0] == columns


def test_few_rows_are_no_drift(output, tmp_path):
    """Fails if a small run raises the alarm by chance: 15 rows pass the limit, and stay below the floor."""
    run_of(output, tmp_path, "c", count=15, seed=4)
    found, compared = drifted(output, current="000003")
    assert found == set()
    assert any(measure.value > measure.limit and measure.verdict == "too few" for measure in compared.measures)


def test_numbers_are_those_of_the_formulas(output):
    """Fails if an index, a distance or a shift is another than its definition, computed here in the open."""
    _, compared = drifted(output)
    tables = [
        w.utterances().to_table().to_pandas() for w in (finished_rows(output).of([n]) for n in ("000001", "000002"))
    ]
    by_column = {(measure.column, measure.measure): measure for measure in compared.measures}
    names = sorted({*tables[0].emotion, *tables[1].emotion})
    counts = np.array([[(table.emotion == name).sum() + 0.5 for name in names] for table in tables])
    p, q = counts / counts.sum(axis=1, keepdims=True)
    assert by_column["emotion", "psi"].value == pytest.approx(((p - q) * np.log(p / q)).sum())
    middle = (p + q) / 2
    divergence = (p * np.log2(p / middle) + q * np.log2(q / middle)).sum() / 2
    assert by_column["emotion", "js"].value == pytest.approx(divergence**0.5)
    one, other = (np.stack(table.audio_embedding.to_list()).astype(float) for table in tables)
    spread = np.sqrt(((one - one.mean(axis=0)) ** 2).sum(axis=1).mean())
    shift = np.linalg.norm(one.mean(axis=0) - other.mean(axis=0)) / spread
    assert by_column["audio_embedding", "shift"].value == pytest.approx(shift, rel=1e-5)


def test_chance_passes_the_floor_as_seldom_as_it_says():
    """Fails if the noise floor is another quantile than one in a thousand of what sampling alone gives."""
    from pipeline.analytics.drift import LIMITS, _distribution

    random, over = np.random.default_rng(0), 0
    for _ in range(1500):
        windows = [dict(enumerate(random.multinomial(n, np.full(7, 1 / 7)).tolist())) for n in (300, 500)]
        psi, _ = _distribution("emotion", windows, 1 / 300 + 1 / 500, LIMITS)
        over += psi.value > psi.noise
    assert over <= 6  # 1.5 expected


def test_windows_in_sql_and_of_another_output(output, tmp_path):
    """Fails if a condition is not applied, or rejects that cannot be asked it are compared all the same."""
    rows = finished_rows(output)
    found = compare(Window(rows, "emotion <> 'joy'"), Window(rows, "emotion = 'joy'"))
    assert {m.column for m in found.measures if m.drifted} >= {"emotion"} and found.left_out[0].startswith(
        "reject reasons"
    )
    with pytest.raises(ConfigError, match="current window contains no utterance"):
        compare(Window(rows), Window(rows, "false"))
    with pytest.raises(ConfigError, match="nope"):
        compare(Window(rows), Window(rows, "nope = 1"))


def test_a_scheduler_can_act_on_the_command(output, tmp_path, capsys):
    """Fails if drift, no drift, nothing to compare and a slip of the pen end alike."""
    out = output.root
    assert main([out]) == 0 and "no drift" in capsys.readouterr().out
    run_of(output, tmp_path, "c", seed=3, joy=0.5)
    assert main([out, "--no-embeddings"]) == 3 and "drift: emotion" in capsys.readouterr().out
    assert main([out, "--max-psi", "9", "--max-js", "1"]) == 0
    assert main([out, "--current", "000002", "--reference-output", out, "--reference", "000003", "--json"]) == 3
    said = capsys.readouterr().out
    told = json.loads(said[said.index("{") :])
    assert told["verdict"] == "drift" and told["reference"] == {"runs": ["000003"], "where": None}
    assert told["current"]["runs"] == ["000002"] and told["recordings"] == [PEOPLE, PEOPLE]
    assert main([out, "--current", "000001-000002", "--reference", "000009"]) == 2
    one = open_store(str(tmp_path / "one"))
    run_of(one, tmp_path / "n", "a", count=20)
    assert main([one.root]) == 0 and "nothing to compare" in capsys.readouterr().out
    assert main([one.root, "--json"]) == 0 and json.loads(capsys.readouterr().out)["verdict"] == "nothing to compare"
