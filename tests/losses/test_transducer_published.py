"""Losses and gradients that public test suites print, at every entrance of the loss."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.losses.transducer import (
    joint_transducer_loss,
    transducer_loss,
    transducer_loss_from_lattices,
)
from maestro_jax.losses.transducer_arcs import lattices_from_logits

PUBLISHED = json.loads(
    (Path(__file__).parent / "data" / "published_transducer_cases.json").read_text()
)
BY_NAME = {case["name"]: case for case in PUBLISHED["cases"]}


def inputs_of(case):
    integers = (case[name] for name in ("labels", "logit_lengths", "label_lengths"))
    return np.asarray(case["logits"], np.float32), *(jnp.asarray(x, jnp.int32) for x in integers)


@functools.partial(jax.jit, static_argnames=("blank_id", "one_label_per_frame", "fastemit"))
def from_logits(logits, labels, frame_lengths, label_lengths, **options):
    def total(x):
        loss = transducer_loss(x, labels, frame_lengths, label_lengths, **options)
        return loss.sum(), loss

    gradient, loss = jax.grad(total, has_aux=True)(logits)
    return loss, gradient


@functools.partial(jax.jit, static_argnames=("blank_id", "one_label_per_frame", "fastemit"))
def through_joint(logits, labels, frame_lengths, label_lengths, **options):
    """The same lattice out of a joint network that was built to give exactly these logits.

    Its hidden layer is 1 at the unit of a node and -1 at all others (tanh saturates), an invertible
    matrix; the kernel is what turns it into the logits, and the gradient of the kernel, turned
    back, is that of the logits.
    """
    batch, frames, width, vocab = logits.shape
    nodes = batch * frames * width
    of_frame = jnp.eye(batch * frames).repeat(width, axis=1).reshape(batch, frames, nodes)
    of_label = jnp.tile(jnp.eye(width), (1, batch * frames))
    hidden = 2 * jnp.eye(nodes) - 1
    kernel = jnp.linalg.solve(hidden, logits.reshape(nodes, vocab))

    def total(kernel):
        loss = joint_transducer_loss(
            40 * of_frame - 60,
            40 * jnp.broadcast_to(of_label, (batch, width, nodes)),
            kernel,
            jnp.zeros(vocab),
            labels,
            frame_lengths,
            label_lengths,
            chunk_frames=2,
            **options,
        )
        return loss.sum(), loss

    gradient, loss = jax.grad(total, has_aux=True)(kernel)
    return loss, jnp.linalg.solve(hidden.T, gradient).reshape(logits.shape)


@functools.partial(jax.jit, static_argnames=("blank_id", "one_label_per_frame"))
def wrt_log_probabilities(
    logits, labels, frame_lengths, label_lengths, blank_id, one_label_per_frame
):
    """The gradient that treats log-probabilities as free, laid out like the logits."""
    lattices = lattices_from_logits(logits, labels, blank_id)

    def total(log_blank, log_label):
        return transducer_loss_from_lattices(
            log_blank,
            log_label,
            frame_lengths,
            label_lengths,
            one_label_per_frame=one_label_per_frame,
        ).sum()

    blank, label = jax.grad(total, (0, 1))(*lattices)
    vocab = logits.shape[-1]
    return jnp.pad(
        label[..., None] * jax.nn.one_hot(labels, vocab)[:, None], ((0, 0), (0, 0), (0, 1), (0, 0))
    ) + blank[..., None] * jax.nn.one_hot(blank_id, vocab)


@pytest.mark.parametrize("entrance", [from_logits, through_joint], ids=["logits", "joint"])
@pytest.mark.parametrize("case", PUBLISHED["cases"], ids=lambda case: case["name"])
def test_values_and_gradients(case, entrance):
    options = {"blank_id": case["blank"], "one_label_per_frame": case["kind"] == "rna"}
    loss, gradient = entrance(*inputs_of(case), **options)
    np.testing.assert_allclose(loss, case["expected_costs"], rtol=1e-5)
    if case["grads_wrt"] == "log_probs":
        gradient = wrt_log_probabilities(*inputs_of(case), **options)
    expected = case["expected_grads"]
    if "float64_grads" in case:  # the source prints two decimals
        np.testing.assert_allclose(gradient, expected, atol=1e-2)
        expected = case["float64_grads"]
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("entrance", [from_logits, through_joint], ids=["logits", "joint"])
@pytest.mark.parametrize("recipe", PUBLISHED["recipes"], ids=lambda recipe: recipe["source"])
def test_recipes(recipe, entrance):
    logits = np.random.RandomState(0).randn(*recipe["shape"]).astype(np.float32)
    batch, frames, width, _ = recipe["shape"]
    loss, _ = entrance(
        logits,
        jnp.asarray(recipe["labels"]),
        jnp.full(batch, frames),
        jnp.full(batch, width - 1),
        blank_id=recipe["blank"],
    )
    np.testing.assert_allclose(loss, recipe["float64_costs"], rtol=2e-5)


def additive(emissions, predictions, labels, **options):
    emissions, predictions = jnp.asarray(emissions), jnp.asarray(predictions)
    labels = jnp.asarray(labels)
    sizes = jnp.full(len(labels), emissions.shape[1]), jnp.full(len(labels), labels.shape[1])

    def total(e, p):
        loss = transducer_loss(e[:, :, None] + p[:, None], labels, *sizes, **options)
        return loss.sum(), loss

    gradients, loss = jax.grad(total, (0, 1), has_aux=True)(emissions, predictions)
    return loss, gradients


@pytest.mark.parametrize("case", PUBLISHED["additive_joiner"], ids=lambda case: case["name"])
def test_additive_joiners_and_the_gradients_of_both_sides(case):
    loss, gradients = additive(
        case["emissions"], case["predictions"], case["labels"], blank_id=case["blank"]
    )
    np.testing.assert_allclose(loss, case["expected_costs"], rtol=1e-5)
    np.testing.assert_allclose(gradients[0], case["expected_emission_grads"], atol=1e-5)
    np.testing.assert_allclose(gradients[1], case["expected_prediction_grads"], atol=1e-5)


@pytest.mark.extended
@pytest.mark.parametrize("one_label_per_frame", [False, True])
def test_additive_joiner_in_both_lattices(one_label_per_frame):
    case = PUBLISHED["additive"]
    am, lm = np.asarray(case["am"]), np.asarray(case["lm"])
    options = {"blank_id": case["blank"], "one_label_per_frame": one_label_per_frame}
    suffix = "_one_label_per_frame" if one_label_per_frame else ""
    expected = case[f"float64_costs{suffix}"]
    loss, _ = additive(am, lm, case["symbols"], **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # A constant a frame or a position cancels in the softmax.
    shifted, _ = additive(
        am + np.arange(4)[:, None], lm - 2 * np.arange(4)[:, None], case["symbols"], **options
    )
    np.testing.assert_allclose(shifted, expected, rtol=1e-5)


def test_clipped_gradients():
    clamp = PUBLISHED["clamp"]
    _, gradient = from_logits(*inputs_of(BY_NAME[clamp["base_case"]]))
    clipped = np.clip(gradient, -clamp["clamp"], clamp["clamp"])
    np.testing.assert_allclose(clipped, clamp["expected_grads"], atol=1e-5)


@pytest.mark.parametrize("weight", PUBLISHED["fastemit"]["lambdas"])
def test_fastemit(weight):
    """The rule of the source; its value, (1 + weight) times ours, is a convention of its own."""
    case = BY_NAME[PUBLISHED["fastemit"]["base_case"]]
    inputs = inputs_of(case)
    loss, gradient = from_logits(*inputs, fastemit=weight)
    np.testing.assert_allclose(loss, case["expected_costs"], rtol=1e-5)
    free = np.array(wrt_log_probabilities(*inputs, case["blank"], False))
    free[..., 1:] *= 1 + weight
    chained = free - free.sum(-1, keepdims=True) * np.asarray(jax.nn.softmax(inputs[0]))
    np.testing.assert_allclose(gradient, chained, atol=1e-6)
    _, through = through_joint(*inputs, fastemit=weight)
    np.testing.assert_allclose(through, chained, atol=1e-5)


@pytest.mark.parametrize(
    "case", PUBLISHED["restricted"]["cases"], ids=lambda c: str(c["alignment"])
)
def test_paths_kept_near_an_alignment_by_forbidden_arcs(case):
    """A label may be emitted only so far from the frame that the alignment gives it."""
    source = PUBLISHED["restricted"]
    logits, labels, *sizes = inputs_of(BY_NAME[source["base_case"]])
    log_blank, log_label = lattices_from_logits(logits, labels)
    given = np.flatnonzero(case["alignment"])
    distance = np.abs(np.arange(logits.shape[1])[:, None] - given)
    log_label = jnp.where(distance <= case["max_distance"], log_label, -jnp.inf)
    loss = transducer_loss_from_lattices(log_blank, log_label, *sizes, one_label_per_frame=True)
    np.testing.assert_allclose(
        loss, [case["expected_cost"]], atol=PUBLISHED["restricted"]["tolerance"]
    )
