"""The Python interface: recordings labelled in this process, and the job, its outputs and their audit from Python."""

from __future__ import annotations

import doctest
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import pipeline
import pipeline.engine.run as driver_module
from pipeline import Annotator, ConfigError, RejectedRow, api
from pipeline.config import load_config
from pipeline.dataset import records
from pipeline.models import roles
from pipeline.shard.commit import finish
from pipeline.shard.prepare import prepare
from pipeline.shard.recognise import recognise
from tests.support.corpus import ROOT
from tests.support.noop_job import no_cluster

pytestmark = pytest.mark.usefixtures("one_thread", "at_root")
AUDIO = Path("demo/corpus/audio")
PRIZES = str(AUDIO / "ada-prizes.wav")
PRIZES_TEXT = "We won two prizes in the hotel on Friday!"
MEAN = {
    "emotion_model": {language: f"demo/models/mean-{language}" for language in ("en", "es")},
    "sentence_encoder": dict.fromkeys(("en", "es"), "demo/models/sentence-encoder"),
    "asr_model": "demo/models/whisper",
}


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def annotator():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        made = Annotator(mode="audio", emotion_model="demo/models/audio-en")
        made.annotate(PRIZES)
    return made


def run_in_process(work, shards, _pools, _config, on_finished):
    """Stand in for the stages on Ray."""
    loaded = roles.Loaded(work.plan.models, settings=work.plan.settings, device="cpu")
    for shard in shards:
        table = recognise(work, shard, prepare(work, shard), loaded.recogniser_for)
        on_finished(finish(work, shard, table, {}))


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.setattr(driver_module, "cluster", no_cluster)
    monkeypatch.setattr(driver_module, "run_shards", run_in_process)


@pytest.fixture
def two_rows(tmp_path):
    """A manifest of two recordings with texts."""
    rows = [
        {"id": "prizes", "audio": PRIZES, "text": PRIZES_TEXT},
        {
            "id": "cheese",
            "audio": str(AUDIO / "ben-cheese.wav"),
            "text": "What a nasty stink from the cheese in the market.",
        },
    ]
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps({**row, "audio": str(ROOT / row["audio"])}) + "\n" for row in rows))
    return path


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- loading


def test_importing_the_package_loads_nothing():
    """Fails if `import pipeline` costs the import of Arrow, torch or Ray."""
    heavy = {"pyarrow", "numpy", "pydantic", "torch", "ray", "pipeline.api", "pipeline.errors"}
    code = f"import sys, time, pipeline\nprint(time.process_time(), *({heavy!r} & set(sys.modules)))"
    before = float(python("import time; print(time.process_time())"))
    seconds, *loaded = python(code).split()
    assert not loaded and float(seconds) - before < 0.2


def test_public_names_exist_and_are_listed():
    """Fails if a name in `__all__` cannot be loaded, or an unknown one is not refused as Python refuses it."""
    for name in pipeline.__all__:
        assert getattr(pipeline, name) is not None
        assert name in dir(pipeline)
    assert {*api.__all__} <= {*pipeline.__all__}
    with pytest.raises(AttributeError, match="has no attribute 'Annotater'"):
        _ = pipeline.Annotater


def test_labelling_never_imports_ray():
    """Fails if a notebook that labels a file loads Ray, or finds another answer than this process."""
    code = (
        "import sys, pipeline\n"
        "annotator = pipeline.Annotator(mode='audio', emotion_model='demo/models/audio-en')\n"
        f"print(annotator.annotate({PRIZES!r})[0].emotion, *({{'ray'}} & set(sys.modules)))"
    )
    assert python(code).split() == ["joy"]


# -- examples


def documented():
    """Every public class, function and method of the interface."""
    for name in api.__all__:
        value = vars(api)[name]
        yield name, value
        if inspect.isclass(value):
            yield from ((f"{name}.{key}", each) for key, each in vars(value).items()
                        if inspect.isfunction(each) and not key.startswith("_"))  # fmt: skip


def test_every_docstring_has_an_example_that_runs(two_rows, tmp_path, without_ray):
    """Fails if a public docstring has no example, or one that does something else than it says."""
    runner, parser = doctest.DocTestRunner(verbose=False), doctest.DocTestParser()
    names = {"pipeline": pipeline, "pa": pa, "Path": Path, "manifest": str(two_rows), "output": str(tmp_path / "out")}
    printed = []
    for name, value in documented():
        test = parser.get_doctest(inspect.getdoc(value) or "", dict(names), name, None, None)
        assert test.examples, f"{name} has no example"
        runner.run(test, out=printed.append)
    assert runner.failures == 0, "".join(printed)


# -- labelling


def test_answers_equal_those_of_the_job(two_rows, tmp_path, without_ray):
    """Fails if the annotator and the job, given the same rows and models, differ in a column other than by rounding."""
    flags = {"mode": "audio", "emotion_model": "demo/models/audio-en"}
    pipeline.annotate(str(two_rows), str(tmp_path / "out"), **flags)
    theirs = pipeline.open_dataset(tmp_path / "out").utterances().to_table().sort_by("utterance_id")
    rows = [json.loads(line) for line in two_rows.read_text().splitlines()]
    ours = Annotator(**flags).annotate(rows).to_arrow().sort_by("utterance_id")
    assert ours.schema == theirs.schema
    near = ["confidence", "margin", "audio_embedding", "scores"]
    assert ours.drop_columns(near).equals(theirs.drop_columns(near))
    for name in ("confidence", "margin"):
        np.testing.assert_allclose(ours[name].to_numpy(), theirs[name].to_numpy(), atol=1e-5)


def test_a_bad_source_raises_alone_and_is_a_reject_in_a_list(annotator, tmp_path):
    """Fails if one bad file of a list costs the others, or a single bad file gives an empty answer."""
    bad = [tmp_path / "missing.wav", b"not audio", AUDIO / "broken-20-ms.wav"]
    reasons = ["NOT_FOUND", "NOT_AUDIO", "TOO_SHORT"]
    for source, reason in zip(bad, reasons, strict=True):
        with pytest.raises(RejectedRow) as caught:
            annotator.annotate(source)
        assert caught.value.reason == reason
        assert "/sources-" not in caught.value.detail
    annotations = annotator.annotate([*bad, PRIZES])
    assert len(annotations) == 1
    assert sorted((reject.line, reject.reason) for reject in annotations.rejects) == list(enumerate(reasons, 1))


def test_many_bad_sources_are_rejects_like_few(annotator, tmp_path):
    """Fails if a list of nothing but missing files raises where the job would stop for fear of a wrong folder."""
    annotations = annotator.annotate([tmp_path / f"{number}.wav" for number in range(150)])
    assert len(annotations) == 0 and len(annotations.rejects) == 150


def test_no_sources_give_no_utterances(annotator):
    """Fails if an empty list is an error."""
    annotations = annotator.annotate([])
    assert list(annotations) == list(annotations.rejects) == []
    assert "emotion" in annotations.to_arrow().column_names


def test_columns_of_a_source_are_attributes_of_its_utterance(annotator):
    """Fails if a column of a dict gets lost, or the columns are not those of the output."""
    content = Path(PRIZES).read_bytes()
    rows = [
        {"audio": content, "speaker": "Ada", "a name": 1, "confidence": "sure", "turn": np.int64(3)},
        {"audio": Path(PRIZES), "offset": np.float32(0.5), "duration": 1.0, "channel": np.int64(0)},
    ]
    annotations = annotator.annotate(rows)
    of_bytes, of_path = annotations[:]
    assert [of_bytes.speaker, of_bytes.manifest_confidence, of_bytes.turn, vars(of_bytes)["a name"]] == [
        "Ada",
        "sure",
        3,
        1,
    ]
    assert of_bytes.audio is None and of_bytes.recording_id.startswith("bytes-")
    assert of_path.audio == str(ROOT / PRIZES) and of_path.speaker is None
    assert (of_path.start_s, of_path.end_s, of_path.channel) == (0.5, 1.5, 0)
    assert list(vars(of_path)) == annotations.to_arrow().column_names == list(annotations.to_pandas())
    assert "numbers]" in repr(of_path) and of_path == annotations[-1]


def test_bytes_and_path_are_the_same_recording(annotator):
    """Fails if the content of a file is labelled otherwise than the file, or its id changes from call to call."""
    content = Path(PRIZES).read_bytes()
    (of_path,), (of_bytes,), (again,) = (annotator.annotate(each) for each in (PRIZES, content, content))
    assert of_bytes.scores == of_path.scores and again.recording_id == of_bytes.recording_id
    assert of_path.recording_id != of_bytes.recording_id


def test_texts_are_transcribed_where_none_is_given():
    """Fails if texts go to other sources than they were given for, or models of a second language cannot be added."""
    annotator = Annotator(**MEAN)
    given, heard = annotator.annotate([PRIZES, AUDIO / "ben-ticket.mp3"], [PRIZES_TEXT, None])
    assert (given.text, given.text_source, heard.text_source) == (PRIZES_TEXT, "manifest", "asr")
    assert heard.text
    [spanish] = annotator.annotate({"audio": PRIZES, "text": "Hola.", "language": "es-MX"})
    assert (spanish.language, spanish.model.partition(":")[0]) == ("es-MX", "mean-es")
    with pytest.raises(RejectedRow, match="UNSUPPORTED_LANGUAGE"):
        annotator.annotate({"audio": PRIZES, "text": "Hallo.", "language": "de"})


def test_texts_alone():
    """Fails if mode text asks for audio."""
    annotator = Annotator(mode="text", emotion_model="demo/models/text-en")
    [utterance] = annotator.annotate([{"text": PRIZES_TEXT}])
    assert utterance.label and utterance.audio is None


def test_models_are_loaded_once(annotator, monkeypatch):
    """Fails if a second call hashes or loads the models again."""
    monkeypatch.setattr(roles, "pin", None)
    monkeypatch.setattr(roles, "pinned_checkpoint", None)
    assert annotator.annotate(PRIZES)[0].emotion == "joy"


def test_nothing_is_left_in_the_temporary_folder(annotator, tmp_path, monkeypatch):
    """Fails if a call leaves copies of recordings behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    annotator.annotate([Path(PRIZES).read_bytes()])
    assert list(tmp_path.iterdir()) == []


def test_audio_roots_limit_what_a_source_may_name(tmp_path):
    """Fails if rows of somebody else can name any file of the machine though the caller set a root."""
    shutil.copy(PRIZES, tmp_path / "inside.wav")
    annotator = Annotator(mode="audio", emotion_model="demo/models/audio-en", audio_root=str(tmp_path))
    annotations = annotator.annotate([tmp_path / "inside.wav", PRIZES, Path(PRIZES).read_bytes()])
    assert len(annotations) == 2
    assert [reject.reason for reject in annotations.rejects] == ["NOT_ALLOWED"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mood": "mean"}, "an Annotator has no option 'mood'"),
        ({"partition_by": "speaker"}, "no option 'partition_by'"),
        ({"mode": "meen"}, "mode"),
        ({"beam_size": 0}, "beam-size"),
        ({"models": "/nowhere"}, "lock"),
    ],
)
def test_wrong_options_are_refused(options, message):
    """Fails if a misspelt option is ignored."""
    with pytest.raises(ConfigError, match=message):
        Annotator(**options)


@pytest.mark.parametrize(
    ("source", "texts", "message"),
    [
        ([PRIZES], "one text", "list of 1 sources"),
        ([PRIZES], ["one", "two"], "list of 1 sources"),
        (PRIZES, ["a list"], "one source has one text"),
        ([3], None, "not int"),
    ],
)
def test_wrong_arguments_are_refused(annotator, source, texts, message):
    """Fails if texts that fit no source are dropped."""
    with pytest.raises(ConfigError, match=message):
        annotator.annotate(source, texts)


def test_every_option_of_an_annotator_is_one_of_the_job():
    """Fails if an option is renamed in the configuration alone."""
    assert {*api._OPTIONS} <= {*type(load_config(None, {"manifest": "m", "output": "o"})).model_fields}


# -- records


def test_records_are_a_sequence():
    """Fails if indexing, slicing or iteration differ from a list's."""
    rows = records.Records(pa.table({"n": [0, 1, 2]}))
    assert [row.n for row in rows] == [0, 1, 2] and rows[-1].n == 2
    assert [row.n for row in rows[::-2]] == [2, 0]
    assert rows[0] in rows and repr(rows) == "<Records: 3 rows of n>"
    with pytest.raises(IndexError):
        rows[3]


# -- the job and its outputs


def test_job_options_reach_the_driver(two_rows, tmp_path, without_ray):
    """Fails if an option or the file of `config` is dropped, or a dry run writes."""
    config = tmp_path / "job.yaml"
    config.write_text(f"mode: audio\nemotion_model: {ROOT}/demo/models/audio-en\n")
    [plan] = pipeline.annotate([two_rows], tmp_path / "out", config=config, dry_run=True)
    assert plan["rows_new"] == 2 and list(plan["models"]) == ["fusion/en"]
    assert not list(tmp_path.glob("out/*"))
    with pytest.raises(ConfigError, match="mode"):
        pipeline.annotate([two_rows], tmp_path / "out", mode="meen")


@pytest.mark.parametrize("wrong", [{}, {"text": "a", "like": "b"}, {"text": "a", "top": 0}])
def test_a_search_is_for_one_thing(tmp_path, wrong):
    """Fails if one of two questions is dropped."""
    with pytest.raises(ConfigError, match=r"exactly one of|top must"):
        pipeline.search(tmp_path, **wrong)
