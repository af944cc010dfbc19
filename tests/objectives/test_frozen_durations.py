"""Durations do not drift where the text encoder is trained and no pairs train them."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from maestro_jax.batches import batch_shapes
from maestro_jax.decoding.speech import decode_text
from maestro_jax.layers.masking import length_mask
from maestro_jax.modules.duration import DURATION_NETWORKS as NETWORKS
from maestro_jax.modules.duration import FROZEN_DURATIONS as FROZEN
from maestro_jax.modules.duration import duration_params, predicted_durations
from maestro_jax.modules.resampler import GaussianUpsampling
from maestro_jax.objectives.duration_sources import FixedRepetition, Learned
from maestro_jax.objectives.maestro import MaestroPretraining
from maestro_jax.objectives.speech_translation import SpeechTranslation
from maestro_jax.training.checkpoints import Checkpoints
from maestro_jax.training.optimizers import AdamConfig
from maestro_jax.training.parameter_trees import unbox
from maestro_jax.training.partial_restore import partial_restore, restore_params
from maestro_jax.training.state import create_state
from maestro_jax.training.step import train_step

STEPS = 8


def save(directory, params):
    checkpoints = Checkpoints(directory)
    checkpoints.save(create_state(params, AdamConfig()), {"step": 1})
    checkpoints.close()
    return directory


@pytest.fixture(scope="module")
def pretrained(tiny, tmp_path_factory):
    """A model directory whose durations are neither all equal nor all cut off."""
    params = tiny.state().params
    params["duration_model"]["nonzero"]["bias"] += 3.0
    params["duration_model"]["frames"]["kernel"] *= 2.0
    return save(tmp_path_factory.mktemp("pretrained"), params)


@pytest.fixture(scope="module")
def texts(tiny):
    """Of both languages, none of them trained on."""
    stream = tiny.batch(99)["text"]
    mask = length_mask(stream["text_length"], stream["text"].shape[1])
    return stream["text"], mask, stream["language"]


@pytest.fixture(scope="module")
def fine_tuned(tiny, pretrained):
    """The report of the beginning, and the state after steps of text translation with decay."""
    objective = SpeechTranslation(max_text_frames=9 * 6)
    optimizer = AdamConfig(learning_rate=3e-3, warmup_steps=1, weight_decay=0.1)
    shapes = {"mt": batch_shapes(tiny.streams)["mt"]}
    abstract = jax.eval_shape(lambda: objective.init(tiny.model, jax.random.key(0), shapes))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), unbox(abstract))
    params, report = partial_restore(zeros, pretrained)
    step = functools.partial(train_step, model=tiny.model, objective=objective)
    step = jax.jit(functools.partial(step, optimizer=optimizer, ema_decay=0.5, seed=0))
    state = create_state(params, optimizer)
    for seed in range(STEPS):
        state, _ = step(state, {"mt": tiny.batch(seed)["mt"]})
    return report, state


@pytest.fixture(scope="module")
def frames(tiny):
    """From parameters to the frames of texts of both languages, none of them trained on."""
    stream = tiny.batch(99)["text"]
    mask = length_mask(stream["text_length"], stream["text"].shape[1])
    read = jax.jit(
        lambda params: predicted_durations(
            tiny.model, params, stream["text"], mask, stream["language"]
        )
    )

    def of(params):
        return np.asarray(read({k: v for k, v in params.items() if k in (*NETWORKS, FROZEN)}))

    return of


@pytest.mark.extended
def test_text_translation_leaves_the_durations_of_texts_alone(pretrained, fine_tuned, frames):
    report, state = fine_tuned
    before = frames(restore_params(pretrained))
    assert len(np.unique(before)) > 3
    for params in (state.params, state.ema_params):
        np.testing.assert_array_equal(frames(params), before)
    # What would have become of them: the text encoder moved under the duration model.
    loose = {name: part for name, part in state.params.items() if name != FROZEN}
    assert np.abs(frames(loose) - before).sum() > 0.1 * before.sum()
    assert {name.split("/")[0] for name in report.copied} == {FROZEN} and not report.new
    assert f"{FROZEN}: {len(report.copied)} copied" in report.summary()


@pytest.mark.extended
def test_a_run_that_follows_holds_the_same(fine_tuned, frames, tmp_path):
    """Not those of the text encoder that the first run has trained."""
    params = fine_tuned[1].params
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    again, report = partial_restore(abstract, save(tmp_path / "first", params), "params")
    assert not report.copied and not report.new
    jax.tree.map(np.testing.assert_array_equal, again[FROZEN], params[FROZEN])
    # A checkpoint of before durations were held is read, and decodes as it did.
    old = {name: part for name, part in params.items() if name != FROZEN}
    read = restore_params(save(tmp_path / "old", old), "params", abstract_params=abstract)
    np.testing.assert_array_equal(frames(read), frames(old))


@pytest.mark.extended
def test_decoding_a_text_asks_the_durations_that_are_held(tiny, fine_tuned):
    """Without them no token would last, and nothing could be written."""
    params = dict(fine_tuned[1].params)
    silent = jax.tree.map(np.copy, params["duration_model"])
    silent["nonzero"]["bias"] -= 1000.0
    params["duration_model"] = silent
    stream = tiny.batch()["text"]

    @jax.jit
    def decode(params):
        arguments = [stream[key] for key in ("text", "text_length", "language", "language")]
        return decode_text(tiny.model, params, *arguments, max_text_frames=54, max_labels=4)

    assert np.any(decode(params).lengths)
    held = {name: silent if name == "duration_model" else params[name] for name in NETWORKS}
    assert not np.any(decode(params | {FROZEN: held}).lengths)


@pytest.mark.parametrize(
    ("objective", "streams", "held"),
    [
        (SpeechTranslation(), "st mt", True),
        (SpeechTranslation(), "st", False),
        (SpeechTranslation(durations=Learned(continuous=True)), "st mt", False),
        (MaestroPretraining(), "speech paired text mt st", False),
        (MaestroPretraining(), "speech text", True),
        (MaestroPretraining(), "speech st", False),
        (MaestroPretraining(translation_packing="concatenated"), "speech st", True),
        (MaestroPretraining(duration_weight=0.0), "paired text", True),
        (MaestroPretraining(matching=None), "paired text", True),
        (MaestroPretraining(matching=None, durations=FixedRepetition()), "paired text", False),
        (MaestroPretraining(durations=Learned(continuous=True)), "text", False),
    ],
)
def test_who_holds_durations(tiny, objective, streams, held):
    """Whoever trains the text encoder, and has neither pairs nor texts that train durations."""
    model = tiny.model
    if objective.durations.trained_through:
        model = model.clone(resampler=GaussianUpsampling())
    batch = batch_shapes({name: tiny.streams[name] for name in streams.split()})
    params = jax.eval_shape(lambda: objective.init(model, jax.random.key(0), batch))
    assert (FROZEN in params) == held
    if held:
        shapes = jax.tree.map(lambda leaf: leaf.shape, {name: params[name] for name in NETWORKS})
        assert jax.tree.map(lambda leaf: leaf.shape, params[FROZEN]) == shapes
        assert duration_params(params)["text_encoder"] is params[FROZEN]["text_encoder"]
