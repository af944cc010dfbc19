"""Joint and loss in one against the whole lattice of logits."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_jax.losses.transducer import joint_transducer_loss, transducer_loss
from maestro_jax.losses.transducer_joint import (
    LARGEST_CHUNK_BYTES,
    MOST_CHUNKS,
    SMALLEST_CHUNK_BYTES,
    chunk_rule,
    joint_lattices,
)

SIDES = ("frames", "predictions", "kernel", "bias")


def random_inputs(seed, batch=3, frames=7, labels=4, joint=6, vocab=9, dtype=np.float32):
    rng = np.random.default_rng(seed)
    sides = {
        "frames": rng.normal(size=(batch, frames, joint)),
        "predictions": rng.normal(size=(batch, labels + 1, joint)),
        "kernel": rng.normal(size=(joint, vocab)),
        "bias": rng.normal(size=vocab),
    }
    text = rng.integers(1, vocab, (batch, labels))
    return {name: side.astype(dtype) for name, side in sides.items()}, text


def whole(frames, predictions, kernel, bias, labels, frame_lengths, label_lengths, **options):
    hidden = jnp.tanh(frames[:, :, None] + predictions[:, None])
    logits = hidden @ kernel + bias
    return transducer_loss(logits, labels, frame_lengths, label_lengths, **options)


@functools.partial(jax.jit, static_argnames=("loss", "options"))
def value_and_gradients(loss, sides, labels, frame_lengths, label_lengths, options=()):
    """Losses, and gradients of their sum with unequal weights."""
    rest = {"labels": labels, "frame_lengths": frame_lengths, "label_lengths": label_lengths}

    def total(sides):
        values = loss(**sides, **rest, **dict(options))
        return values @ (1.0 + jnp.arange(values.shape[0])), values

    (_, values), gradients = jax.value_and_grad(total, has_aux=True)(sides)
    return values, gradients


OPTIONS = [
    (),
    (("hat", True),),
    (("one_label_per_frame", True), ("blank_id", 2)),
    (("fastemit", 0.5), ("delay_penalty", 0.1), ("hat", True), ("blank_id", 8)),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])
def test_values_and_gradients_are_those_of_the_whole_lattice(chunk, options):
    sides, labels = random_inputs(0)
    sizes = jnp.asarray([7, 5, 6]), jnp.asarray([4, 2, 0])
    with jax.enable_x64(True):
        double = {name: jnp.asarray(side, jnp.float64) for name, side in sides.items()}
        want, want_gradients = value_and_gradients(whole, double, labels, *sizes, options)
        got, gradients = value_and_gradients(
            joint_transducer_loss, double, labels, *sizes, (*options, ("chunk_frames", chunk))
        )
    np.testing.assert_allclose(got, want, rtol=1e-12)
    for name in SIDES:
        np.testing.assert_allclose(gradients[name], want_gradients[name], atol=1e-12, err_msg=name)


def test_gradients_against_finite_differences_in_float64():
    sides, labels = random_inputs(1, dtype=np.float64)
    sizes = jnp.asarray([7, 2, 0]), jnp.asarray([4, 4, 1])
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        options = (("chunk_frames", 2), ("hat", True))
        weights = 1.0 + np.arange(3)

        def value(sides):
            values, _ = value_and_gradients(joint_transducer_loss, sides, labels, *sizes, options)
            return float(values @ weights)

        _, gradients = value_and_gradients(joint_transducer_loss, sides, labels, *sizes, options)
        for name in SIDES:
            direction = rng.normal(size=sides[name].shape)
            ahead = sides | {name: sides[name] + 1e-5 * direction}
            behind = sides | {name: sides[name] - 1e-5 * direction}
            numeric = (value(ahead) - value(behind)) / 2e-5
            np.testing.assert_allclose(np.vdot(gradients[name], direction), numeric, rtol=1e-7)


@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 4)), min_size=3, max_size=3),
    chunk=st.sampled_from([2, 4]),
)
def test_any_lengths(seed, sizes, chunk):
    sides, labels = random_inputs(seed)
    frame_lengths, label_lengths = (jnp.asarray(c) for c in zip(*sizes, strict=True))
    arguments = sides, labels, frame_lengths, label_lengths
    want, want_gradients = value_and_gradients(whole, *arguments)
    got, gradients = value_and_gradients(
        joint_transducer_loss, *arguments, (("chunk_frames", chunk),)
    )
    # As NumPy arrays: each slice of another length would be a program of its own.
    gradients = jax.device_get(gradients)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    for name in SIDES:
        np.testing.assert_allclose(gradients[name], want_gradients[name], atol=2e-4, err_msg=name)
    for row, (frames, length) in enumerate(sizes):
        assert not np.any(gradients["frames"][row, frames:])
        assert not np.any(gradients["predictions"][row, length + 1 :])


@pytest.mark.parametrize("hat", [False, True])
@pytest.mark.parametrize("value", [1e30, np.inf, np.nan])
def test_padding_never_matters(value, hat):
    sides, labels = random_inputs(3)
    sizes = jnp.asarray([5, 7, 0]), jnp.asarray([4, 1, 3])
    options = (("chunk_frames", 2), ("hat", hat))
    want, want_gradients = value_and_gradients(
        joint_transducer_loss, sides, labels, *sizes, options
    )
    padded = {name: side.copy() for name, side in sides.items()}
    for row, (frames, length) in enumerate(zip(*sizes, strict=True)):
        padded["frames"][row, int(frames) :] = value
        padded["predictions"][row, int(length) + 1 :] = value
    got, gradients = value_and_gradients(joint_transducer_loss, padded, labels, *sizes, options)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for name in SIDES:
        np.testing.assert_allclose(gradients[name], want_gradients[name], atol=1e-5, err_msg=name)


def test_bfloat16_is_summed_in_float32():
    """Inputs are rounded to bfloat16 on both sides; what is left is rounding inside."""
    sides, labels = random_inputs(4, frames=12, joint=32)
    sizes = jnp.asarray([12, 9, 4]), jnp.asarray([4, 3, 2])
    half = {name: jnp.asarray(side, jnp.bfloat16) for name, side in sides.items()}
    same = {name: side.astype(jnp.float32) for name, side in half.items()}
    got, gradients = value_and_gradients(joint_transducer_loss, half, labels, *sizes)
    want, want_gradients = value_and_gradients(joint_transducer_loss, same, labels, *sizes)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0.02)
    for name in SIDES:
        assert gradients[name].dtype == jnp.bfloat16
        error = np.linalg.norm(gradients[name].astype(jnp.float32) - want_gradients[name])
        assert error < 0.03 * np.linalg.norm(want_gradients[name]), name


@given(
    batch=st.integers(1, 512),
    frames=st.integers(1, 4000),
    width=st.integers(1, 300),
    vocab=st.integers(2, 10000),
)
def test_the_rule_that_picks_a_chunk(batch, frames, width, vocab):
    chunk = chunk_rule(batch, frames, width, vocab)
    frame_bytes = 4 * batch * width * vocab
    assert 1 <= chunk <= frames
    assert chunk == 1 or chunk * frame_bytes <= LARGEST_CHUNK_BYTES
    chunks = -(-frames // chunk)
    assert (chunks - 1) * chunk < frames  # none is empty
    if chunks > MOST_CHUNKS:
        assert (chunk + 1) * frame_bytes * 2 > LARGEST_CHUNK_BYTES  # only memory makes more
    if chunk > -(-frames // MOST_CHUNKS):
        assert chunk * frame_bytes <= SMALLEST_CHUNK_BYTES  # only too little work makes fewer


def compiled(loss, batch, frames, labels, vocab, joint):
    def total(frame_side, prediction_side, kernel, bias):
        text = jnp.zeros((batch, labels), jnp.int32)
        sizes = jnp.full(batch, frames), jnp.full(batch, labels)
        return loss(frame_side, prediction_side, kernel, bias, text, *sizes).sum()

    shapes = [(batch, frames, joint), (batch, labels + 1, joint), (joint, vocab), (vocab,)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(jax.value_and_grad(total, (0, 1, 2, 3))).lower(*arrays).compile()


def test_memory_is_a_few_percent_of_the_whole_lattice_s():
    """At batch 8, 250 frames, 60 labels, 1024 words and 640 joint features; nothing is run."""
    size = {"batch": 8, "frames": 250, "labels": 60, "vocab": 1024, "joint": 640}
    fused = compiled(joint_transducer_loss, **size)
    temporary = fused.memory_analysis().temp_size_in_bytes
    reference = compiled(whole, **size).memory_analysis().temp_size_in_bytes
    assert reference > 2 * 4 * 8 * 250 * 61 * 1024  # the comparison is with a real lattice
    assert temporary <= 0.03 * reference
    cells = 8 * 250 * 61
    for dimensions in set(re.findall(r"f32\[([\d,]+)\]", fused.as_text())):
        assert np.prod([int(d) for d in dimensions.split(",")]) < cells * 1024 / 16, dimensions


def test_what_does_not_belong_together():
    sides, labels = random_inputs(5)
    with pytest.raises(ValueError, match="predictions beside frames"):
        joint_lattices(**sides | {"predictions": sides["predictions"][:, 1:]}, labels=labels)
    with pytest.raises(ValueError, match="kernel beside frames"):
        joint_lattices(**sides | {"kernel": sides["kernel"][1:]}, labels=labels)
    with pytest.raises(ValueError, match="blank_id 9 is not in a vocabulary of 9"):
        joint_lattices(**sides, labels=labels, blank_id=9)
    with pytest.raises(ValueError, match="chunk_frames must be at least 1"):
        joint_lattices(**sides, labels=labels, chunk_frames=0)
