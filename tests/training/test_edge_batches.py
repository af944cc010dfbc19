"""Steps of the shipped model on batches that lack something: everything stays finite.

Model and objective are those of ``gin/models/tiny.gin`` and ``gin/objectives/maestro.gin``; only
the batch is small. One program serves for all batches, as in a run.
"""

from __future__ import annotations

import copy

import jax
import numpy as np
import pytest

from maestro_jax.batches import synthetic_batch
from maestro_jax.gin_utils import gin_config
from maestro_jax.training import parameter_trees

pytestmark = pytest.mark.extended
FILES = ["runs/pretrain.gin", "models/tiny.gin", "objectives/maestro.gin", "data/minivox_tiny.gin"]
STREAMS = ("speech", "paired", "text", "mt", "st")
TOKENS = 9
# Half a second: 48 log-mel frames, 12 encoder frames.
SAMPLES = 8000
BINDINGS = {
    "STEPS": "10",
    "AUDIO_SAMPLES": str(SAMPLES),
    "TOKENS": str(TOKENS),
    "MAX_TEXT_FRAMES": "12",
    **{f"{stream.upper()}_BATCH": "2" for stream in STREAMS},
}


@pytest.fixture(scope="module")
def run():
    return gin_config.parse_and_build(FILES, BINDINGS)


@pytest.fixture(scope="module")
def step(run):
    """From a batch to the loss, the metrics and the gradients by name."""
    abstract = parameter_trees.unbox(run.abstract_state().params)
    rng = np.random.default_rng(0)

    def draw(name, leaf):
        values = rng.normal(size=leaf.shape) * np.prod(leaf.shape[:-1], initial=1) ** -0.5
        return (1.0 + 0.1 * values if name.endswith("scale") else values).astype(leaf.dtype)

    params = parameter_trees.map_named(draw, abstract)

    def loss(params, batch):
        return run.objective.loss(
            run.model, params, params, batch, rng=jax.random.key(1), step=5, train=True
        )

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def call(batch):
        (value, metrics), gradients = jax.device_get(compiled(params, batch))
        return value, metrics, dict(parameter_trees.named_leaves(gradients))

    return call


@pytest.fixture
def batch(run):
    """All streams, full: every length is the longest that there is room for."""
    batch = synthetic_batch(run.streams, 0, run.model.vocab_size)
    for features in batch.values():
        for name in [name for name in features if name.endswith("_length")]:
            longest = features[name.removesuffix("_length")].shape[1]
            features[name] = np.full_like(features[name], longest)
    return copy.deepcopy(batch)


def empty(batch, *streams):
    for stream in streams:
        for name, values in batch[stream].items():
            batch[stream][name] = np.zeros_like(values)


def assert_finite(result):
    value, metrics, gradients = result
    assert np.isfinite(value)
    bad = [name for name, pair in metrics.items() if not np.all(np.isfinite(pair))]
    assert bad == []
    assert [name for name, leaf in gradients.items() if not np.all(np.isfinite(leaf))] == []


def test_a_full_batch_trains_every_parameter(step, batch):
    """Else the batches below could be finite because nothing is computed."""
    value, metrics, gradients = step(batch)
    assert_finite((value, metrics, gradients))
    assert value > 1.0
    assert [name for name, leaf in gradients.items() if not np.any(leaf)] == []


@pytest.mark.parametrize("stream", STREAMS)
def test_one_stream_empty(step, batch, stream):
    empty(batch, stream)
    value, metrics, gradients = step(batch)
    assert_finite((value, metrics, gradients))
    assert value > 0.0
    assert metrics[f"{stream}/examples"][0] == 0.0
    assert all(metrics[f"{other}/examples"][0] == 2.0 for other in STREAMS if other != stream)


def test_all_streams_empty(step, batch):
    empty(batch, *STREAMS)
    value, metrics, gradients = step(batch)
    assert_finite((value, metrics, gradients))
    assert value == 0.0
    assert [name for name, leaf in gradients.items() if np.any(leaf)] == []


def test_texts_longer_than_their_speech(step, batch):
    for stream in ("paired", "st"):
        # A quarter of a second is six frames for nine tokens, in the first row alone.
        batch[stream]["audio_length"][0] = SAMPLES // 2
    batch["mt"]["text_length"][:] = 1
    result = step(batch)
    assert_finite(result)
    assert result[1]["paired/examples"][0] == 2.0


@pytest.mark.parametrize("samples", [0, 100, 400])
def test_speech_of_no_frame_or_one_under_a_text(step, batch, samples):
    """A window of log-mel takes 400 samples."""
    for stream in ("speech", "paired", "st"):
        batch[stream]["audio_length"][:] = samples
    assert_finite(step(batch))


def test_silence(step, batch):
    for stream in ("speech", "paired", "st"):
        batch[stream]["audio"][:] = 0
    result = step(batch)
    assert_finite(result)
    assert result[1]["speech/examples"][0] == 2.0


def test_a_row_of_silence_and_an_empty_row_beside_full_ones(step, batch):
    for stream in ("speech", "paired", "st"):
        batch[stream]["audio"][0] = 0
    for features in batch.values():
        for name, values in features.items():
            if name.endswith("_length"):
                values[1] = 0
    assert_finite(step(batch))
