"""The list of utterances on the page of an evaluation: when, who, what, and which class was predicted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.analytics.report.behind import Listing
from pipeline.dataset.reader import committed_rows, reading
from pipeline.storage.store import open_store

if TYPE_CHECKING:
    import duckdb

_TEXTS = pa.schema([("output", pa.string()), ("utterance_id", pa.string()), ("text", pa.string())])
_TEXT = """(SELECT any_value(texts.text) FROM texts
        WHERE texts.output = predictions.output AND texts.utterance_id = predictions.utterance_id) AS text"""


def prediction_list(connection: duckdb.DuckDBPyConnection, *, several: bool, with_texts: bool) -> Listing:
    """Return the list of an evaluation's utterances. Evaluations by earlier versions contain no times and no speakers.

    Args:
        several: there are several outputs, so that their names are a column.
        with_texts: the connection has the table of `texts_of`.
    """
    ((times, speakers),) = connection.sql("SELECT count(start_s), count(speaker) FROM predictions").fetchall()
    columns = [
        *(["output"] if several else []),
        "utterance_id",
        *(["round(start_s, 2) AS start_s", "round(end_s, 2) AS end_s"] if times else []),
        *(["speaker"] if speakers else []),
        *([_TEXT] if with_texts else []),
        "truth",
        "predicted",
        "round(confidence, 3) AS confidence",
        "abstained",
    ]
    return Listing(
        name="predictions",
        title="Utterances",
        source="predictions",
        identity="utterance_id",
        columns=",\n    ".join(columns),
        order="output, utterance_id",
        noun="labelled utterances",
    )


def texts_of(outputs: Iterable[str], predictions: pa.Table) -> pa.Table:
    """Return the transcripts of predictions, from the evaluated outputs that keep them.

    Costs a read of two columns of each output.

    Args:
        outputs: names of the outputs in the evaluation: the URI, and of a further model also `, model NAME`.
    Raises: ConfigError when an output does not exist any more, JobError when it cannot be read.
    """
    tables = [_TEXTS.empty_table()]
    for output in outputs:
        rows = committed_rows(open_store(output.partition(", model ")[0]))
        if rows.has_words:
            ids = predictions.filter(pc.equal(predictions["output"], output))["utterance_id"]
            with reading():
                table = rows.utterances().to_table(columns=["utterance_id", "text"])
            table = table.filter(pc.is_in(table["utterance_id"], ids))
            names = pa.repeat(pa.scalar(output, pa.string()), table.num_rows)
            tables.append(pa.table([names, *table.columns], names=_TEXTS.names).cast(_TEXTS))
    return pa.concat_tables(tables)
