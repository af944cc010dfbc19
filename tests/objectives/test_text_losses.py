"""What matching counts, and what each choice about the text side trains in the whole objective."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.losses.matching import matching_loss
from maestro_jax.modules.duration import SubwordDurations
from maestro_jax.modules.resampler import GaussianUpsampling, frame_index
from maestro_jax.objectives.duration_sources import (
    FixedRepetition,
    Learned,
    RandomRepetition,
    SubwordGaussian,
)
from maestro_jax.objectives.maestro import MaestroPretraining
from maestro_jax.objectives.text_losses import Matching
from maestro_jax.training import parameter_trees

# Two leading blanks, two labels on one frame (the last owns it); one label late; no label; absent.
EMISSIONS = np.array([[2, 3, 3, 6], [4, 0, 0, 0], [0] * 4, [0] * 4], np.int32)
DURATIONS = np.array([[3, 0, 3, 2], [7, 0, 0, 0], [0] * 4, [0] * 4], np.int32)
FRAMES = np.array([8, 7, 5, 0])


@pytest.mark.parametrize("frames", ["all", "labelled", "emitting"])
@pytest.mark.parametrize("limit", [None, 2])
def test_the_frames_that_count(frames, limit):
    index = frame_index(jnp.array(DURATIONS), 8)
    mask = np.arange(8) < FRAMES[:, None]
    found = Matching(frames=frames, token_frames=limit).matched_frames(
        index, jnp.array(EMISSIONS), jnp.array(mask)
    )
    expected = np.zeros((4, 8), bool)
    for b, labels in enumerate((4, 1, 0, 0)):
        for t in range(FRAMES[b]):
            out = [u for u in range(labels) if EMISSIONS[b, u] <= t]
            if not labels:
                continue
            since = t - EMISSIONS[b, out[-1]] if out else -1
            expected[b, t] = {"all": True, "labelled": bool(out), "emitting": since == 0}[frames]
            if limit is not None and since >= limit:
                expected[b, t] = False
    np.testing.assert_array_equal(found, expected)


def test_frames_of_the_same_piece_are_no_negatives_unless_asked_for():
    index = frame_index(jnp.array([[1, 2, 1, 2]]), 6)
    tokens = jnp.array([[7, 8, 7, 9]])
    speech, text = np.random.default_rng(0).normal(size=(2, 1, 6, 4)).astype(np.float32)
    counted = jnp.ones((1, 6), bool)
    labels = jnp.array([[7, 8, 8, 7, 9, 9]])
    for asked, labels_given in ((False, labels), (True, None)):
        matching = Matching(form="infonce", contrast_equal_tokens=asked, temperature=0.3)
        found = matching.loss(speech, text, tokens, index, counted)
        expected = matching_loss(
            speech, text, counted, form="infonce", labels=labels_given, temperature=0.3
        )
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "setting",
    [
        {"form": "l3"},
        {"stop_gradient": "both"},
        {"frames": "some"},
        {"negatives": "corpus"},
        {"temperature": 0.0},
        {"token_frames": 0},
    ],
)
def test_unknown_choices_are_refused(setting):
    with pytest.raises(UserError, match=f"{next(iter(setting))} is"):
        Matching(**setting)
    with pytest.raises(UserError, match="duration_form is"):
        MaestroPretraining(duration_form="l3")


# Choices that go together, in one program: compiling takes most of the time.
CHOSEN = MaestroPretraining(
    max_text_frames=15,
    durations=Learned(continuous=True, jitter=0.2),
    matching=Matching(
        form="infonce",
        stop_gradient="text",
        negatives="batch",
        frames="labelled",
        token_frames=5,
    ),
)
DRAWN = MaestroPretraining(max_text_frames=15, durations=SubwordGaussian())


@pytest.fixture(scope="module")
def model(tiny):
    gaussians = SubwordDurations(vocab_size=tiny.model.vocab_size)
    return tiny.model.clone(resampler=GaussianUpsampling(), subword_durations=gaussians)


@pytest.fixture(scope="module")
def all_params(tiny, model):
    """Trained and averaged parameters, with those that the tiny model lacks."""
    rng = np.random.default_rng(5)
    state = tiny.state()

    def extended(params):
        params = copy.copy(params)
        width = params["resampler"]["position"]["kernel"].shape[1]
        params["resampler"] = {
            **params["resampler"],
            "range": {"kernel": 0.1 * rng.normal(size=(width + 1, 1)), "bias": np.zeros(1)},
        }
        params["subword_durations"] = {
            "common": 0.1 * rng.normal(size=2),
            "own": 0.3 * rng.normal(size=(model.vocab_size, 2)),
        }
        return jax.tree.map(jnp.float32, params)

    return extended(state.params), extended(state.ema_params)


def program_of(objective, tiny, model, params, ema_params):
    """From a batch and a term's name to all terms, metrics, and the gradient of that term."""

    def compute(params, ema_params, batch, cotangents):
        def terms(params):
            found, metrics = objective.loss_terms(
                model, params, ema_params, batch, rng=tiny.step_rng(), step=tiny.later
            )
            metrics |= {f"loss/{name}": term for name, term in found.items()}
            return {name: total for name, (total, _) in found.items()}, metrics

        values, backward, metrics = jax.vjp(terms, params, has_aux=True)
        return values, metrics, backward({name: cotangents[name] for name in values})[0]

    compiled = jax.jit(compute)

    def of(batch, term):
        wanted = {name: jnp.float32(name == term) for name in objective.term_weights}
        return compiled(params, ema_params, batch, wanted)

    return of


def trained(gradients):
    return {
        name for name, leaf in parameter_trees.named_leaves(gradients) if np.abs(leaf).max() > 1e-8
    }


def modules(names):
    return {name.split("/")[0] for name in names}


@pytest.fixture(scope="module")
def chosen(tiny, model, all_params):
    return program_of(CHOSEN, tiny, model, *all_params)


def two_streams(tiny, seed=0):
    return {name: tiny.batch(seed)[name] for name in ("paired", "text")}


@pytest.mark.slow
def test_text_trains_the_duration_model_through_durations_that_are_not_rounded(tiny, chosen):
    _, _, gradients = chosen(two_streams(tiny), "aligned_masked_lm")
    names = trained(gradients)
    assert modules(names) == {
        "text_encoder",
        "duration_model",
        "resampler",
        "refiner",
        "shared_encoder",
        "decoder",
    }
    assert {"resampler/range/kernel", "duration_model/frames/kernel"} <= names
    # Whether a token lasts at all is a decision.
    assert not any(name.startswith("duration_model/nonzero") for name in names)


@pytest.mark.extended
def test_matching_against_text_trains_the_speech_side(tiny, chosen):
    _, _, gradients = chosen(two_streams(tiny), "matching")
    assert modules(trained(gradients)) == {"subsampling", "speech_encoder"}


def edge_cases(tiny):
    """Batches with little in them."""
    for name, audio in (("silence", 0), ("text longer than speech", None), ("no speech", None)):
        batch = two_streams(tiny)
        paired = dict(batch["paired"])
        if audio == 0:
            paired["audio"] = np.zeros_like(paired["audio"])
        else:
            samples = 1000 if name == "text longer than speech" else 0
            paired["audio_length"] = np.full_like(paired["audio_length"], samples)
        yield name, {**batch, "paired": paired}
    for stream in ("paired", "text"):
        batch = two_streams(tiny)
        empty = {
            feature: np.zeros_like(values) if feature.endswith("_length") else values
            for feature, values in batch[stream].items()
        }
        yield f"no {stream}", {**batch, stream: empty}


@pytest.mark.extended
def test_little_in_the_batch_is_finite(tiny, chosen):
    for name, batch in edge_cases(tiny):
        for term in ("aligned_masked_lm", "matching"):
            values, metrics, gradients = chosen(batch, term)
            for leaf in jax.tree.leaves((values, metrics, gradients)):
                assert np.all(np.isfinite(leaf)), (name, term)
        if name in ("no paired", "no speech"):
            assert metrics["loss/matching"] == (0.0, 0.0)
        if name == "no text":
            assert metrics["loss/aligned_masked_lm"] == (0.0, 0.0)


def test_likelihood_of_alignments_trains_the_gaussians_alone(tiny, model, all_params):
    """The paired stream alone: nothing is drawn, but the Gaussians are fitted."""

    def term(params, batch):
        terms, _ = DRAWN.loss_terms(
            model, params, all_params[1], batch, rng=tiny.step_rng(), step=tiny.later
        )
        return terms["subword_duration"]

    batch = {"paired": tiny.batch()["paired"]}
    fitted = jax.jit(jax.value_and_grad(term, has_aux=True))
    (_, count), gradients = fitted(all_params[0], batch)
    assert trained(gradients) == {"subword_durations/common", "subword_durations/own"}
    # All labels but the first and the last of each text can count, if they last.
    inner = np.maximum(batch["paired"]["text_length"] - 2, 0).sum()
    assert 0 < float(count) <= inner
    heard = {
        token
        for row, length in zip(batch["paired"]["text"], batch["paired"]["text_length"], strict=True)
        for token in row[1 : length - 1]
    }
    own = np.any(np.asarray(gradients["subword_durations"]["own"]), axis=1)
    assert set(np.flatnonzero(own)) <= heard


@pytest.mark.parametrize(
    "source", [FixedRepetition(), RandomRepetition(), SubwordGaussian()], ids=repr
)
def test_every_source_traces_under_the_whole_objective(tiny, model, all_params, source):
    objective = MaestroPretraining(max_text_frames=15, durations=source)
    _, metrics = jax.eval_shape(
        lambda params: objective.loss(
            model, params, all_params[1], tiny.batch(), rng=tiny.step_rng(), step=0
        ),
        all_params[0],
    )
    assert ("loss/subword_duration" in metrics) == isinstance(source, SubwordGaussian)
    assert "text/frames_per_token" in metrics


def test_a_model_that_lacks_what_a_source_needs_is_refused_before_it_is_built(tiny):
    for source in (Learned(continuous=True), SubwordGaussian()):
        with pytest.raises(UserError, match="set Maestro"):
            MaestroPretraining(durations=source).init(tiny.model, jax.random.key(0), {})
