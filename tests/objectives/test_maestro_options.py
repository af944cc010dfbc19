"""The choices that the paper leaves open: packing of translations, paired text, weights."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.objectives.base import Controls
from maestro_jax.objectives.curriculum import Schedule
from maestro_jax.objectives.maestro import MaestroPretraining
from maestro_jax.objectives.self_supervised import W2vBert
from maestro_jax.objectives.text_losses import TextMasks
from maestro_jax.objectives.weighting import GradientNormWeighting, UncertaintyWeighting
from maestro_jax.training import parameter_trees

# Everything that is not the default, in one program: compiling takes most of the time.
CONCATENATED = MaestroPretraining(
    max_text_frames=15,
    self_supervised=W2vBert(distractors=5),
    text_masks=TextMasks(probability=0.1, span=3, on_paired=True),
    translation_packing="concatenated",
    paired_text_weight=0.5,
    mt_weight=Schedule(points=((0, 0.0), (100, 2.0))),
    weighting=UncertaintyWeighting(),
)


@pytest.fixture(scope="module")
def stepped(tiny):
    """From a batch and the name of a term, or `loss`: all values, metrics, and its gradient."""
    state = tiny.state()
    log_variance = {name: jnp.float32(0.1 * i) for i, name in enumerate(CONCATENATED.term_weights)}
    params = {**state.params, "loss_weighting": {"log_variance": log_variance}}
    controls = Controls(curriculum_step=jnp.int32(25), learned_weights={})

    def compute(params, batch, cotangents):
        def outputs(params):
            call = functools.partial(
                tiny_model_call, batch=batch, ema_params=state.ema_params, controls=controls
            )
            terms, _ = call(CONCATENATED.loss_terms, params)
            loss, metrics = call(CONCATENATED.loss, params)
            return {**{name: total for name, (total, _) in terms.items()}, "loss": loss}, metrics

        values, backward, metrics = jax.vjp(outputs, params, has_aux=True)
        return values, metrics, backward(cotangents)[0]

    def tiny_model_call(method, params, *, batch, ema_params, controls):
        return method(
            tiny.model,
            params,
            ema_params,
            batch,
            rng=tiny.step_rng(),
            step=tiny.later,
            controls=controls,
        )

    compiled = jax.jit(compute)

    def of(batch, output):
        names = (*CONCATENATED.term_weights, "loss")
        return compiled(params, batch, {name: jnp.float32(name == output) for name in names})

    return params, of


def trained(gradients):
    return {
        name.split("/")[0]
        for name, leaf in parameter_trees.named_leaves(gradients)
        if np.abs(leaf).max() > 1e-7
    }


@pytest.mark.extended
@pytest.mark.parametrize(
    ("term", "parts"),
    [
        (
            "mt",
            {"text_encoder", "resampler", "refiner", "shared_encoder", "decoder"},
        ),
        (
            "st",
            {
                "subsampling",
                "speech_encoder",
                "text_encoder",
                "resampler",
                "refiner",
                "shared_encoder",
                "decoder",
            },
        ),
        (
            "paired_aligned_masked_lm",
            {"text_encoder", "resampler", "refiner", "shared_encoder", "decoder"},
        ),
    ],
)
def test_what_concatenated_translations_and_paired_text_train(tiny, stepped, term, parts):
    found, _, gradients = stepped[1](tiny.batch(), term)
    assert trained(gradients) == parts
    assert np.isfinite(found[term])
    assert found[term] > 0.0


@pytest.mark.extended
def test_the_loss_weighs_schedules_and_uncertainties(tiny, stepped):
    params, of = stepped
    values, metrics, gradients = of(tiny.batch(), "loss")
    weights = {name: 1.0 for name in CONCATENATED.term_weights}
    # A quarter of the way from 0 to 2, by the curriculum's clock and not by the step.
    weights |= {"diversity": 0.1, "paired_aligned_masked_lm": 0.5, "mt": 0.5}
    expected = 0.0
    for name, weight in weights.items():
        total, count = metrics[f"loss/{name}"]
        s = float(params["loss_weighting"]["log_variance"][name])
        expected += weight * np.exp(-s) * float(total) / float(count) + s / 2
    assert float(values["loss"]) == pytest.approx(expected, rel=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients["loss_weighting"]))


@pytest.mark.extended
def test_labels_of_concatenated_translations_are_both_texts(tiny, stepped):
    batch = tiny.batch()
    _, metrics, _ = stepped[1](batch, "loss")
    mt, st = batch["mt"], batch["st"]
    # A row whose tokens are all predicted to be silent has no frames and does not count.
    assert 0 < metrics["loss/mt"][1] <= (mt["text_length"] + mt["translation_length"]).sum()
    assert metrics["loss/mt"][1] > mt["translation_length"].sum()
    assert metrics["loss/st"][1] == st["translation_length"].sum()
    assert metrics["loss/paired_aligned_masked_lm"][1] == (batch["paired"]["text_length"].sum())


@pytest.mark.extended
def test_an_empty_batch_of_every_stream_is_harmless(tiny, stepped):
    batch = {
        name: {feature: np.zeros_like(array) for feature, array in stream.items()}
        for name, stream in tiny.batch().items()
    }
    values, _, gradients = stepped[1](batch, "loss")
    assert float(values["loss"]) == 0.0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_weights_learned_from_gradient_norms_multiply_those_that_are_set(tiny, monkeypatch):
    objective = dataclasses.replace(CONCATENATED, weighting=GradientNormWeighting(), mt_weight=0.25)
    terms = {"mt": (jnp.float32(6.0), jnp.float32(2.0)), "st": (jnp.float32(1.0), jnp.float32(1.0))}
    monkeypatch.setattr(MaestroPretraining, "loss_terms", lambda *args, **kwargs: (terms, {}))
    learned_weights = {"mt": jnp.float32(2.0), "st": jnp.float32(0.5)}
    controls = Controls(curriculum_step=0, learned_weights=learned_weights)
    value, metrics = objective.loss(None, None, None, {}, rng=None, step=0, controls=controls)
    assert float(value) == pytest.approx(0.25 * 2.0 * 3.0 + 0.5 * 1.0)
    assert metrics["weight/mt"][0] == 2.0


def test_learned_weights_are_parameters_beside_the_model(tiny):
    params = jax.eval_shape(lambda: CONCATENATED.init(tiny.model, jax.random.key(0), tiny.batch()))
    names = {name for name, _ in parameter_trees.named_leaves(parameter_trees.unbox(params))}
    assert {f"loss_weighting/log_variance/{name}" for name in CONCATENATED.term_weights} <= names
    assert parameter_trees.unbox(params)["loss_weighting"]["log_variance"]["mt"].shape == ()


def test_an_unknown_packing_is_refused():
    with pytest.raises(ValueError, match="'tlm'"):
        MaestroPretraining(translation_packing="tlm")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [True, True]),
        ({"augment_paired": False}, [False, False]),
        ({"augment_paired_start_step": 5}, [False, True]),
        ({"augment_paired": False, "augment_paired_start_step": 5}, [False, False]),
    ],
)
def test_spec_augment_may_begin_later(tiny, settings, expected):
    """Whether paired speech is augmented, by the curriculum's clock."""
    objective = tiny.objective(dict.fromkeys(tiny.weights, 1.0), **settings)
    state = tiny.state()
    told = []

    class FrontEnd(Exception):
        """Nothing after it matters."""

    class Listening:
        """A model that ends the pass at its front end."""

        def __getattr__(self, name):
            return getattr(tiny.model, name)

        def bind(self, variables, rngs=None):
            return self

        def log_mel(self, audio, lengths):
            # Only paired speech may be augmented, after the pass that it shares.
            return np.zeros((16, 42, 3), np.float32), np.full(16, 42)

        def frame_mask(self, mel, lengths):
            return np.ones((8, 11), bool)

        def spec_augment(self, mel, lengths, augment):
            told.append(bool(augment))
            raise FrontEnd

        def subsample(self, mel, lengths):
            told.append(False)
            raise FrontEnd

    batch = {name: tiny.batch()[name] for name in ("speech", "paired")}
    for clock in (4, 5):
        with pytest.raises(FrontEnd):
            objective.loss(
                Listening(),
                state.params,
                state.ema_params,
                batch,
                rng=tiny.step_rng(),
                step=7,
                controls=Controls(curriculum_step=jnp.int32(clock), learned_weights={}),
            )
    assert told == expected


def test_without_an_average_the_trained_weights_align_and_predict_durations(tiny):
    """The same program to the letter, as if the average were the parameters themselves."""
    objective = MaestroPretraining(max_text_frames=15)
    arguments = {"rng": tiny.step_rng(), "step": tiny.later}

    def program(average):
        def loss(params):
            ema_params = params if average else None
            return objective.loss(tiny.model, params, ema_params, tiny.batch(), **arguments)[0]

        return str(jax.make_jaxpr(loss)(tiny.state().params))

    assert program(average=True) == program(average=False)
