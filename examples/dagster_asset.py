"""A Dagster asset: the dataset of utterances, and a schedule that adds each night what is new. `dagster dev -f` this file.

Dagster's process needs `ray[default]==2.60.0` and `s3fs`, `ray_job.py` beside this file, and in its environment
RAY_AUTH_MODE=token, RAY_AUTH_TOKEN and whatever reads the output.
"""

# no postponed annotations here: Dagster resolves what it is given as types, not as text
from dagster import (
    AssetExecutionContext,
    Config,
    Definitions,
    MaterializeResult,
    RetryPolicy,
    ScheduleDefinition,
    asset,
    define_asset_job,
)
from pydantic import Field
from ray_job import run_night


class Run(Config):
    """Where the cluster and the corpus are.

    Attributes:
        dashboard: of the Ray cluster.
        corpus: folder or prefix of audio.
        by: columns of the summary.
        options: more options of jobs.annotate.
    """

    dashboard: str
    corpus: str
    output: str
    by: list[str] = Field(default_factory=lambda: ["language"])
    options: list[str] = Field(default_factory=list)


@asset(retry_policy=RetryPolicy(max_retries=3, delay=300))  # a retry goes on from what is committed
def utterances(context: AssetExecutionContext, config: Run) -> MaterializeResult:
    """One row for each labelled span of speech."""
    name = f"dagster-{context.run_id}-{context.retry_number}"
    options = ["--output", config.output, *config.options]
    reports = run_night(config.dashboard, name, config.corpus, config.by, options, log=context.log.info)
    totals = {key: sum(r[key] for r in reports) for key in ("rows", "utterances", "rejected", "audio_hours")}
    return MaterializeResult(metadata={**totals, "runs": [r["run_id"] for r in reports], "output": config.output})


nightly = ScheduleDefinition(job=define_asset_job("nightly", [utterances]), cron_schedule="30 1 * * *")
definitions = Definitions(assets=[utterances], schedules=[nightly])
