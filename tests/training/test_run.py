"""What a run refuses before it touches a device."""

from __future__ import annotations

import dataclasses

import pytest

from maestro_jax.batches import Buckets, StreamConfig
from maestro_jax.errors import UserError
from maestro_jax.training.partitioning import Partitioning

PAIRED = StreamConfig(mixture="m", batch_size=2, audio_samples=160, text_tokens=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"log_every": 0}, "log_every"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"checkpoint_every": 1.5}, "checkpoint_every"),
        ({"keep_checkpoints": 0}, "keep_checkpoints"),
        ({"seed": -1}, "seed"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"init_which": "emma"}, "Did you mean 'ema'"),
        ({"init_exclude": ("(",)}, r"'\(' of init_exclude is not a regular expression"),
        ({"init_include": "up/.*"}, r"write a tuple: \('up/\.\*',\)"),
        ({"profile_steps": (3, 9)}, "profile_steps"),
        ({"streams": {}}, "stream"),
        ({"optimizer": "adam"}, r"TrainRun.optimizer is 'adam'; it must be an Optimizer"),
        ({"objective": "maestro"}, r"TrainRun.objective is 'maestro'; it must be an Objective"),
        ({"streams": {"pared": PAIRED}}, "Did you mean 'paired'"),
        ({"streams": {"paired": PAIRED}}, "learns from text, mt, but the run has only .* paired"),
    ],
)
def test_refused(toy, changes, message):
    with pytest.raises(UserError, match=message):
        toy.run(**changes)


def test_streams_that_are_used(toy):
    run = toy.run(streams={**toy.streams, "paired": PAIRED})
    assert run.used_streams == ("text",)
    assert run.batch_sizes == {"text": (8,), "paired": (2,)}
    assert run.batch_shapes()["text"]["text"].shape == (8, 6)


def test_abstract_state_allocates_nothing_and_has_the_right_types(toy):
    state = toy.run().abstract_state()
    assert state.step.dtype == "int32"
    assert state.params["up"]["kernel"].value.shape == (8, 12)
    assert state.ema_params["up"]["kernel"].names == ("embed", "mlp")
    assert toy.run(ema_decay=None).abstract_state().ema_params is None


def test_batches_that_parts_do_not_divide_are_refused(toy):
    text = toy.streams["text"]
    buckets = Buckets(batch_sizes=(12,), text_tokens=(3,))
    streams = {"text": dataclasses.replace(text, buckets=buckets)}
    run = toy.run(streams=streams, accumulate=4)
    with pytest.raises(UserError, match="batch size 12 .*'text' .* accumulate = 8; set it to 16"):
        dataclasses.replace(run, accumulate=8)
    mesh = Partitioning(mesh_shape=(2, 1, 4)).mesh()
    with pytest.raises(UserError, match="12 .*the 2 devices .* accumulate = 4: 8; set it to 16"):
        run.partitioning.check_batch_sizes(mesh, run.batch_sizes, run.accumulate)
