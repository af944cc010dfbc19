"""Masks, targets and metrics of w2v-BERT and BEST-RQ, and models that do not fit them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.layers.masking import length_mask
from maestro_jax.losses.contrastive import code_counts
from maestro_jax.modules.frontend import stack_frames
from maestro_jax.modules.quantizer import Quantized, RandomProjectionQuantizer
from maestro_jax.objectives.forward import (
    SpeechEncoding,
    encode_speech,
    interleave_rows,
    split_rows,
)
from maestro_jax.objectives.maestro import MaestroPretraining
from maestro_jax.objectives.self_supervised import BestRq, W2vBert, Wav2Vec2, most_frequent
from maestro_jax.training import parameter_trees

BOOKS, CODES = 2, 8


@dataclasses.dataclass
class Recorder:
    """A bound model whose methods record their arguments and return given answers."""

    answers: dict
    model: Any = None

    def __post_init__(self):
        self.given = {}

    def __getattr__(self, name):
        if name not in self.answers:
            return getattr(self.model, name)

        def method(*args, **kwargs):
            self.given[name] = (args, kwargs)
            answer = self.answers[name]
            return answer(*args) if callable(answer) else answer

        return method


@pytest.mark.parametrize(
    ("masks", "share"),
    # 1 - 0.935**10, and 1 - 0.96**10, beside BEST-RQ's own 1 - 0.99**40 = 0.331.
    [(W2vBert(), 0.4894), (BestRq(), 0.3352), (BestRq(mask_probability=0.01, mask_span=40), 0.331)],
)
def test_the_share_that_is_masked(masks, share):
    valid = length_mask(jnp.tile(jnp.array([2000, 1500]), 20), 2000)
    hidden = masks.sample_mask(jax.random.key(0), valid)
    # A row begins without the spans that would have started before it.
    found = float(jnp.sum(hidden) / jnp.sum(valid))
    assert abs(found - share) < 0.015
    assert not np.any(hidden & ~valid)


@pytest.fixture
def bins():
    return np.random.default_rng(0).normal(size=(4, 42, 3)).astype(np.float32)


def recorded_pass(tiny, masks, mel):
    """Untranscribed and paired speech, two rows each, joined."""
    lengths = interleave_rows(jnp.split(jnp.array([42, 30, 42, 0]), 2))
    parts = Recorder(
        {
            "log_mel": (interleave_rows(jnp.split(jnp.asarray(mel), 2)), lengths),
            "frame_mask": lambda mel, lengths: length_mask(-(-lengths // 4), 11),
            "spec_augment": lambda mel, lengths, augment: mel + 1.0,
            "subsample": lambda mel, lengths: (mel[:, ::4], length_mask(-(-lengths // 4), 11)),
            "encode_speech_with_intermediate": lambda features, mask, language: (
                features,
                features,
            ),
        }
    )
    parts.model = tiny.model
    spoken = {
        name: {
            "audio": np.zeros((2, 7000), np.int16),
            "audio_length": np.zeros(2, np.int32),
            "language": np.zeros(2, np.int32),
        }
        for name in ("speech", "paired")
    }
    speech = encode_speech(
        parts,
        spoken,
        jax.random.key(2),
        masking={"speech": masks},
        augment=True,
        deterministic=False,
    )
    return speech, parts.given


def apart(joined):
    """The rows of untranscribed speech, and then those of paired speech."""
    return np.concatenate(split_rows(joined, [2, 2]))


def test_best_rq_hides_log_mel_frames_of_untranscribed_speech_alone(tiny, bins):
    masks = BestRq(mask_probability=0.2, mask_span=2, noise=0.25)
    speech, given = recorded_pass(tiny, masks, bins)
    hidden = np.asarray(speech["speech"].hidden)
    assert hidden.any() and not hidden[0].all() and not hidden[1, 8:].any()
    heard = apart(given["subsample"][0][0])
    changed = (heard != bins).all(axis=-1)
    # Each masked frame of 40 ms is four masked frames of 10 ms; the last stands for two here.
    np.testing.assert_array_equal(changed[:2], np.repeat(hidden, 4, axis=1)[:, :42])
    # Paired speech is augmented instead, on its way to the encoder.
    np.testing.assert_array_equal(heard[2:], bins[2:] + 1.0)
    np.testing.assert_array_equal(heard[:2][~changed[:2]], bins[:2][~changed[:2]])
    noise = heard[:2][changed[:2]]
    assert abs(noise.std() - 0.25) < 4 * 0.25 / np.sqrt(2 * noise.size)
    # The encoder masks nothing more, and the targets are made of what is not masked.
    assert given["encode_speech_with_intermediate"][1]["masked_frames"] is None
    np.testing.assert_array_equal(speech["speech"].mel, bins[:2])
    np.testing.assert_array_equal(speech["paired"].mel, bins[2:])


def test_w2v_bert_hides_what_enters_the_encoder_and_leaves_features_alone(tiny, bins):
    speech, given = recorded_pass(tiny, W2vBert(mask_probability=0.2, mask_span=2), bins)
    np.testing.assert_array_equal(apart(given["subsample"][0][0])[:2], bins[:2])
    np.testing.assert_array_equal(speech["speech"].features, bins[:2, ::4])
    masked = apart(given["encode_speech_with_intermediate"][1]["masked_frames"])
    np.testing.assert_array_equal(masked[:2], speech["speech"].hidden)
    assert masked[:2].any() and not masked[2:].any()


@pytest.mark.extended
@pytest.mark.parametrize("masks", [W2vBert(), BestRq(mask_probability=0.2, mask_span=2)])
def test_codes_are_those_of_the_clean_audio(tiny, masks):
    """What is heard is disturbed; without clean audio in the batch it would be its own target."""
    rng = np.random.default_rng(0)
    clean = rng.normal(0.0, 3000.0, (4, 7000)).astype(np.int16)
    heard = clean + rng.normal(0.0, 2000.0, clean.shape).astype(np.int16)
    frontend = tiny.model.frontend
    projection = RandomProjectionQuantizer(codebooks=BOOKS, codes=CODES, code_features=4)
    frozen = projection.init(jax.random.key(0), jnp.zeros((1, 1, 4 * 16)))

    def codes(mel):
        return projection.apply(frozen, stack_frames(mel, 4))

    def quantize(features, step):
        answer = codes(features)[..., 0]
        shape = (*answer.shape, 8)
        return Quantized(jnp.ones(shape), answer, answer, jnp.full(shape, 1 / 8), jnp.ones(()))

    def mask(mel, lengths):
        return length_mask(-(-lengths // 4), -(-mel.shape[1] // 4))

    answers = {
        "log_mel": lambda audio, lengths: frontend.apply({}, audio, lengths),
        "frame_mask": mask,
        # Features that are log-mel features, so that codes of both kinds are comparable.
        "subsample": lambda mel, lengths: (mel, mask(mel, lengths)),
        "encode_speech_with_intermediate": lambda features, mask, language: (features, features),
        "contrastive_context": lambda intermediate: jnp.ones((4, 11, 8)),
        "code_logits": lambda context: jnp.zeros((4, 11, BOOKS * CODES)),
        "random_codes": codes,
        "quantize": quantize,
    }
    lengths = np.array([7000, 7000, 5000, 0], np.int32)
    clean[2, 5000:] = heard[2, 5000:] = clean[3] = heard[3] = 0
    stream = {"audio_length": lengths, "language": np.zeros(4, np.int32)}
    valid = np.asarray(length_mask(-(-frontend.frame_count(jnp.asarray(lengths)) // 4), 11))

    def targets(audio, **more):
        parts = Recorder(answers)
        parts.model = tiny.model
        batch = {"speech": {"audio": audio, **stream, **more}}
        found = encode_speech(
            parts,
            batch,
            jax.random.key(2),
            masking={"speech": masks},
            augment=False,
            deterministic=False,
        )
        # What enters the encoder is what is heard, whatever targets are made of.
        expected, _ = frontend.apply({}, audio, lengths)
        if not masks.masks_mel:
            np.testing.assert_array_equal(
                parts.given["encode_speech_with_intermediate"][0][0], expected, strict=False
            )
        masks.loss_terms(
            parts,
            found["speech"],
            jnp.zeros((4, 11, 8)),
            0,
            jax.random.key(0),
            deterministic=False,
        )
        made_of = parts.given["quantize" if "quantize" in parts.given else "random_codes"][0][0]
        return np.asarray(codes(made_of))[valid]

    wanted = targets(clean)
    np.testing.assert_array_equal(targets(heard, clean_audio=clean), wanted)
    assert (targets(heard) == wanted).mean() < 0.9


def spoken(nothing, mask, hidden):
    """Speech of which a term sees the masks alone."""
    return SpeechEncoding(
        mel=nothing,
        mel_lengths=jnp.sum(mask, axis=1),
        features=nothing,
        mask=mask,
        hidden=hidden,
        encoded=nothing,
        intermediate=nothing,
    )


@pytest.mark.parametrize(("sure", "told"), [(50.0, 1.0), (0.0, 0.0), (1.0, None)])
def test_what_codes_tell_of_their_frames(sure, told):
    """All of it where each frame is sure of one of eight codes; nothing where none is."""
    logits = sure * jax.nn.one_hot(jnp.arange(8) % CODES, CODES)[None]
    probabilities = jax.nn.softmax(logits)
    ids = jnp.arange(8)[None] % CODES
    quantized = Quantized(jnp.ones((1, 8, 4)), ids, ids, probabilities, jnp.ones(()))
    parts = Recorder(
        {
            "quantize": lambda features, step: quantized,
            "contrastive_context": jnp.ones((1, 8, 4)),
            "code_logits": jnp.zeros((1, 8, CODES)),
        }
    )
    mask = jnp.ones((1, 8), bool)
    speech = spoken(jnp.zeros((1, 8, 1)), mask=mask, hidden=mask)
    _, metrics = W2vBert().loss_terms(
        parts, speech, speech.encoded, 0, jax.random.key(0), deterministic=False
    )
    if told is None:
        # Mutual information by its definition, of eight equally frequent frames.
        p = np.asarray(probabilities[0], np.float64)
        told = (p * np.log(p / p.mean(0))).sum(-1).mean() / np.log(CODES)
    total, frames = metrics["speech/code_information"]
    assert frames == 8
    np.testing.assert_allclose(total / frames, told, atol=1e-5)
    np.testing.assert_allclose(metrics["speech/masked_chance"][0], 1 / CODES, rtol=1e-6)
    np.testing.assert_allclose(metrics["speech/contrastive_chance"], (1.0, 8), rtol=1e-6)


def test_best_rq_averages_over_codebooks():
    rng = np.random.default_rng(0)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    hidden = np.array([[0, 1, 1, 0], [0, 1, 0, 0]], bool)
    ids = rng.integers(0, CODES, (2, 4, BOOKS))
    logits = rng.normal(size=(2, 4, BOOKS * CODES)).astype(np.float32)
    ids[0, 1, 0] = logits[0, 1, :CODES].argmax()
    parts = Recorder({"random_codes": jnp.asarray(ids), "code_logits": jnp.asarray(logits)})
    nothing = jnp.zeros((2, 4, 1))
    speech = spoken(nothing, mask=jnp.asarray(mask), hidden=jnp.asarray(hidden))
    terms, metrics = BestRq().loss_terms(
        parts, speech, nothing, 0, jax.random.key(0), deterministic=False
    )

    total, correct = 0.0, 0.0
    for b, t in zip(*np.nonzero(hidden), strict=True):
        for k in range(BOOKS):
            row = logits[b, t, k * CODES : (k + 1) * CODES].astype(np.float64)
            total += (np.log(np.exp(row).sum()) - row[ids[b, t, k]]) / BOOKS
            correct += (row.argmax() == ids[b, t, k]) / BOOKS
    assert set(terms) == {"masked_prediction"}
    np.testing.assert_allclose(terms["masked_prediction"], (total, 3), rtol=1e-5)
    np.testing.assert_allclose(metrics["speech/masked_accuracy"], (correct, 3), rtol=1e-6)
    np.testing.assert_allclose(metrics["speech/masked_fraction"], (3, 6))
    perplexities, usage = [], []
    for k in range(BOOKS):
        shares = np.bincount(ids[mask][:, k], minlength=CODES) / mask.sum()
        perplexities.append(np.exp(-sum(p * np.log(p) for p in shares if p)))
        usage.append((shares > 0).mean())
    np.testing.assert_allclose(
        metrics["speech/code_perplexity"][0], np.mean(perplexities), rtol=1e-5
    )
    np.testing.assert_allclose(metrics["speech/code_usage"][0], np.mean(usage), rtol=1e-6)


def test_nothing_to_hear_is_finite():
    mask = jnp.zeros((1, 2), bool)
    parts = Recorder(
        {
            "random_codes": jnp.zeros((1, 2, BOOKS), jnp.int32),
            "code_logits": jnp.zeros((1, 2, BOOKS * CODES)),
        }
    )
    nothing = jnp.zeros((1, 2, 1))
    speech = spoken(nothing, mask=mask, hidden=mask)
    terms, metrics = BestRq().loss_terms(
        parts, speech, nothing, 0, jax.random.key(0), deterministic=False
    )
    assert tuple(map(float, terms["masked_prediction"])) == (0.0, 0.0)
    assert all(np.isfinite(pair).all() for pair in metrics.values())


def test_code_counts():
    ids = np.array([[0, 2, 2], [1, 1, 2]])
    mask = np.array([[1, 1, 1], [1, 0, 0]], bool)
    np.testing.assert_array_equal(code_counts(jnp.asarray(ids), mask, 4), [[1, 1, 2, 0]])
    np.testing.assert_allclose(most_frequent(jnp.asarray([[1, 1, 2, 0], [0, 0, 0, 0]])), 0.25)
    both = jnp.stack([ids, 3 - ids], axis=-1)
    np.testing.assert_array_equal(code_counts(both, mask, 4), [[1, 1, 2, 0], [0, 2, 1, 1]])


@pytest.fixture(scope="module")
def best_rq_model(tiny):
    return tiny.model.clone(
        quantizer=RandomProjectionQuantizer(codebooks=BOOKS, codes=CODES, code_features=4),
        shared_encoder=tiny.model.shared_encoder.clone(codebooks=BOOKS),
    )


def test_a_whole_step_with_best_rq(tiny, best_rq_model):
    """The shapes fit; the frozen parameters are part of the state, and unused heads are not."""
    objective = tiny.objective(dict.fromkeys(tiny.weights, 1.0), self_supervised=BestRq())
    init = jax.eval_shape(lambda: objective.init(best_rq_model, jax.random.key(0), tiny.batch()))
    params = parameter_trees.unbox(init)
    shapes = {name: leaf.shape for name, leaf in parameter_trees.named_leaves(params)}
    assert shapes["quantizer/frozen_projections"] == (BOOKS, 4 * 16, 4)
    assert shapes["quantizer/frozen_codebooks"] == (BOOKS, CODES, 4)
    assert shapes["shared_encoder/code_head/kernel"][1] == BOOKS * CODES
    assert not any("contrastive" in name for name in shapes)

    def loss(params):
        return objective.loss(
            best_rq_model, params, params, tiny.batch(), rng=jax.random.key(0), step=0
        )

    _, metrics = jax.eval_shape(loss, params)
    assert "loss/masked_prediction" in metrics and "loss/contrastive" not in metrics


def test_speech_alone_leaves_pairs_and_texts_of_a_run_unread(tiny):
    """Not even a copy of the durations is made, which texts without pairs would call for."""
    objective = MaestroPretraining(streams=("speech",), self_supervised=Wav2Vec2(distractors=5))
    batch = {name: tiny.batch()[name] for name in ("speech", "text", "mt")}
    assert objective.streams == ("speech",)
    boxed = jax.eval_shape(lambda: objective.init(tiny.model, jax.random.key(0), batch))
    params = parameter_trees.unbox(boxed)
    assert "frozen_durations" not in params

    def terms(params):
        return objective.loss_terms(tiny.model, params, None, batch, rng=jax.random.key(0), step=0)

    found, metrics = jax.eval_shape(terms, params)
    assert set(found) == {"contrastive", "diversity"} == set(objective.term_weights)
    assert {name.split("/")[0] for name in metrics} == {"speech"}
    assert not any("masked_accuracy" in name for name in metrics)
    with pytest.raises(UserError, match="('speach',)"):
        MaestroPretraining(streams=("speach",))


def test_objective_and_quantizer_must_go_together(tiny, best_rq_model):
    with pytest.raises(UserError, match="BestRq, which needs a RandomProjectionQuantizer.*W2vBert"):
        BestRq().check(tiny.model)
    with pytest.raises(UserError, match="W2vBert, which needs a GumbelQuantizer.*BestRq"):
        W2vBert().check(best_rq_model)
    # The training loop asks for the abstract state before it compiles anything.
    objective = tiny.objective(dict.fromkeys(tiny.weights, 1.0), self_supervised=BestRq())
    with pytest.raises(UserError, match="needs a RandomProjectionQuantizer"):
        jax.eval_shape(lambda: objective.init(tiny.model, jax.random.key(0), tiny.batch()))


def test_heads_must_have_the_sizes_of_the_codes(tiny, best_rq_model):
    W2vBert().check(tiny.model)
    BestRq().check(best_rq_model)
    with pytest.raises(UserError, match="1 x 8 codes.*2 x 8"):
        BestRq().check(best_rq_model.clone(shared_encoder=tiny.model.shared_encoder))
    with pytest.raises(UserError, match="1 x 5 codes.*1 x 8"):
        shared = tiny.model.shared_encoder.clone(codes=5)
        W2vBert().check(tiny.model.clone(shared_encoder=shared))
    with pytest.raises(UserError, match="code_features is 3 and .*code_features 8"):
        encoder = tiny.model.speech_encoder.clone(code_features=3)
        W2vBert().check(tiny.model.clone(speech_encoder=encoder))


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (W2vBert, {"mask_probability": 1.5}),
        (W2vBert, {"mask_span": 0}),
        (W2vBert, {"distractors": 0}),
        (W2vBert, {"temperature": 0.0}),
        (BestRq, {"mask_span": 0}),
        (BestRq, {"noise": -1.0}),
    ],
)
def test_numbers_that_mean_nothing_are_refused(settings, values):
    (value,) = values.values()
    with pytest.raises(UserError, match=str(value)):
        settings(**values)
