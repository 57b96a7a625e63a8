"""Speaker models (`--speakers`): the files they come from, and the pins of plans.

Weights are those of Resemblyzer, from the installed package or a copy of its file. The network is ours
(`pipeline.models.networks.ge2e`), so none of the package's code or dependencies is used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, JobError
from pipeline.pins import ModelPin, Role, Task

if TYPE_CHECKING:
    from pipeline.models.networks.ge2e import SpeakerEncoder

SPEAKER = Role(Task.SPEAKER, "all")
"""Role of the speaker model, which is the same for every language."""
PACKAGE = "resemblyzer"
_FILE = "pretrained.pt"
_CLUSTERING = "sklearn"


def pin_speaker_model(spec: str) -> ModelPin:
    """Pin a speaker model: `resemblyzer`, or a file of its weights.

    Raises: ConfigError when the file or scikit-learn is missing, or the file has other contents.
    """
    if importlib.util.find_spec(_CLUSTERING) is None:
        raise ConfigError("speakers are clustered by scikit-learn: pip install 'speech-emotion-pipeline[speakers]'")
    path = _path(spec)
    content = path.read_bytes()
    _encoder(path)
    return ModelPin(spec, None, hashlib.sha256(content).hexdigest(), len(content))


@lru_cache(maxsize=1)
def speaker_encoder(pin: ModelPin) -> SpeakerEncoder:
    """Return the model that a plan pinned; loaded once per process. Raises: JobError when this node has other files."""
    try:
        path = _path(pin.spec)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if sha256 != pin.sha256:
            raise ConfigError(f"{path} has sha256 {sha256[:12]}, the plan's has {pin.sha256[:12]}")
        return _encoder(path)
    except ConfigError as error:
        raise JobError(f"--speaker-model {pin.spec}: {error}") from error


def _path(spec: str) -> Path:
    if spec != PACKAGE:
        if not Path(spec).is_file():
            raise ConfigError(f"{spec} is neither {PACKAGE} nor a file of its weights")
        return Path(spec)
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"the package {PACKAGE} is not installed: pip install --no-deps {PACKAGE}==0.1.4")
    return Path(found.submodule_search_locations[0], _FILE)


def _encoder(path: Path) -> SpeakerEncoder:
    import torch

    from pipeline.models.networks.ge2e import SpeakerEncoder

    try:
        return SpeakerEncoder(torch.load(path, map_location="cpu", weights_only=True)["model_state"])
    except (OSError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path} has no weights of Resemblyzer's speaker encoder: {type(error).__name__}") from error
