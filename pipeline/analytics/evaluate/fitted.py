"""Fit of a calibration: one temperature for each model, and so for each language."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.analytics.evaluate.bootstrap import RECORDING, groups_of
from pipeline.analytics.evaluate.calibration import NoTemperatureError, fit
from pipeline.analytics.evaluate.labelled import Labelled
from pipeline.analytics.evaluate.results import Fit, FittedCalibration
from pipeline.errors import ConfigError

FORMAT = 1
CALIBRATED = "/T="
"""Marker in the fingerprint of a model whose scores are calibrated (`pipeline.models.roles.fingerprint`)."""


def fit_outputs(outputs: Sequence[Labelled]) -> FittedCalibration:
    """Fit each model of some outputs on its labelled rows.

    Raises: NoTemperatureError naming every model that no temperature fits, with the reason; ConfigError for a model
        that two outputs share, or whose scores are already calibrated.
    """
    models: dict[str, Fit] = {}
    unfitted: list[str] = []
    for labelled in outputs:
        fingerprints = np.array(labelled.column("model"))
        for model in sorted(set(fingerprints)):
            if CALIBRATED in model:
                raise ConfigError(
                    f"{labelled.output}: the scores of {model} are calibrated already; fit on an output without --calibration"
                )
            if model in models:
                raise ConfigError(f"{labelled.output}: an earlier output has the model {model} too; fit on one of them")
            rows = labelled.take(np.flatnonzero(fingerprints == model))
            if _independent(rows.table):
                raise ConfigError(
                    f"{labelled.output}: the classes of {model} are independent (sigmoid); a temperature needs the scores of a "
                    "softmax"
                )
            if not np.allclose(rows.scores.sum(axis=1), 1.0, atol=1e-3):
                raise ConfigError(
                    f"{labelled.output}: the scores of {model} do not add up to 1; a temperature needs the scores of a softmax"
                )
            try:
                models[model] = fit(
                    rows.scores, rows.truth, rows.predicted, groups_of(rows.table, RECORDING), output=labelled.output
                )
            except NoTemperatureError as error:
                unfitted.append(f"{labelled.output}, {model}: {error}")
    if unfitted:
        raise NoTemperatureError("\n".join(unfitted))
    made_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return FittedCalibration(FORMAT, "temperature", made_at, models)


def _independent(table: pa.Table) -> bool:
    """Return whether a model of the rows has independent classes, whose names over the threshold `labels` lists.

    In datasets before schema version 3 `labels` may be a column of the manifest, which is no list of classes.
    """
    if "labels" not in table.column_names or "label_scores" not in table.column_names:
        return False
    return bool(table["labels"].null_count < table.num_rows)
