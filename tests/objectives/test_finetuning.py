"""Fine-tuning objectives: recognition against a lattice summed in float64, translation's parts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.layers.masking import length_mask
from maestro_jax.objectives.speech_recognition import SpeechRecognition
from maestro_jax.objectives.speech_translation import SpeechTranslation
from maestro_jax.training import parameter_trees


@pytest.fixture(scope="module")
def params(tiny):
    return tiny.state().params


def lattice_nats(logits, labels, frames):
    """-log P by the forward recursion, float64; `logits` is `[frames, labels + 1, vocab]`."""
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    alpha = np.full((frames + 1, len(labels) + 1), -np.inf)
    alpha[0, 0] = 0.0
    for t in range(frames):
        for u in range(len(labels) + 1):
            if u:
                emitted = alpha[t, u - 1] + log_p[t, u - 1, labels[u - 1]]
                alpha[t, u] = np.logaddexp(alpha[t, u], emitted)
            alpha[t + 1, u] = alpha[t, u] + log_p[t, u, 0]
    return -alpha[frames, len(labels)]


def gradients_of(tiny, objective, params, batch, **kwargs):
    @jax.jit
    def compute(params):
        return jax.value_and_grad(
            lambda p: objective.loss(
                tiny.model, p, None, batch, rng=tiny.step_rng(), step=0, **kwargs
            ),
            has_aux=True,
        )(params)

    (loss, metrics), gradients = compute(params)
    largest: dict[str, float] = {}
    for name, leaf in parameter_trees.named_leaves(gradients):
        module = name.split("/")[0]
        largest[module] = max(largest.get(module, 0.0), float(np.abs(leaf).max()))
        assert np.isfinite(leaf).all(), name
    return float(loss), metrics, {module for module, size in largest.items() if size > 0.0}


class TestSpeechRecognition:
    def test_loss_is_nats_a_label_of_the_transcript(self, tiny, params):
        batch = tiny.batch()
        paired = batch["paired"]
        paired["audio_length"][0] = 0
        paired["text_length"][1] = 0
        paired["audio_length"][2] = 2000
        loss, metrics, trained = gradients_of(
            tiny, SpeechRecognition(), params, {"paired": paired}, train=False
        )
        assert trained == {"subsampling", "speech_encoder", "shared_encoder", "decoder"}
        assert metrics["paired/examples"] == (7.0, 1.0)

        call = functools.partial(tiny.model.apply, {"params": params})

        @jax.jit
        def lattices():
            features, mask = call(paired["audio"], paired["audio_length"], method="features")
            encoded = call(features, mask, method="encode_speech")
            context = call(encoded, mask, method="encode_shared")
            state = call(len(mask), method="decoder_state")
            shifted = jnp.pad(paired["text"], ((0, 0), (1, 0)))
            predicted, _ = call(shifted, state, method="prediction_step")
            frames = call(context, method="project_frames")
            return call(frames[:, :, None], predicted[:, None], method="joint"), mask

        logits, mask = lattices()
        nats, labels = 0.0, 0
        for row in range(1, 8):
            length = paired["text_length"][row]
            text = paired["text"][row, :length]
            nats += lattice_nats(logits[row], text, int(mask[row].sum()))
            labels += length
        np.testing.assert_allclose(metrics["loss/transducer"], (nats, labels), rtol=1e-5)
        assert loss == pytest.approx(nats / labels, rel=1e-5)

    def test_streams(self):
        assert SpeechRecognition().streams == ("paired",)
        assert SpeechRecognition().active_streams(0) == ("paired",)


class TestSpeechTranslation:
    def test_speech_and_text_are_translated_together(self, tiny):
        """Equal weights of two means, and no other term."""
        objective = SpeechTranslation(mt_weight=0.5)
        state = tiny.state()
        compute = jax.jit(
            lambda ema_params, batch: objective.loss(
                tiny.model, state.params, ema_params, batch, rng=tiny.step_rng(), step=0
            )[1],
        )
        metrics = compute(state.ema_params, tiny.batch())
        assert {name for name in metrics if name.startswith("loss")} == {
            "loss",
            "loss/st",
            "loss/mt",
        }
        means = {name: float(total) / float(count) for name, (total, count) in metrics.items()}
        assert means["loss"] == pytest.approx(means["loss/st"] + 0.5 * means["loss/mt"], rel=1e-6)
        # Of a source that its room cuts off, the translation is no target.
        batch, lengths = tiny.batch(), np.array([6, 5, 3, 6, 4, 5, 6, 1], np.int32)
        batch["mt"]["text_length"] = lengths
        metrics = compute(tiny.with_token_frames(state.ema_params, 3.0), batch)
        assert metrics["loss/mt"][1] == batch["mt"]["translation_length"][lengths < 6].sum()
        assert metrics["mt/too_long_fraction"] == (3.0, 8.0)

    def test_speech_alone_needs_no_averaged_parameters(self, tiny, params):
        """A run that keeps no average can be fine-tuned; the text side is left alone."""
        objective = SpeechTranslation(max_text_frames=tiny.max_text_frames)
        _, _, trained = gradients_of(tiny, objective, params, {"st": tiny.batch()["st"]})
        assert trained == {"subsampling", "speech_encoder", "shared_encoder", "decoder"}

    def test_streams(self):
        assert set(SpeechTranslation().active_streams(0)) == {"st", "mt"}


def test_length_mask_of_a_subsampled_row_matches_the_samples(tiny, params):
    """2000 samples are 11 frames of 10 ms, 6 after one convolution, 3 after both."""
    paired = tiny.batch()["paired"]
    _, mask = tiny.model.apply(
        {"params": params}, paired["audio"], np.full(8, 2000, np.int32), method="features"
    )
    np.testing.assert_array_equal(mask, length_mask(np.full(8, 3), mask.shape[1]))
