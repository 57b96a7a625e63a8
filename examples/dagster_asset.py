"""Dagster asset for the dataset of utterances, and a schedule that adds new files every night: `dagster dev -f` this file.

Dagster's process needs `ray[default]==2.60.0` and `s3fs`, `ray_job.py` beside this file, and in its environment
RAY_AUTH_MODE=token, RAY_AUTH_TOKEN and the credentials for the output.
"""

# no postponed annotations: Dagster needs annotations as types, not as text
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
    """Configuration of one materialisation.

    Attributes:
        dashboard: URL of the Ray cluster's dashboard.
        corpus: folder or prefix of audio.
        output: location of the output, such as s3://bucket/emotions.
        by: columns of the summary.
        options: more options of jobs.annotate.
    """

    dashboard: str
    corpus: str
    output: str
    by: list[str] = Field(default_factory=lambda: ["language"])
    options: list[str] = Field(default_factory=list)


@asset(retry_policy=RetryPolicy(max_retries=3, delay=300))  # a retry resumes from what is committed
def utterances(context: AssetExecutionContext, config: Run) -> MaterializeResult:
    """Materialise the table with one row for each labelled span of speech."""
    name = f"dagster-{context.run_id}-{context.retry_number}"
    options = ["--output", config.output, *config.options]
    reports = run_night(config.dashboard, name, config.corpus, config.by, options, log=context.log.info)
    totals = {key: sum(r[key] for r in reports) for key in ("rows", "utterances", "rejected", "audio_hours")}
    return MaterializeResult(metadata={**totals, "runs": [r["run_id"] for r in reports], "output": config.output})


nightly = ScheduleDefinition(job=define_asset_job("nightly", [utterances]), cron_schedule="30 1 * * *")
definitions = Definitions(assets=[utterances], schedules=[nightly])
