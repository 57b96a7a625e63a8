"""The documentation agrees with the code: columns, commands, options, links and the paths that it names."""

from __future__ import annotations

import re

import pyarrow.parquet as pq

from pipeline.analytics.calls.columns import CALL_COLUMNS
from pipeline.analytics.summarize import merged, parse_groups, summarize
from pipeline.analytics.summary_columns import MERGED_COLUMNS, SUMMARY_COLUMNS
from pipeline.dataset.reader import finished_rows
from pipeline.layout import SUMMARIES
from pipeline.manifest.rejects import reject_schema
from pipeline.schema import (
    EMBEDDINGS,
    REJECT_COLUMNS,
    UTTERANCE_COLUMNS,
    utterance_schema,
)
from pipeline.storage.store import open_store
from tests.support.cases import case
from tests.support.corpus import ROOT
from tests.support.outputs import finished_output
from tools.command_reference import PAGE, reference

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "cluster" / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "demo" / "models" / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "log.md"),
]
"""Pages about the present state; the log and the changelog also name what is gone."""


def table_rows(title, number=0):
    """Return the rows of one table of a section of docs/columns.md: the cells of each column that has a name."""
    page = (ROOT / "docs" / "columns.md").read_text(encoding="utf-8")
    body = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables[number].splitlines()[2:]]
    return [row for row in rows if row[0] != "others"]


def rows_of(schema, columns, *since):
    """Return the cells that the table of a schema must have; without a "since" where none is given."""
    return [
        [
            f"`{field.name}`",
            re.split(r"[<\[]", str(field.type))[0],
            columns[field.name].unit,
            *[number for names, number in since if field.name in names][:1],
            columns[field.name].meaning,
            columns[field.name].null,
        ]
        for field in schema
    ]


def test_every_column_of_utterances_is_documented():
    """Fails if docs/columns.md lacks a column, or its type, unit, version, meaning or nulls differ from the schema's."""
    widths = dict.fromkeys(EMBEDDINGS, 768)
    schemas = {version: utterance_schema(widths, "float32", version=version) for version in (1, 2, 3)}
    since = [(schema.names, str(version)) for version, schema in schemas.items()]
    assert table_rows("utterances/") == rows_of(schemas[3], UTTERANCE_COLUMNS, *since)


def test_every_column_of_rejects_is_documented():
    """Fails if docs/columns.md describes the rejects otherwise than their schema and its descriptions."""
    assert table_rows("rejects/") == rows_of(reject_schema(), REJECT_COLUMNS)


def test_every_column_of_summaries_is_documented(tmp_path):
    """Fails if docs/columns.md describes a file in summaries/, or of `summarize --to`, otherwise than it is."""
    output = tmp_path / "out"
    finished_output(str(output), tmp_path / "m")
    rows = finished_rows(open_store(str(output)))
    groups = parse_groups(["speaker"], rows.schema().names)
    assert list(summarize(rows, groups))
    file = pq.read_schema(next((output / SUMMARIES).rglob("*.parquet")))
    together = merged(rows.store, groups).schema
    for number, (schema, columns) in enumerate(((file, SUMMARY_COLUMNS), (together, MERGED_COLUMNS))):
        assert schema.names[0] == "speaker"
        assert table_rows("summaries/", number) == rows_of(list(schema)[1:], columns)


def test_every_column_of_call_metrics_is_documented():
    """Fails if docs/columns.md describes a column of `jobs.calls` otherwise than the files do."""
    text = (ROOT / "docs" / "columns.md").read_text(encoding="utf-8")
    assert [row[0] for row in table_rows("Call metrics")] == [f"`{name}`" for name in CALL_COLUMNS]
    for row, column in zip(table_rows("Call metrics"), CALL_COLUMNS.values(), strict=True):
        assert row[2:] == [column.unit, column.meaning, column.null], text


def test_the_command_reference_is_up_to_date(monkeypatch):
    """Fails if a command or an option is not in docs/commands.md: run `python -m tools.command_reference`."""
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert PAGE.read_text(encoding="utf-8") == reference()


def test_paths_exist():
    """Fails if a page names a file or folder of the repository that does not exist."""
    for page in PAGES:
        with case(page):
            text = page.read_text(encoding="utf-8")
            named = re.findall(
                r"(?<![\w./-])((?:tests|pipeline|jobs|docs|tools|benchmarks|cluster|examples)/[\w./-]*\w(?:/|\.\w+))",
                text,
            )
            missing = sorted({path for path in named if not (ROOT / path).exists()})
            assert not missing


def test_links_lead_somewhere():
    """Fails if a link between pages leads to a file or a heading that does not exist."""
    for page in PAGES:
        with case(page):
            wrong = []
            for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
                path, _, heading = target.partition("#")
                if "://" in target:
                    continue
                linked = (page.parent / path).resolve() if path else page
                if not linked.exists() or (heading and heading not in headings(linked)):
                    wrong.append(target)
            assert not wrong


OTHERS_OPTIONS = {
    "--bucket",
    "--build-arg",
    "--count",
    "--create-namespace",
    "--follow",
    "--from-literal",
    "--local-dir",
    "--no-deps",
    "--generate",
    "--gpus-per-node",
    "--minutes",
    "--namespace",
    "--lifecycle-configuration",
    "--metrics-export-port",
    "--nodes",
    "--policy",
    "--policy-document",
    "--policy-name",
    "--predictions",
    "--quick",
    "--role",
    "--runtime-env-json",
    "--seed",
    "--target",
    "--toolkit",
    "--watch",
}
"""Options of other programs (aws, docker, kubectl, ray, sbatch), `benchmarks`, `tools` and `tests.long`, which the pages show."""


OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


def test_options_exist():
    """Fails if a page names an option that no command has, such as one that was renamed or misspelt."""
    known = set(OPTION.findall(PAGE.read_text(encoding="utf-8"))) | OTHERS_OPTIONS
    for page in PAGES:
        with case(page):
            assert set(OPTION.findall(page.read_text(encoding="utf-8"))) - known == set()


def test_shown_commands_have_their_options():
    """Fails if a page shows a command that does not exist, or with an option that only another command has."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    options = {section.partition("\n")[0]: set(OPTION.findall(section)) for section in sections}
    command = re.compile(r"^    .*?(?:-m jobs\.|(?<!-n )(?<![\w-])speech-emotion )([a-z][\w-]*)(.*)$", re.MULTILINE)
    checked = 0
    for page in PAGES:
        with case(page):
            text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))
            for name, arguments in command.findall(text):
                own, _, annotating = f"{arguments.partition(' #')[0]} ".partition(" -- ")
                missing = set(OPTION.findall(own)) - options.get(name.replace("_", "-"), set())
                missing |= set(OPTION.findall(annotating)) - options["annotate"]
                assert name.replace("_", "-") in {*options, "completion"} and not missing, (name, missing)
                checked += 1
    assert checked > 30


def headings(page):
    """Return the anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_index():
    """Fails if a page of docs/ is not listed in docs/index.md."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {name for name in names if f"]({name})" not in index} == set()


def test_the_readme_stays_short():
    """Fails if README.md grows past 130 lines or 1,200 words."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130 and len(text.split()) <= 1200
