"""What an output promises, as a closed list of codes, and what an audit of it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from pipeline.layout import attempts_folder


class Promise(StrEnum):
    """What can be broken. The value is the code of the line that says so."""

    # the dataset and its plans
    DATASET_DAMAGED = "DATASET_DAMAGED"  # `_dataset.json` is missing or cannot be read
    DATASET_MIXED = "DATASET_MIXED"  # a plan of other settings, models or column types than the dataset's
    PLAN_DAMAGED = "PLAN_DAMAGED"  # `plan.json`, or a file it names, is missing, cannot be read or contradicts itself
    PLAN_GAP = "PLAN_GAP"  # a number is missing among the plans: resuming would not see the plans after it
    ID_TWICE = "ID_TWICE"  # a recording id stands in two plans, or twice in one
    # parts
    PART_MISSING = "PART_MISSING"  # a shard has no part though its plan is published
    PART_TWICE = "PART_TWICE"  # a shard has parts in two folders: readers see its rows twice
    PART_MISPLACED = "PART_MISPLACED"  # the folder says other partition values than the plan's rows
    PART_BEYOND_PLAN = "PART_BEYOND_PLAN"  # the plan has no shard of that number
    PART_UNREADABLE = "PART_UNREADABLE"  # cut, empty, no Parquet, or pages that fail their checksum
    ORPHAN = "ORPHAN"  # a file among the results that no plan names; readers would take it for rows
    SCHEMA = "SCHEMA"  # other columns or types than the plan's
    # receipts
    RECEIPT_MISSING = "RECEIPT_MISSING"  # a Parquet file, but its footer holds no receipt that can be read
    RECEIPT_PLACE = "RECEIPT_PLACE"  # the receipt is another shard's
    RECEIPT_ROWS = "RECEIPT_ROWS"  # not the number of rows the plan has for the shard
    RECEIPT_IDS = "RECEIPT_IDS"  # not the ids the plan has for the shard
    RECEIPT_CONFIG = "RECEIPT_CONFIG"  # made under other settings or models than the plan's
    RECEIPT_UTTERANCES = "RECEIPT_UTTERANCES"  # not the number of rows in the file
    RECEIPT_REJECTS = "RECEIPT_REJECTS"  # notes of rows that are not there, twice, or with a reason we do not know
    # rows
    ROW_LOST = "ROW_LOST"  # a plan row neither among the utterances nor among the rejects of its part
    ROW_TWICE = "ROW_TWICE"  # a plan row among both
    ROW_UNKNOWN = "ROW_UNKNOWN"  # utterances of a recording that the shard does not hold
    UTTERANCE_ID = "UTTERANCE_ID"  # not made of the row's own recording id and segment index
    UTTERANCE_TWICE = "UTTERANCE_TWICE"  # two rows of one recording and segment
    SEGMENT_GAP = "SEGMENT_GAP"  # the segments of a recording are not 0 to n-1
    RUN_ID = "RUN_ID"  # the row names another run
    PLAN_COLUMNS = "PLAN_COLUMNS"  # a manifest column holds another value than the plan row
    SCORES = "SCORES"  # not probabilities that add up to 1
    CONFIDENCE = "CONFIDENCE"  # confidence is not the highest score, or margin not its lead
    LABEL = "LABEL"  # label unknown, not of the emotion beside it, or not the one with the highest score
    LANGUAGE = (
        "LANGUAGE"  # an utterance without results for its language's sake has some, or a model does cover its language
    )
    EMBEDDING = "EMBEDDING"  # missing, or a number in it is not finite
    # what is derived from the receipts
    PUBLISHED_EARLY = "PUBLISHED_EARLY"  # `_SUCCESS`, report or rejects stand though shards have no part
    REJECTS_MISSING = "REJECTS_MISSING"
    REJECTS_UNREADABLE = "REJECTS_UNREADABLE"
    REJECTS_ROWS = "REJECTS_ROWS"  # not the rejects of the plan and its receipts
    REPORT_MISSING = "REPORT_MISSING"
    REPORT_UNREADABLE = "REPORT_UNREADABLE"
    REPORT_COUNTS = "REPORT_COUNTS"  # not the sums over plan and receipts


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise: which, of which file, and how, in a sentence."""

    promise: Promise
    key: str
    sentence: str

    def line(self) -> str:
        """`CODE  key  sentence`, always one line and printable."""
        return f"{self.promise}  {printable(self.key)}  {printable(self.sentence)}"


Tell = Callable[[Violation], None]


def printable(text: str) -> str:
    """A text that came from outside as it may stand in one line of a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


@dataclass(frozen=True, slots=True)
class PlanState:
    """How far one plan is, and what its receipts count; the counts are of the parts that could be read.

    Attributes:
        rows: what the manifests had for it, rows refused while planning included.
        rejects: of planning and of the run.
        failed_tries: recorded ones, of finishing the plan.
    """

    plan: str
    rows: int
    shards: int
    parts: int
    published: bool
    utterances: int
    rejects: int
    failed_tries: int = 0

    @property
    def finished(self) -> bool:
        """Whether every shard has its part and the results are published."""
        return self.published and self.parts == self.shards

    def line(self) -> str:
        """For the summary."""
        if not self.finished:
            rest = "" if self.parts < self.shards else ", not published"
            rest += f", {self.failed_tries:,} failed tries in {attempts_folder(self.plan)}" if self.failed_tries else ""
            return f"plan {self.plan}: unfinished: {self.parts:,} of {self.shards:,} shards{rest}"
        return (
            f"plan {self.plan}: {self.rows:,} rows, {self.utterances:,} utterances and {self.rejects:,} rejects in "
            f"{self.shards:,} shards, published"
        )


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    Attributes:
        deep: whether all data were read, or footers and ids alone.
        unreadable_plans: plans about whose shards nothing could be said.
        leftovers: temporaries, and shard files that no plan names; harmless, and what `prune` is for.
    """

    output: str
    deep: bool
    plans: tuple[PlanState, ...]
    unreadable_plans: int
    violations: tuple[Violation, ...]
    leftovers: int
    leftover_bytes: int

    @property
    def status(self) -> str:
        """`violated`, `unfinished` or `sound`, in this order of weight."""
        if self.violations:
            return "violated"
        return "sound" if self.plans and all(plan.finished for plan in self.plans) else "unfinished"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"status": self.status, **asdict(self)}
