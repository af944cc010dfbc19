"""What checkpoints remember besides arrays, also those of earlier versions."""

from __future__ import annotations

import json
import logging

import pytest

from maestro_jax.errors import UserError
from maestro_jax.training.curriculum_controller import CurriculumController, LossBalancer
from maestro_jax.training.records import TrainingRecord
from maestro_jax.training.trainer import Trainer, train

# As the loop before callbacks wrote it.
EARLIER = {
    "step": 3,
    "seed": 0,
    "elapsed_seconds": 12.5,
    "skipped_steps": 2,
    "skipped_in_a_row": 1,
    "window": {"steps": 1, "totals": {"loss": 4.0}, "counts": {"loss": 2.0}},
    "steering": {
        "opened": {"text": 7},
        "weights": {"mt": 0.5, "st": 1.5},
        "first_losses": {"mt": 3.0},
    },
    "vocabulary": {"pieces": 16, "sha256": "ab"},
    "streams": {"text": {"mixture": "toy", "batch_size": 8, "buckets": None, "examples": 24}},
}


def test_a_record_goes_through_json(toy):
    record = TrainingRecord.of_run(
        toy.run(),
        step=3,
        elapsed_seconds=1.5,
        callbacks={"metric_logger": {"window": {"steps": 1}}},
        vocabulary=None,
    )
    read = TrainingRecord.from_json(json.loads(json.dumps(record.to_json())))
    assert read.to_json() == record.to_json()
    assert read.streams["text"]["examples"] == 24


def test_every_value_of_an_earlier_record_finds_its_callback(toy, tmp_path):
    record = TrainingRecord.from_json(EARLIER)
    assert (record.step, record.seed, record.elapsed_seconds) == (3, 0, 12.5)
    assert record.vocabulary == {"pieces": 16, "sha256": "ab"}
    states = {}
    for callback in Trainer(toy.run(), tmp_path).callbacks:
        if callback.name in record.callbacks:
            callback.load(record.callbacks[callback.name])
            states[callback.name] = callback.state()
    # How many steps in a row is of no use without which; it begins anew.
    assert states.pop("non_finite_guard")["skipped_steps"] == 2
    assert states == {
        "metric_logger": {"window": EARLIER["window"]},
        "curriculum": {"opened": {"text": 7}},
        "loss_balancer": {"weights": {"mt": 0.5, "st": 1.5}, "first_losses": {"mt": 3.0}},
    }


def test_a_run_goes_on_from_an_earlier_record(toy, tmp_path):
    """To the same bits as in one go, with the counts of the record."""
    train(toy.run(steps=3), tmp_path / "parts", batches=toy.batches)
    step_directory = tmp_path / "parts" / "checkpoints" / "3"
    path = step_directory / "data" / "metadata"
    earlier = {**EARLIER, "vocabulary": None, "streams": json.loads(path.read_text())["streams"]}
    path.write_text(json.dumps(earlier))
    # Without its list, which has the record as it was.
    (step_directory / "files.json").unlink()
    state = train(toy.run(), tmp_path / "parts", batches=toy.batches)
    whole = train(toy.run(), tmp_path / "whole", batches=toy.batches)
    toy.assert_trees_equal(state, whole)
    text = (tmp_path / "parts" / "metrics.jsonl").read_text()
    lines = {line["step"]: line for line in map(json.loads, text.splitlines())}
    assert list(lines) == [2, 3, 4, 6]
    assert lines[6]["skipped_steps"] == 2.0 and lines[6]["elapsed_seconds"] > 12.5
    # Its open window held a step with a loss of 4 over 2.
    fourth = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[1])
    assert lines[4]["loss"] != fourth["loss"]


def test_another_seed_is_refused_and_another_stream_is_told(toy, caplog):
    record = TrainingRecord.from_json(EARLIER)
    with pytest.raises(UserError, match="some_dir was started with seed 0, not 3"):
        record.check_compatible(toy.run(seed=3), "some_dir")
    with caplog.at_level(logging.WARNING):
        record.check_compatible(toy.run(), "some_dir")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    streams = {"text": type(toy.streams["text"])(mixture="other", batch_size=8, text_tokens=6)}
    record.check_compatible(toy.run(streams=streams), "some_dir")
    assert "the stream 'text' changed" in caplog.text


def test_callbacks_without_a_record_begin_anew(toy):
    objective = toy.Objective()
    controller = CurriculumController(objective, 2)
    controller.load({})
    assert controller.state() == {"opened": {}}
    assert LossBalancer(objective, controller).state() == {"weights": {}, "first_losses": {}}
