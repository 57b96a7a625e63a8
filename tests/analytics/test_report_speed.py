"""The speed that a run's page shows is audio over wall time, however its parts were committed."""

from __future__ import annotations

import os
import random
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset.parts import committed_parts
from pipeline.dataset.plan import read_shard
from pipeline.dataset.publish import publish
from pipeline.shard.commit import finish
from pipeline.shard.context import Work
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import Store, open_store
from tests.analytics.test_report import Read, told
from tests.analytics.test_report_figures import facts, section
from tests.support.outputs import FIRST, plan_rows, recognised

AUDIO_S = 1.25 * (len(FIRST) - 2 + 2)
"""Two recordings are rejected, one has three segments."""


def run_of(
    folder: Path, report: dict[str, Any], *, written_s: list[float], worked_s: list[float], waited_s: float = 0.0
) -> Store:
    """A published run of one shard a row, whose parts were written so long after it was planned, after so much work."""
    store = open_store(str(folder / "out"))
    plan = plan_rows(store, folder / "m", FIRST, shard_rows=1)
    work = Work(str(folder / "out"), plan, AudioRoots.parse(("/a",), []))
    planned_s = datetime.fromisoformat(plan.created_at).timestamp()
    for shard, seconds in zip(plan.shards(), worked_s, strict=True):
        table = recognised(read_shard(store, shard), shard.number)
        figures = {"recognise": {"waited_s": waited_s}}
        assert finish(work, shard, table, {"prepare": seconds / 2, "recognise": seconds / 2}, figures=figures).won
    parts = committed_parts(store, [plan])[plan.plan]
    for number, key in parts.items():
        at = planned_s + written_s[number]
        os.utime(Path(store.root, key), (at, at))
    publish(store, plan, parts, {"run_id": plan.plan, "config_hash": plan.config_hash, **report})
    return store


def page_of(folder: Path, report: dict[str, Any], **run: Any) -> tuple[str, list[list[Any]]]:
    page = told([run_of(folder, report, **run).root], folder / "page.html")
    return page, Read(page).tables["throughput"]


def test_parts_committed_in_one_second_do_not_make_a_run_fast(tmp_path):
    """Fails if the audio of a shard counts in the second of its commit alone: a page said 413 times real time of a run that
    took a twelfth of its audio's time."""
    count = len(FIRST)
    page, rows = page_of(
        tmp_path, {"wall_seconds": 12.0, "shards_run": count}, written_s=[11.0] * count, worked_s=[10.0] * count
    )
    assert facts(page)["times real time"] == f"{AUDIO_S / 12:.3g}" == "1.25"
    assert "0.25 minutes" not in page and f"{AUDIO_S / 12:.3g} times real time" in section(page, "throughput")
    assert "at most" not in section(page, "throughput")
    assert max(row[4] for row in rows) == pytest.approx(AUDIO_S / 10, rel=0.01)
    assert sum(row[3] for row in rows) == pytest.approx(AUDIO_S / 3600) and sum(row[2] for row in rows) == count


@pytest.mark.parametrize("seed", range(4))
def test_the_speed_of_any_schedule_is_audio_over_wall_time(tmp_path, seed):
    """Fails if audio is lost or counted twice between intervals, an interval is faster than its shards were worked on, or the
    overall speed depends on when parts were written."""
    chance = random.Random(seed)
    count, span_s = len(FIRST), chance.choice([3.0, 40.0, 4000.0])
    worked_s = [chance.uniform(0.0, span_s / 2) for _ in range(count)]
    written_s = [chance.uniform(1.5, span_s) for _ in range(count)]
    page, rows = page_of(
        tmp_path, {"wall_seconds": span_s, "shards_run": count}, written_s=written_s, worked_s=worked_s, waited_s=0.25
    )
    assert facts(page)["times real time"] == f"{AUDIO_S / span_s:,.3g}"
    assert sum(row[3] for row in rows) == pytest.approx(AUDIO_S / 3600, rel=1e-6)
    assert sum(row[2] for row in rows) == count
    longest_s = 3 * 1.25
    fastest = sum(longest_s / min(max(work + 0.25, 1.0), end) for work, end in zip(worked_s, written_s, strict=True))
    assert 0 < max(row[4] for row in rows) <= fastest
    assert all(row[4] == pytest.approx(row[3] * 3600 / row[1]) for row in rows)


def test_a_resumed_run_is_not_credited_with_parts_of_an_earlier_start(tmp_path):
    """Fails if all of a run's audio is divided by the wall time of its last start."""
    count = len(FIRST)
    written_s = [5.0] * (count - 3) + [1000.0, 1001.0, 1002.0]
    page, _ = page_of(tmp_path, {"wall_seconds": 10.0, "shards_run": 3}, written_s=written_s, worked_s=[1.0] * count)
    assert facts(page)["times real time"] == f"{3 * 1.25 / 10:.3g}"
    assert "9 parts were written before it" in section(page, "throughput")


@pytest.mark.parametrize("report", [{}, {"wall_seconds": 0.2, "shards_run": 0}])
def test_a_run_without_a_wall_time_has_no_overall_speed(tmp_path, report):
    """Fails if a speed is made up where the last start only published, or the report does not say how long it took."""
    count = len(FIRST)
    page, rows = page_of(tmp_path, report, written_s=[5.0] * count, worked_s=[1.0] * count)
    assert "times real time" not in facts(page) and rows
    assert "no wall time" in section(page, "throughput")
