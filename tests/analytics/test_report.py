"""Reports: their numbers are those of a query over the files; they load nothing, and run one script, ours."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import evaluate, summarize, verify
from jobs.report import draw, main
from pipeline.dataset.parts import committed_parts, read_receipt
from pipeline.dataset.plan import read_shard
from pipeline.errors import ConfigError
from pipeline.schema import EMOTIONS
from pipeline.shard.commit import finish
from pipeline.shard.context import Work
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import Store, open_store
from tests.analytics import test_evaluate
from tests.support import outputs
from tests.support.corpus import ROOT
from tests.support.outputs import FIRST, LONG, plan_rows, publish_plan, recognised

SPEAKER = "<script>alert('x')</script>"
SAID = "unsaid canary words"
TOKEN = "canarytoken"
ROWS = [{**row, "speaker": SPEAKER if row["id"] == LONG else row["speaker"], "audio": f"s3://b/{row['id']}?token={TOKEN}"}
        for row in FIRST]  # fmt: skip
SCRIPT = ROOT / "pipeline/analytics/report/explore.js"
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Read(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[float | str]]] = {}
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.text = self.script = ""
        self._cell: float | None = None
        self._rows: list[list[float | str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.attributes += [(tag, name, value) for name, value in given.items()]
        if tag == "table":
            self._rows = self.tables[given["data-query"]] = []
        elif tag == "tr" and "tbody" in self.open:
            self._rows.append([])
        elif tag == "td":
            self._cell = float(given["data-value"]) if "data-value" in given else None
            self._rows[-1].append("" if self._cell is None else self._cell)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, content):
        if "script" in self.open:
            self.script += content
            return
        self.text += content
        if "td" in self.open and self._cell is None:
            self._rows[-1][-1] += content


def output_of(folder: Path, rows: list[dict[str, object]] = ROWS) -> Store:
    """A published run in which something is said."""
    store = open_store(str(folder / "out"))
    plan = plan_rows(store, folder / "m", [*rows, outputs.BAD])
    work = Work(str(folder / "out"), plan, AudioRoots.parse(("s3://b",), []))
    for shard in plan.shards():
        table = recognised(read_shard(store, shard), shard.number)
        texts = pa.array([SAID] * table.num_rows, table.schema.field("text").type)
        table = table.set_column(table.schema.get_field_index("text"), "text", texts)
        assert finish(work, shard, table, {"prepare": 1.0}, max_denied=1.0).won
    publish_plan(store, plan)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return output_of(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(store) -> str:
    assert main([store.root]) == 0
    return Path(store.root, "_runs/000001/report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """A folder with an output, its evaluation and its summary."""
    folder = tmp_path_factory.mktemp("evaluated")
    output = test_evaluate.output_of(folder, test_evaluate.records())
    arguments = ["--labels", "label", "--resamples", "20", "--write", str(folder / "figures")]
    assert evaluate.main([output, *arguments]) == 0
    assert summarize.main([output, "--by", "speaker,sex", "--to", str(folder / "groups.parquet")]) == 0
    return folder


def told(flags: list[str], to: Path) -> str:
    assert main([*flags, "--to", str(to)]) == 0
    return to.read_text(encoding="utf-8")


def asked(sql: str) -> list[list[float | str]]:
    """What a query of the test's own says."""
    return [["" if value is None else value for value in row] for row in duckdb.sql(sql).fetchall()]


def same(found: list[list[float | str]], expected: list[list[float | str]]) -> bool:
    assert found and len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        for value, wanted in zip(row, other, strict=True):
            assert value == (wanted if isinstance(wanted, str) else pytest.approx(float(wanted), rel=1e-9))
    return True


def test_figures_of_a_run_are_those_of_a_query(store, page):
    """Fails if a number on the page is not what its files say, each asked in another way than the page asks."""
    tables = Read(page).tables
    rows = f"read_parquet('{store.root}/utterances/**/*.parquet', hive_partitioning = true)"
    heard = asked(f"SELECT emotion, count(*) AS n, n / (SELECT count(*) FROM {rows}), sum(duration_s) / 3600, avg(confidence) "
                  f"FROM {rows} GROUP BY 1 ORDER BY 2 DESC, 1")  # fmt: skip
    assert same(tables["emotion"], heard)
    confidences = [value for (value,) in asked(f"SELECT confidence FROM {rows}")]
    assert same(
        tables["confidence"], [list(pair) for pair in sorted(Counter(int(c * 20) / 20 for c in confidences).items())]
    )
    reasons = asked(
        f"SELECT reason, stage, count(*) FROM '{store.root}/rejects/*.parquet' GROUP BY ALL ORDER BY 3 DESC, 1"
    )
    assert same(tables["rejects"], reasons)
    spoken = (
        "SELECT start_s, end_s, speaker, emotion, label, round(confidence::DOUBLE, 3) "
        f"FROM {rows} WHERE recording_id = '{LONG}'"
    )
    assert same(tables["timeline-1"], asked(f"{spoken} ORDER BY 1")) and "timeline-2" not in tables
    counts = ", ".join(f"sum((emotion = '{emotion}')::INT)" for emotion in EMOTIONS)
    speakers = asked(f"SELECT speaker, count(*), sum(duration_s) / 3600, avg(confidence), {counts} FROM {rows} GROUP BY 1 "
                     "ORDER BY 2 DESC, 1")  # fmt: skip
    assert same(tables["by-1"], speakers) and SPEAKER in [row[0] for row in speakers]
    assert same(
        tables["by-0"],
        [["en", *asked(f"SELECT count(*), sum(duration_s) / 3600, avg(confidence), {counts} FROM {rows}")[0]]],
    )


def test_throughput_adds_up_to_the_receipts(store, page):
    """Fails if a part is left out of the throughput or counted twice, or the speed is not audio over time."""
    table = Read(page).tables["throughput"]
    (parts,) = committed_parts(store, outputs.load_plans(store)).values()
    audio_s = sum(read_receipt(store, key).audio_s for key in parts.values())
    assert audio_s > 0 and sum(row[2] for row in table) == len(parts)
    assert sum(row[3] for row in table) == pytest.approx(audio_s / 3600)
    for _, step_s, _, hours, speed, _ in table:
        assert speed == pytest.approx(hours * 3600 / step_s)


def test_figures_of_an_evaluation_are_those_it_wrote(evaluated, tmp_path):
    """Fails if a cell of the confusion matrix, a point of the diagram or a slice is not what jobs.evaluate wrote."""
    tables = Read(told(["--evaluation", str(evaluated / "figures")], tmp_path / "page.html")).tables
    folder, whole = evaluated / "figures", "WHERE slice = 'all'"
    assert same(tables["confusion-1"], asked(
        f"SELECT truth, predicted, count, share FROM '{folder}/confusion.parquet' {whole} ORDER BY 1, 2"
    ))  # fmt: skip
    counted = asked(
        f"SELECT truth, predicted, count(*) FROM '{folder}/predictions.parquet' GROUP BY 1, 2 ORDER BY 1, 2"
    )
    assert same([row[:3] for row in tables["confusion-1"] if row[2]], counted)
    assert same(tables["reliability-1"], asked(
        f"SELECT low, high, rows, confidence, accuracy FROM '{folder}/reliability.parquet' {whole} ORDER BY low"))  # fmt: skip
    right = asked(f"SELECT avg(\"right\"::INT) FROM '{folder}/predictions.parquet'")[0][0]
    assert next(row[1] for row in tables["figures-1"] if row[0] == "accuracy") == pytest.approx(right)
    recalls = asked(
        f"SELECT truth, avg(\"right\"::INT), count(*) FROM '{folder}/predictions.parquet' GROUP BY 1 ORDER BY 1"
    )
    assert same([[row[0], row[2], row[4]] for row in tables["classes-1"]], recalls)
    slices = asked(
        f"SELECT DISTINCT slice, value, rows FROM '{folder}/metrics.parquet' WHERE slice <> 'all' ORDER BY 1, 3 DESC, 2"
    )
    assert same([row[:3] for row in tables["slices-1"]], slices)


def test_figures_of_a_summary_are_those_of_its_table(evaluated, tmp_path):
    """Fails if a group is left out or a share is not the table's."""
    table = Read(told(["--summary", str(evaluated / "groups.parquet")], tmp_path / "page.html")).tables["groups"]
    shares = ", ".join(f"share.{emotion}" for emotion in EMOTIONS)
    assert same(table, asked(f"SELECT speaker, sex, recordings, utterances, speech_s, confidence, {shares} "
                             f"FROM '{evaluated}/groups.parquet' ORDER BY utterances DESC, 1, 2"))  # fmt: skip


def test_two_outputs_stand_side_by_side(evaluated, tmp_path):
    """Fails if the figures of the second output are the first one's."""
    second = test_evaluate.output_of(tmp_path, test_evaluate.records(), seed=100)
    folder = tmp_path / "figures"
    arguments = ["--labels", "label", "--resamples", "0", "--write", str(folder)]
    assert evaluate.main([str(evaluated / "out"), second, *arguments]) == 0
    read = Read(told(["--evaluation", str(folder)], tmp_path / "page.html"))
    for number, output in enumerate([f"{evaluated}/out", second], 1):
        counted = asked(f"SELECT truth, predicted, count(*) FROM '{folder}/predictions.parquet' WHERE output = '{output}' "
                        "GROUP BY 1, 2 ORDER BY 1, 2")  # fmt: skip
        assert same([row[:3] for row in read.tables[f"confusion-{number}"] if row[2]], counted)


@pytest.mark.parametrize("kind", ["run", "evaluation", "summary"])
def test_a_page_stands_alone_and_can_be_heard(kind, page, evaluated, tmp_path):
    """Fails if a page loads or names anything elsewhere, uses an id twice, refers to one that is not there, or has a figure
    without words or without its table.
    """
    if kind != "run":
        where = {"evaluation": evaluated / "figures", "summary": evaluated / "groups.parquet"}[kind]
        page = told([f"--{kind}", str(where)], tmp_path / "page.html")
    read = Read(page)
    assert not read.open and read.ids and len(set(read.ids)) == len(read.ids)
    assert read.tags.count("script") == 1 and read.script == SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(read.script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\"" in page
    assert not {"link", "img", "iframe", "object", "foreignobject", "base"} & set(read.tags)
    for _tag, name, value in read.attributes:
        assert name not in ("src", "srcset", "action") and not name.startswith("on") and "xmlns" not in name
        assert "//" not in value or name in ("aria-label", "content") or _tag == "td", (name, value)
        if name.endswith("href"):
            assert value.startswith("#")
        targets = [value[1:]] if name.endswith("href") else re.findall(r"url\(#([^)]*)\)", value)
        targets += value.split() if name == "aria-labelledby" else []
        assert set(targets) <= set(read.ids)
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    alts = [
        value for tag, name, value in read.attributes if tag == "div" and name == "aria-label" and "Table" not in value
    ]
    assert page.count("<svg") == page.count('<div role="group"') > 0
    assert all(alt.partition(": ")[2] for alt in alts)
    for section in re.findall(r"<section id=.*?</section>", page, re.DOTALL):
        assert "<svg" not in section or "<table" in section
    assert "#0102" not in page and "#0203" not in page  # a placeholder colour that became none of the page's


def test_nothing_from_the_rows_is_run_or_leaked(store, page, tmp_path):
    """Fails if a speaker becomes markup, a query string stands on the page, or a transcript does that nobody asked for."""
    assert page.count("<script") == 1 and SPEAKER in Read(page).text
    assert "s3://b/r4" in page and TOKEN not in page
    assert SAID not in page
    asked_for = told([store.root, "--with-texts"], tmp_path / "page.html")
    assert SAID in asked_for and TOKEN not in asked_for


def test_the_page_of_a_run_is_written_once(store, page, tmp_path, capsys):
    """Fails if a page is replaced, its being there is an error to a scheduler, or the audit takes it for damage."""
    path = Path(store.root, "_runs/000001/report.html")
    before = path.stat().st_ino
    assert main([store.root, "000001"]) == 0 and "exists already" in capsys.readouterr().out
    assert path.stat().st_ino == before
    assert verify.main([store.root]) == 0
    told([store.root], tmp_path / "page.html")
    assert main([store.root, "--to", str(tmp_path / "page.html")]) == 2 and "already exists" in capsys.readouterr().err
    assert main([store.root, "--to", str(tmp_path / "page.html"), "--overwrite"]) == 0


def test_a_job_says_where_its_page_is_or_why_there_is_none(tmp_path, monkeypatch):
    """Fails if a page that cannot be drawn, for whatever reason, is more than a line to the job that asked for it."""
    store = output_of(tmp_path)
    path = Path(store.root, "_runs/000001/report.html")
    again = f"python -m jobs.report {store.root} 000001"
    with monkeypatch.context() as patch:
        patch.setattr("jobs.report._DRAWN_WITHIN_S", 0.01)
        assert draw(store.root, "000001").line == f"page: none (TimeoutExpired); {again} tries again"
        patch.setattr("jobs.report._PACKAGES", ("duckdb", "nomatplotlib"))
        assert draw(store.root, "000001").line.endswith(f"pip install -e '.[analytics]', then {again}")
    part = next(Path(store.root, "utterances").rglob("*.parquet"))
    whole = part.read_bytes()
    part.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    said = draw(store.root, "000001").line
    assert said.startswith("page: none (python -m jobs.report: ") and not path.exists()
    part.write_bytes(whole)
    assert draw(store.root, "000001").line == f"page in {path}" and path.exists()


CRASHES_AT_EXIT = "import atexit, os\natexit.register(lambda: {})\n"


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 11)", "os._exit(7)", "os.abort()"])
def test_a_page_is_reported_although_its_process_crashed_at_exit(tmp_path, monkeypatch, end):
    """Fails if the job prints "page: none" while report.html is there, because a native library failed as the process ended."""
    store = output_of(tmp_path)
    path = Path(store.root, "_runs/000001/report.html")
    (tmp_path / "sitecustomize.py").write_text(CRASHES_AT_EXIT.format(end))
    monkeypatch.syspath_prepend(tmp_path)  # the process that draws is given our path
    assert draw(store.root, "000001").line == f"page in {path}"
    assert path.read_bytes().rstrip().endswith(b"</html>")
    monkeypatch.setattr("jobs.report._DRAWN_WITHIN_S", 0.01)  # as for a process that hangs once the page is there
    assert draw(store.root, "000001").line == f"page in {path}"


def test_a_process_that_crashes_before_the_page_is_written_is_reported(tmp_path, monkeypatch):
    """Fails if the job says that there is a page where there is none."""
    store = output_of(tmp_path)
    (tmp_path / "sitecustomize.py").write_text("import os\nos.abort()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert draw(store.root, "000001").line.startswith("page: none (")
    monkeypatch.setattr("pipeline.storage.store.open_store", unreachable)
    assert draw(store.root, "000001").line.startswith("page: none (")


def unreachable(_: str) -> None:
    raise ConfigError("no store")


def test_a_run_of_rejects_alone(tmp_path, monkeypatch):
    """Fails if a page cannot be made where nothing was recognised."""
    monkeypatch.setattr(outputs, "REJECTED", tuple(row["id"] for row in ROWS))
    store = output_of(tmp_path)
    read = Read(told([store.root], tmp_path / "page.html"))
    assert "No utterance." in read.text and sum(row[2] for row in read.tables["rejects"]) == len(ROWS) + 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [([], "name one of"), (["{out}", "--summary", "x"], "name one of"), (["--evaluation", "x"], "--to"),
     (["{out}", "--with-texts"], "no transcript"), (["{out}", "--recording", "r1"], "--recording needs OUT and --to"),
     (["{out}", "--audio", "copy", "--to", "{to}"], "name one with --recording"),
     (["{out}", "--recording", "x' OR true --", "--to", "{to}"], "no utterance with times"),
     (["{out}", "000009"], "no run 000009"), (["/nowhere/out"], "no output"),
     (["--evaluation", "{out}", "--to", "{to}"], "no evaluation"),
     (["--summary", "{table}", "--to", "{to}"], "has no confidence"),
     (["--summary", "{out}/none.parquet", "--to", "{to}"], "is not a table")],
)  # fmt: skip
def test_refused_before_any_work(store, tmp_path, capsys, arguments, sentence):
    """Fails if a wrong command line is not named, or leaves a file."""
    pq.write_table(pa.table({"a": [1]}), tmp_path / "table.parquet")
    places = {"out": store.root, "to": str(tmp_path / "page.html"), "table": str(tmp_path / "table.parquet")}
    try:
        status = main([argument.format(**places) for argument in arguments])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2 and sentence in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_the_limits_are_those_of_the_readme(page):
    """Fails if the page says less, or something else, on what the labels may be used for."""
    readme = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    limits = " ".join(readme.partition("## Limits\n")[2].partition("\n## ")[0].replace("*", "").split())
    assert limits and limits in " ".join(Read(page).text.split())
