"""The example package, installed as a user would install it, and what is refused of packages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import ConfigError
from pipeline.models.checkpoints.weights import Checkpoint, resolve
from pipeline.models.families import installed
from pipeline.models.families.choice import family_of
from pipeline.models.families.protocol import Declaration, Head, HeadKind, Output
from pipeline.models.runner import Runner
from tests.support.corpus import ROOT
from tests.support.tiny_models import tones

WEIGHT, BIAS = torch.tensor([[2.0, -1.0], [-1.0, 3.0]]), torch.tensor([0.5, -0.5])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the example installed by pip, from a copy, because a build writes beside its sources."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(ROOT / "examples" / "loudness-model", folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    done = subprocess.run(
        [*command, str(folder / "site"), str(source)], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def package(site, monkeypatch):
    """The installed example on the path of this process."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "loudness_model", raising=False)


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    labels = {"0": "neutral", "1": "angry"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "loudness", "id2label": labels}))
    save_file({"weight": WEIGHT, "bias": BIAS}, tmp_path / "model.safetensors")
    return resolve(str(tmp_path))


def expected(waveform: np.ndarray) -> np.ndarray:
    """The model's probabilities for one clip, written out."""
    frames = waveform[: len(waveform) // 400 * 400].reshape(-1, 400)
    levels = np.log10(np.maximum((frames.astype(np.float64) ** 2).mean(axis=1), 1e-10))
    logits = WEIGHT.numpy() @ [levels.mean(), levels.std()] + BIAS.numpy()
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.usefixtures("package")
def test_the_example_runs_in_any_batch(checkpoint):
    """Fails if an installed package is not found by its model type, or its rows depend on their neighbours."""
    family = family_of("audio", checkpoint)
    family.check()
    runner = Runner(family.load(device=torch.device("cpu"), precision="fp32"))
    given = [gain * clip for gain, clip in zip((1, 0.1, 3), tones(16_000, 9_100, 23_456), strict=True)]
    probabilities = np.stack([expected(clip) for clip in given])
    together = runner.run(given, None)
    assert runner.take_figures().batches == 1
    np.testing.assert_allclose(together.outputs[0], probabilities, atol=1e-4)
    np.testing.assert_allclose(runner.run(given[::-1], None).outputs[0], probabilities[::-1], atol=1e-4)
    alone = np.concatenate([runner.run([clip], None).outputs[0] for clip in given])
    np.testing.assert_allclose(alone, probabilities, atol=1e-4)


@pytest.mark.usefixtures("package")
def test_a_job_pins_it_and_records_its_version(checkpoint):
    """Fails if the driver's checks refuse an installed family, or a receipt does not tell which version ran."""
    from pipeline.models import roles
    from pipeline.models.emotion import EmotionRecogniser
    from pipeline.pins import Role

    role = Role.parse("fusion/en")
    pinned, widths = roles.pin({role: checkpoint.spec}, "audio")
    assert (pinned[role].sha256, widths) == (checkpoint.sha256, {"audio_embedding": 2})
    assert roles.versions.__wrapped__()["loudness-model"] == "0.1.0"
    result = EmotionRecogniser("audio", checkpoint).recognise(tones(16_000), None)
    assert result.labels == ["neutral", "angry"][int(expected(*tones(16_000)).argmax()) :][:1]


@pytest.mark.usefixtures("package")
def test_its_weights_load_strictly(checkpoint):
    """Fails if a package's checkpoint with a missing tensor passes the driver's check."""
    save_file({"weight": WEIGHT}, checkpoint.directory / "model.safetensors")
    with pytest.raises(ConfigError, match="1 missing: bias"):
        family_of("audio", checkpoint).check()


def test_without_the_package_its_type_is_unknown(checkpoint):
    """Fails if a node that lacks the package guesses at the model."""
    with pytest.raises(ConfigError, match="is of type 'loudness'; mode audio supports wav2vec2"):
        family_of("audio", checkpoint)


class Family:
    """A family with a declaration that a test chooses."""

    declared = Declaration(("audio",), (Head(HeadKind.SOFTMAX, ("a", "b")),), {})

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.declaration = self.declared


class WrongShape:
    """A loaded model whose logits have one column where two are declared."""

    declaration = Family.declared

    def lengths(self, batch):
        return [1.0] * len(batch)

    def forward(self, batch):
        return Output((torch.zeros(len(batch), 1),), {})


@pytest.mark.parametrize(
    ("entries", "declared", "message"),
    [
        (["json:loads", "json:dumps"], None, "claimed by more than one package"),
        (["no_such_module:Model"], None, "does not import"),
        (["json:NoSuchName"], None, "does not import"),
        ([f"{__name__}:Family"], {"inputs": ("audio", "text")}, "takes audio and text; mode audio needs"),
        ([f"{__name__}:Family"], {"heads": ()}, "each needs a name of its own"),
        ([f"{__name__}:Family"], {"heads": (Head(HeadKind.SIGMOID, ("a", "a")),)}, "each needs a name of its own"),
        ([f"{__name__}:Family"], {"embedding_widths": {"voice": 3}}, "declares embeddings voice"),
    ],
)
def test_a_package_that_cannot_be_used_is_refused_in_one_sentence(checkpoint, monkeypatch, entries, declared, message):
    """Fails if a fault of a package ends in a stack trace, or one of two is chosen at random."""
    from dataclasses import replace

    points = [EntryPoint("loudness", value, "speech_emotion.models") for value in entries]
    monkeypatch.setattr(installed, "entry_points", lambda **_: points)
    monkeypatch.setattr(Family, "declared", replace(Family.declared, **(declared or {})))
    with pytest.raises(ConfigError, match=message) as refused:
        family_of("audio", checkpoint)
    assert "\n" not in str(refused.value)


def test_logits_of_another_shape_are_an_error():
    """Fails if one column is written to every class."""
    with pytest.raises(ValueError, match=r"logits of shape \[1, 1\] where \[1, 2\] is declared"):
        Runner(WrongShape()).run(tones(8_000), None)
