"""An utterance that kills its process costs itself, after a stated number of attempts, and nobody else."""

from __future__ import annotations

import pytest

from pipeline.shard.crashes import MOST_DEATHS, MOST_LOST_NODES, CrashTracker, LocalWatch, count_deaths
from pipeline.shard.prepare import prepare
from pipeline.shard.recognise import recognise
from tests.support.corpus import ONE_ACTOR, ROOT, annotate, model_options, rejects, rows, utterances, write_manifest
from tests.support.lethal_hook import LETHAL, environment
from tests.support.shards import causes, models_of, real_recogniser, work_of
from tests.support.shards import row as shard_row


def test_the_ledger_remembers_who_was_inside():
    """Fails if a death is charged to another line or step, or an end does not close the account."""
    ledger = CrashTracker()
    assert ledger.begin("a") is None
    assert ledger.begin("b") is None
    assert ledger.begin("a") == {}
    ledger.enter("a", 3)
    ledger.enter("a", 4)
    assert ledger.begin("a") == {4: [""]}
    ledger.enter("a", 4)
    assert ledger.begin("a") == {4: ["", ""]}
    ledger.enter("a", 5)
    ledger.end("a")
    assert ledger.begin("a") is None
    assert ledger.begin("b") == {}


def test_what_a_lost_node_had_in_hand_is_not_under_way():
    """Fails if a job with nothing but the shards of a lost node waits for them as if somebody worked."""
    ledger = CrashTracker()
    for step, node in (("a", "one"), ("b", "two"), ("c", "two")):
        ledger.begin(step, node)
    ledger.end("c")
    assert [ledger.under_way(nodes) for nodes in ({"one", "two"}, {"two"}, {"three"})] == [2, 1, 0]
    ledger.begin("a", "two")
    assert ledger.under_way({"two"}) == 2


def test_a_line_is_not_charged_with_its_nodes():
    """Fails if an utterance that was in hand on three nodes that were preempted is rejected as the one that killed them."""
    ledger = CrashTracker()
    for node in ("one", "two", "three", "four"):
        found = ledger.begin("a", node)
        ledger.enter("a", 4)
    assert [count_deaths(found, living) for living in ({"four"}, {"two", "four"}, {"one", "two", "three"})] == [
        {4: 0},
        {4: 1},
        {4: 3},
    ]
    assert count_deaths(None, {"one"}) is None


def test_a_line_that_ends_its_nodes_is_not_tried_for_ever():
    """Fails if an utterance that takes the machine along, as by its memory, goes on from node to node until none is left."""
    lost = [f"node {number}" for number in range(MOST_LOST_NODES + 1)]
    assert count_deaths({4: lost[:-1]}, set()) == {4: 0}
    assert count_deaths({4: lost}, set()) == {4: len(lost)}
    assert len(lost) > MOST_DEATHS


class Death(BaseException):
    """Stands for SIGKILL: no guard catches it."""


class Deadly:
    """A recogniser that takes its process along when it meets one text."""

    def __init__(self, real, text: str) -> None:
        self.real, self.text, self.deaths = real, text, 0

    def recognise(self, waveforms, texts):
        if self.text in texts:
            self.deaths += 1
            raise Death
        return self.real.recognise(waveforms, texts)


def test_a_lethal_line_is_found_and_its_neighbours_are_done(tmp_path, checkpoints):
    """Fails if the suspect is somebody else, is tried for ever, or the neighbours' results are not what they would be."""
    records = [shard_row(n, text=LETHAL if n == 2 else f"Words {n}.") for n in range(5)]
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en"]))
    (shard,) = work.plan.shards()
    prepared = prepare(work, shard)
    real = real_recogniser(checkpoints)
    expected = recognise(work, shard, prepared, lambda _: real)
    deadly, watch = Deadly(real, LETHAL), LocalWatch(CrashTracker(), "recognise x")
    found = None
    for _ in range(10):
        try:
            found = recognise(work, shard, prepared, lambda _: deadly, watch)
            break
        except Death:
            continue
    assert found is not None
    assert deadly.deaths == MOST_DEATHS + 1
    assert causes(found) == [None, None, "INTERNAL", None, None]
    assert "died 3 times" in causes(found, "detail")[2]
    assert found["label"].to_pylist()[3:] == expected["label"].to_pylist()[3:]
    for column in ("confidence", "margin"):
        assert found[column].to_pylist()[0] == pytest.approx(expected[column].to_pylist()[0], abs=1e-5)


@pytest.mark.usefixtures("own_ray")
def test_a_lethal_utterance_in_a_real_job(tmp_path, checkpoints, asr, shared_ray):
    """Fails if Ray gives up on the shard or the job, if the row is tried for ever, or if a neighbour is lost or changed."""
    records = rows(8)
    records[2]["text"] = LETHAL
    manifest, options = write_manifest(tmp_path / "m.jsonl", records), [*model_options(checkpoints, asr), *ONE_ACTOR]
    output = tmp_path / "out"
    annotate(manifest, output, *options, "--shard-rows", "4", env=environment(str(ROOT)))
    (refused,) = rejects(output).to_pylist()
    assert (refused["recording_id"], refused["reason"], refused["stage"]) == ("clip-002", "INTERNAL", "recognise")
    assert refused["attempts"] == MOST_DEATHS + 1
    shared_ray(write_manifest(tmp_path / "n.jsonl", records[:2] + records[3:]), tmp_path / "without", *options)
    found, expected = utterances(output), utterances(tmp_path / "without")
    for column in ("utterance_id", "text", "label"):
        assert found[column].to_pylist() == expected[column].to_pylist()
    assert found["confidence"].to_pylist() == pytest.approx(expected["confidence"].to_pylist(), abs=1e-5)
