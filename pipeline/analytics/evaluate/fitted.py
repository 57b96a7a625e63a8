"""Contents of a calibration file: the temperature of each model, and so of each language, and the fit behind it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.analytics.evaluate.calibration import NoTemperatureError, fit
from pipeline.analytics.evaluate.compare import groups_of
from pipeline.analytics.evaluate.labelled import Labelled
from pipeline.errors import ConfigError

FORMAT = 1
CALIBRATED = "/T="
"""Marker in the fingerprint of a model whose scores are calibrated (`pipeline.models.roles.fingerprint`)."""


def fit_outputs(outputs: Sequence[Labelled]) -> dict[str, Any]:
    """Fit each model of some outputs on its labelled rows.

    Raises: NoTemperatureError naming every model that no temperature fits, with the reason; ConfigError for a model
        that two outputs share, or whose scores are already calibrated.
    """
    models: dict[str, Any] = {}
    unfitted: list[str] = []
    for labelled in outputs:
        fingerprints = np.array(labelled.column("model"))
        for model in sorted(set(fingerprints)):
            if CALIBRATED in model:
                raise ConfigError(
                    f"{labelled.output}: the scores of {model} are calibrated already; fit on an output without"
                )
            if model in models:
                raise ConfigError(
                    f"{labelled.output}: an output before it has the model {model} too; fit on one of them"
                )
            rows = labelled.take(np.flatnonzero(fingerprints == model))
            try:
                found = fit(rows.scores, rows.truth, rows.predicted, groups_of(rows, "recording_id"))
            except NoTemperatureError as error:
                unfitted.append(f"{labelled.output}, {model}: {error}")
                continue
            models[model] = {**found, "output": labelled.output}
    if unfitted:
        raise NoTemperatureError("\n".join(unfitted))
    made_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"format": FORMAT, "method": "temperature", "made_at": made_at, "models": models}
