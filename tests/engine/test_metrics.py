"""What a run publishes for Prometheus, against its report; and the dashboard that shows it."""

from __future__ import annotations

import inspect
import json
import random
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipeline.config import JobConfig
from pipeline.engine import stages
from pipeline.engine.metrics import COUNTERS, GAUGES, PREFIX, TOTALS
from pipeline.engine.pools import Pools, Resources, size_pools
from pipeline.errors import Reason
from tests.support.corpus import ONE_ACTOR, ROOT, annotate, broken_rows, model_options, rows, write_manifest
from tests.support.pins import pins
from tests.support.processes import until
from tests.support.ray_head import free_port, head

EXPORTED = {f"{name}_total" for name in (*TOTALS, *COUNTERS)} | set(GAUGES)
DASHBOARD = ROOT / "cluster" / "grafana" / "speech-emotion.json"
_LINE = re.compile(rf"^ray_{PREFIX}(\w+)\{{(.*)\}} (\S+)$", re.MULTILINE)
_TAG = re.compile(r'(\w+)="([^"]*)"')
Published = dict[str, list[tuple[dict[str, str], float]]]


def scrape(port: int) -> Published:
    found: Published = {}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        for name, tags, value in _LINE.findall(answer.read().decode()):
            found.setdefault(name, []).append((dict(_TAG.findall(tags)), float(value)))
    return found


def total(published: Published, name: str, **wanted: str) -> float:
    return sum(value for tags, value in published.get(name, []) if wanted.items() <= tags.items())


@contextmanager
def scraping(port: int, seen: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> Iterator[None]:
    """Scrape again and again, as Prometheus does, and keep the last value of each series."""
    ended = threading.Event()

    def scrape_often() -> None:
        while not ended.wait(0.5):
            for name, series in scrape(port).items():
                seen.update({(name, frozenset(tags.items())): value for tags, value in series})

    thread = threading.Thread(target=scrape_often)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.usefixtures("own_ray")
def test_metrics_say_what_the_report_says(tmp_path: Path, checkpoints: Path, asr: Path) -> None:
    """Fails if a metric is not exported, its last value is lost with the driver, it is counted twice, differs from the run's
    report, does not begin at zero, or stays after the run, so that a cluster collects the series of every night."""
    records = [*rows(6), *rows(3, with_text=False, prefix="heard"), *broken_rows(tmp_path)]
    manifest, port = write_manifest(tmp_path / "m.jsonl", records), free_port()
    options = [
        *model_options(checkpoints, asr),
        "--shard-rows",
        "4",
        "--audio-root",
        "/",
        "--log-format",
        "json",
        *ONE_ACTOR,
    ]
    started_at = time.time()
    often = {"RAY_metrics_report_interval_ms": "2000"}
    seen: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    with head(tmp_path, 2, 0, f"--metrics-export-port={port}", environment=often) as cluster, scraping(port, seen):
        done = annotate(manifest, tmp_path / "out", *options, env={**cluster.environment, **often})
        until(lambda: set(scrape(port)) == {"finished_runs_total"})
    report = json.loads((tmp_path / "out/_runs/000001/report.json").read_text())
    published: Published = {}
    for (name, tags), value in seen.items():
        published.setdefault(name, []).append((dict(tags), value))
    assert total(published, "shards_total") == report["parts"] and total(published, "finished_runs_total") == 1
    assert total(published, "rejects_total") == report["rejected"]
    assert total(published, "rows_total", status="annotated") == report["recordings_annotated"] == 9
    refused = total(published, "planned_rows_total", state="refused")
    assert total(published, "planned_rows_total") == report["rows"] and refused == 2
    of_reason = {tags["reason"]: value for tags, value in published["rows_total"] if tags["status"] == "rejected"}
    assert set(of_reason) == set(Reason), "those at zero too"
    assert [value for tags, value in published["shards_total"] if tags["outcome"] == "elsewhere"] == [0.0]
    reasons = {reason: value for reason, value in of_reason.items() if value}
    assert sum(reasons.values()) == report["rejected"] - refused
    assert reasons == {reason: report["rejects_by_reason"][reason] for reason in reasons}
    assert total(published, "utterances_total") == report["utterances"]
    assert total(published, "audio_seconds_total") == pytest.approx(report["audio_hours"] * 3600, abs=0.01)
    for stage, seconds in report["stage_seconds"].items():
        assert total(published, "stage_seconds_total", stage=stage) == pytest.approx(seconds, abs=0.01)
    named = {"waited_s": "wait_seconds", "model_s": "model_seconds", "batches": "batches", "room": "batch_room",
             "batched": "batch_utterances", "real": "batch_real", "padded": "batch_padded"}  # fmt: skip
    for stage in ("transcribe", "recognise"):
        for figure, name in named.items():
            value = report["figures"][stage][figure]
            assert total(published, f"{name}_total", stage=stage) == pytest.approx(value, rel=1e-4) and value > 0
    assert all(
        tags["run"] == "000001" and tags["output"] == str(tmp_path / "out") for tags, _ in published["rows_total"]
    )
    (committed_at,) = (value for _, value in published["last_commit_timestamp_seconds"])
    assert started_at < committed_at <= time.time()
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    lines = [line for line in lines if line["event"] == "shard"]
    assert sorted(line["shard"] for line in lines) == list(range(report["parts"]))
    assert sum(line["utterances"] for line in lines) == report["utterances"]


def test_the_dashboard_shows_what_is_exported_and_nothing_else() -> None:
    """Fails if a panel asks for a metric that no run exports, or a metric is exported that no panel shows."""
    dashboard = json.loads(DASHBOARD.read_text())
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    shown = set(re.findall(rf"ray_{PREFIX}(\w+)", asked))
    assert shown == EXPORTED
    assert set(re.findall(rf"ray_{PREFIX}(\w+)", json.dumps(dashboard["templating"]))) <= shown
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_alerts_ask_for_metrics_that_are_exported() -> None:
    """Fails if an alert can never fire because no run exports its metric, or the runbook does not say what to do."""
    (group,) = yaml.safe_load((ROOT / "cluster" / "prometheus" / "alerts.yaml").read_text())["groups"]
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    for rule in group["rules"]:
        used = re.findall(rf"ray_{PREFIX}(\w+)", rule["expr"])
        assert used and set(used) <= EXPORTED and f"`{rule['alert']}`" in runbook
    assert len(group["rules"]) == 4


_CALL = re.compile(rf"(sum|max) by \(([^)]*)\) \((?:rate\()?ray_{PREFIX}(\w+)\{{([^}}]*)\}}(?:\[[^]]*\]\))?\)")
Series = dict[tuple[tuple[str, str], ...], float]


def asked(expression: str, samples: Published) -> list[Series]:
    """What each aggregation of a panel's query gives, rates taken as values. Nothing else of PromQL is understood."""
    rest = _CALL.sub("", expression)
    rest = rest.replace(" * 1000", "").replace(" / on (output, run) group_left() ", "").replace(" / ", "")
    assert not rest.strip(), f"this part of the query names no output and run: {rest}"
    results = []
    for how, labels, name, matchers in _CALL.findall(expression):
        groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
        exact = dict(re.findall(r'(\w+)="([^"]*)"', matchers))
        for tags, value in samples.get(name, []):
            if exact.items() <= tags.items():
                key = tuple((label, tags.get(label, "")) for label in re.split(r",\s*", labels))
                groups.setdefault(key, []).append(value)
        results.append({key: sum(values) if how == "sum" else max(values) for key, values in groups.items()})
    return results


def drawn_samples(outputs: list[str], seed: int) -> Published:
    """Every metric of runs 000001 and 000002 of each output, the values drawn at random."""
    chance = random.Random(seed)
    found: Published = {}
    for output in outputs:
        for run in ("000001", "000002"):
            for name, (_, tags) in {
                **{f"{name}_total": told for name, told in (TOTALS | COUNTERS).items()},
                **GAUGES,
            }.items():
                states = ("planned", "refused") if name == "planned_rows_total" else ("a", "b")
                for state in states:
                    own = {tag: "rejected" if tag == "status" else state for tag in tags}
                    found.setdefault(name, []).append(({"output": output, "run": run, **own}, chance.uniform(1, 9)))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_no_panel_mixes_outputs_whose_runs_share_a_number(seed: int) -> None:
    """Fails if a number of one output's run changes because another output has a run of that number, as the share done did, or
    the legend does not tell the two apart."""
    both, alone = ["s3://b/one", "s3://b/two", "/three"], ["s3://b/two"]
    everything, one = drawn_samples(both, seed), {}
    for name, series in everything.items():
        one[name] = [(tags, value) for tags, value in series if tags["output"] in alone]
    dashboard = json.loads(DASHBOARD.read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    ours = [target for target in targets if f"ray_{PREFIX}" in target["expr"]]
    for target in ours:
        mixed, apart = asked(target["expr"], everything), asked(target["expr"], one)
        for all_series, own_series in zip(mixed, apart, strict=True):
            assert own_series and own_series.items() <= all_series.items(), target["expr"]
            assert len(all_series) == len(both) * len(own_series), target["expr"]
        assert "{{output}}" in target["legendFormat"] and "{{run}}" in target["legendFormat"]
        assert target["expr"].count('output=~"$output",run=~"$run"') == len(mixed)
    assert len(ours) >= len(TOTALS)


def test_a_job_that_waits_for_its_turn_has_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the alert for lost drivers fires for a job that waits until others leave the cluster."""
    resources = Resources(cpus=4.0, gpus=0.0, memory_bytes=1e10, nodes=1, node_cpus=4.0, node_memory_bytes=1e10)
    plan = SimpleNamespace(models=pins(fusion_en=1, asr_en=1), needs_asr=True)
    config = JobConfig(manifest=["m.jsonl"], output="out")
    pools, published = size_pools(config, resources, plan, 9), list[dict[str, dict[str, int]]]()

    def wait(_: Pools, present: Callable[[], Resources]) -> int:
        return len([present(), present()])

    monkeypatch.setattr(stages, "_present", lambda: resources)
    monkeypatch.setattr(stages, "wait_for_turn", wait)
    stages._shared(SimpleNamespace(plan=plan), pools, config, 9, SimpleNamespace(actors=published.append))
    assert len(published) == 2 and all(set(states.values()) == {0} for states in published[0].values())
    assert set(published[0]) == {"transcribe", "recognise"}


def test_the_runbook_names_every_metric() -> None:
    """Fails if a number is published that nobody is told how to read."""
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    assert [name for name in (*TOTALS, *COUNTERS, *GAUGES) if f"`{name}`" not in runbook] == []


def test_the_runbook_names_every_reason_and_every_stage() -> None:
    """Fails if a row can be rejected for what the runbook is silent on, or Ray's dashboard shows a stage by another name."""
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    assert [reason for reason in Reason if f"`{reason}`" not in runbook] == []
    named = set(re.findall(r"MapBatches\((\w+)\)", runbook))
    mapped = set(re.findall(r"map_batches\(\s*(\w+),", inspect.getsource(stages))) | {"Transcribe", "Recognise"}
    assert named == {name for name in mapped if hasattr(stages, name)}
