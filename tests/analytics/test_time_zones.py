from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest

from jobs.summarize import main
from pipeline.layout import SUMMARY, summary_folder
from pipeline.storage.store import open_store
from tests.support.corpus import ROOT
from tests.support.outputs import annotate, plan_rows, publish_plan

DAY = "day=strftime(recorded_at::TIMESTAMPTZ, '%Y-%m-%d')"
LATE = {"recorded_at": "2026-05-03T23:30:00Z", "audio": "/a/x.wav", "text": "t"}
"""A recording of 3 May in UTC, of 4 May in Tokyo."""
ASK = f"""
import json, sys
import pyarrow as pa
from pipeline.analytics.summarize import merged, parse_groups, summarize
from pipeline.dataset.reader import finished_rows
from pipeline.manifest.policy import Policy
from pipeline.storage.store import open_store
rows = finished_rows(open_store(sys.argv[1]))
groups = parse_groups([{DAY!r}], rows.schema().names)
list(summarize(rows, groups))
table = rows.planned().to_table().append_column("recorded_at", pa.array(["{LATE["recorded_at"]}"] * rows.planned().count_rows()))
with Policy(only="date_part('day', recorded_at::TIMESTAMPTZ) = 3").evaluator() as evaluator:
    print(json.dumps([merged(rows.store, groups).select(["day", "recordings"]).to_pylist(), evaluator.causes(table).tolist()]))
"""


def output_of(folder, *, runs):
    store = open_store(str(folder / "out"))
    for run in range(runs):
        plan = plan_rows(store, folder / str(run), [{**LATE, "id": f"v{run}", "speaker": "a"}])
        annotate(store.root, plan)
        publish_plan(store, plan)
    return store


def asked_in(zone, store):
    """Return the groups by day, and the causes of exclusion, in a process whose time zone is `zone`."""
    environment = {**os.environ, "TZ": zone, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ASK, store.root]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("first", ["Asia/Tokyo", "America/Los_Angeles"])
def test_a_day_is_the_same_on_every_machine(tmp_path, first):
    """Fails if runs that are summarized, or manifests that are filtered, on machines of other zones get other days."""
    store = output_of(tmp_path, runs=1)
    assert asked_in(first, store) == [[{"day": "2026-05-03", "recordings": 1}], [0]]
    output_of(tmp_path, runs=2)
    assert asked_in("UTC", store)[0] == [{"day": "2026-05-03", "recordings": 2}]


def test_summaries_of_an_earlier_version_keep_the_zone_of_the_machine(tmp_path):
    """Fails if an update changes the days of a summary that older runs are in already."""
    store = output_of(tmp_path, runs=1)
    definition = {"format": 1, "by": {"day": DAY.partition("=")[2]}}
    store.put_if_absent(f"{summary_folder(('day',))}/{SUMMARY}", json.dumps(definition).encode())
    assert asked_in("Asia/Tokyo", store)[0] == [{"day": "2026-05-04", "recordings": 1}]


def test_the_days_of_another_zone(tmp_path, capsys):
    """Fails if the command of docs/readers.md is refused, or gives a recording the day of UTC instead of its zone's."""
    (line,) = [
        each for each in (ROOT / "docs/readers.md").read_text().splitlines() if "timezone('Europe/Berlin'" in each
    ]
    store = output_of(tmp_path, runs=1)
    assert main([store.root, *shlex.split(line)[4:]]) == 0
    assert "2026-05-04" in capsys.readouterr().out
