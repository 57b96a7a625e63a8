"""The documentation agrees with the code: columns, commands, options, links and the paths that it names."""

from __future__ import annotations

import re

import pyarrow.parquet as pq

from pipeline.analytics.summarize import merged, parse_groups, summarize
from pipeline.dataset.reader import finished_rows
from pipeline.layout import SUMMARIES
from pipeline.manifest.rejects import reject_schema
from pipeline.schema import EMBEDDINGS, utterance_schema
from pipeline.storage.store import open_store
from tests.support.cases import case
from tests.support.corpus import ROOT
from tests.support.outputs import finished_output
from tools.command_reference import PAGE, reference

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "cluster" / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "log.md"),
]
"""Pages about the present state; the log and the changelog also name what is gone."""


def section(title):
    """Return the types by column that a section of docs/columns.md states, over all its tables, and their rows."""
    page = (ROOT / "docs" / "columns.md").read_text(encoding="utf-8")
    body = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert body, title
    types = {}
    for line in body.splitlines():
        cells = re.split(r"(?<!\\)\|", line)
        for name in re.findall("`([^`]+)`", cells[1]) if len(cells) > 3 else []:
            types.setdefault(name, set()).add(cells[2].strip())
    return types


def stated(schema):
    """Return the columns of a schema with the names of their types, without parameters."""
    return {field.name: {re.split(r"[<\[]", str(field.type))[0]} for field in schema}


def test_every_column_of_utterances_is_documented():
    """Fails if a column is missing from docs/columns.md, has another type there or is one that does not exist."""
    schema = utterance_schema(dict.fromkeys(EMBEDDINGS, 768), "float32", version=2)
    assert section("utterances/") == stated(schema)


def test_versions_of_columns_are_documented():
    """Fails if a column's "since" is not the version that adds it."""
    page = (ROOT / "docs" / "columns.md").read_text(encoding="utf-8")
    old = set(utterance_schema(dict.fromkeys(EMBEDDINGS, 768), "float32", version=1).names)
    for name in utterance_schema(dict.fromkeys(EMBEDDINGS, 768), "float32", version=2).names:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |") and line.count("|") == 7][:1]
        assert row.split("|")[4].strip() == ("1" if name in old else "2"), name


def test_every_column_of_rejects_is_documented():
    """Fails if a column of the rejects is missing, or has another type."""
    assert section("rejects/") == stated(reject_schema())


def test_every_column_of_summaries_is_documented(tmp_path):
    """Fails if a column of a file in summaries/, or of `summarize --to`, is missing or has another type."""
    output = tmp_path / "out"
    finished_output(str(output), tmp_path / "m")
    rows = finished_rows(open_store(str(output)))
    groups = parse_groups(["speaker"], rows.schema().names)
    assert list(summarize(rows, groups))
    file = next((output / SUMMARIES).rglob("*.parquet"))
    with_shares = merged(rows.store, groups).schema
    expected = stated(pq.read_schema(file)) | stated(with_shares)
    expected.pop("speaker")
    assert section("summaries/") == expected


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
                r"(?<![\w./-])((?:tests|pipeline|jobs|docs|tools|benchmarks)/[\w./-]*\w(?:/|\.\w+))", text
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
