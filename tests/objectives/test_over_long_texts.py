"""Nothing is learned from a text of more frames than allowed, whatever its durations come from."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.modules.resampler import GaussianUpsampling, Resampler
from maestro_jax.objectives.forward import (
    TextEncoding,
    UpsampledText,
    default_max_text_frames,
    upsample,
    upsampling_metrics,
)
from maestro_jax.objectives.maestro import MaestroPretraining
from maestro_jax.objectives.text_losses import TextMasks

# Rows that fit with a frame to spare, fit exactly, are a frame too long, much too long, absent.
DURATIONS = np.array([[2, 3, 0], [2, 1, 3], [4, 0, 3], [9, 9, 9], [0, 0, 0]], np.int32)
MAX_FRAMES = 6
FITS = [True, True, False, False, True]


@pytest.mark.extended
@pytest.mark.parametrize(("stream", "weight"), [("text", "text"), ("mt", "mt")])
def test_the_loss_is_that_of_the_batch_without_it(tiny, stream, weight):
    """Three frames a token and room for 15: a text of six tokens is as good as absent."""
    state = tiny.state()
    state = state.replace(ema_params=tiny.with_token_frames(state.ema_params, 3.0))
    batch = tiny.batch()
    batch[stream]["text_length"] = lengths = np.array([6, 5, 3, 6, 4, 5, 6, 1], np.int32)
    gradients, metrics = tiny.run(state, batch, **{weight: 1.0})
    fewer = tiny.batch()
    fewer[stream]["text_length"] = np.where(lengths == 6, 0, lengths).astype(np.int32)
    expected, reference = tiny.run(state, fewer, **{weight: 1.0})
    name = {"text": "loss/aligned_masked_lm", "mt": "loss/mt"}[stream]
    written = batch[stream]["text_length" if stream == "text" else "translation_length"]
    assert metrics[name][1] == written[lengths < 6].sum()
    assert metrics[name] == pytest.approx(reference[name], rel=1e-5)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[key], rtol=1e-4, atol=1e-7, err_msg=key)
    assert metrics[f"{stream}/too_long_fraction"] == (3.0, 8.0)
    assert metrics[f"{stream}/overflow_frames"] == (9.0, 1.0)


@pytest.mark.extended
def test_of_a_batch_of_nothing_else_nothing_is_learned(tiny):
    state = tiny.state()
    state = state.replace(ema_params=tiny.with_token_frames(state.ema_params, 8.0))
    gradients, metrics = tiny.run(state, tiny.batch(), text=1.0)
    assert metrics["loss/aligned_masked_lm"] == (0.0, 0.0)
    assert not any(np.any(gradient) for gradient in gradients.values())


@pytest.mark.parametrize(
    ("resampler", "dtype"),
    [
        (Resampler(), np.int32),
        (GaussianUpsampling(fixed_range=0.5), np.int32),
        (GaussianUpsampling(fixed_range=0.5), np.float32),
    ],
)
def test_only_what_fits_whole_has_frames(resampler, dtype):
    """Every source of durations, and both ways to upsample, come through here."""
    durations = DURATIONS.astype(dtype)
    if dtype == np.float32:
        durations = durations + 0.2 * (durations > 0)
        durations[1] = [2.2, 1.0, 2.8]

    class Model:
        def upsample(self, embedded, durations, frames, *, deterministic):
            (refined, index), _ = resampler.init_with_output(
                {"params": jax.random.key(0)}, embedded, durations, frames
            )
            return 1.0 + refined, index

    texts = TextEncoding(jnp.asarray(durations > 0), jnp.ones((5, 3, 4)), jnp.asarray(durations))
    found = upsample(Model(), {"text": texts}, {"text": MAX_FRAMES}, deterministic=True)["text"]
    np.testing.assert_array_equal(found.fits, FITS)
    expected = np.where(FITS, DURATIONS.sum(axis=1), 0)
    np.testing.assert_array_equal(found.index.lengths, expected)
    np.testing.assert_array_equal(found.index.mask.sum(axis=1), expected)
    np.testing.assert_array_equal(np.any(found.refined, axis=-1), found.index.mask)
    metrics = upsampling_metrics("text", texts, found)
    assert [float(x) for x in metrics["text/too_long_fraction"]] == [2.0, 4.0]


def _upsampled(lengths, fits):
    """Texts of so many frames, of which some did not fit."""
    lengths = np.where(fits, lengths, 0)
    mask = np.arange(4) < lengths[:, None]
    index = types.SimpleNamespace(mask=jnp.asarray(mask))
    return UpsampledText(jnp.asarray(mask[:, :, None], jnp.float32), index, jnp.asarray(fits))


def test_concatenated_texts_must_both_be_whole():
    """Source and translation side by side, speech and translation: each must be there whole."""
    fits = {
        "mt": np.array([True, False, True, False]),
        "mt_translation": np.array([True, True, False, False]),
        "st_translation": np.array([True, False, True, True]),
    }
    lengths = {
        "mt": np.array([3, 2, 4, 1]),
        "mt_translation": np.array([2, 3, 1, 4]),
        "st_translation": np.array([4, 2, 1, 0]),
    }
    ids = np.zeros(4, np.int32)
    text = {"text": np.ones((4, 3), np.int32), "text_length": np.full(4, 3)}
    common = {
        "translation": np.ones((4, 3), np.int32),
        "translation_length": np.full(4, 3),
        "language": ids,
        "target_language": ids,
    }
    heard = np.array([4, 3, 2, 0])
    mask = jnp.asarray(np.arange(4) < heard[:, None])
    speech = types.SimpleNamespace(encoded=mask[:, :, None].astype(jnp.float32), mask=mask)
    objective = MaestroPretraining(
        translation_packing="concatenated",
        text_masks=TextMasks(probability=0.0, feature_masks=0),
    )
    frames, _ = objective._decoder_task(
        {"mt": text | common, "st": common},
        {"st": speech},
        {name: _upsampled(lengths[name], fits[name]) for name in fits},
        jax.random.key(0),
    )
    np.testing.assert_array_equal(frames["mt"].mask.sum(axis=1), [5, 0, 0, 0])
    np.testing.assert_array_equal(frames["st"].mask.sum(axis=1), [8, 0, 3, 0])
    for each in frames.values():
        np.testing.assert_array_equal(each.values[..., 0], each.mask)


def test_the_default_follows_from_the_longest_pairs(tiny):
    """9600 samples: 1 + (9600 - 400) // 160 = 58 frames of 10 ms, halved twice, rounded up."""
    assert default_max_text_frames(tiny.model, {"speech": 1600, "st": 3200, "paired": 9600}) == 15
    assert default_max_text_frames(tiny.model, {"speech": 1600, "st": 9600}) == 15
    assert default_max_text_frames(tiny.model, {"speech": 9600}) == 15
    with pytest.raises(UserError, match="MAX_TEXT_FRAMES"):
        default_max_text_frames(tiny.model, {})
