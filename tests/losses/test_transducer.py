"""The transducer loss against enumerated paths, float64, finite differences and autodiff."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_jax.losses import transducer_lattice
from maestro_jax.losses.transducer import (
    NO_PATH,
    transducer_loss,
    transducer_loss_from_lattices,
)
from maestro_jax.losses.transducer_alignment import transducer_alignment
from maestro_jax.losses.transducer_arcs import lattices_from_logits

FRAMES, LABELS, VOCAB = 5, 4, 6

lattice_loss = jax.jit(transducer_loss_from_lattices)


@jax.jit
def lattice_gradients(log_blank, log_label, frame_lengths, label_lengths):
    return jax.grad(
        lambda b, y: transducer_loss_from_lattices(b, y, frame_lengths, label_lengths).sum(), (0, 1)
    )(log_blank, log_label)


@functools.partial(jax.jit, static_argnames="blank_id")
def loss_and_gradients(logits, labels, frame_lengths, label_lengths, blank_id=0):
    """Losses, and the gradient of their sum."""

    def total(x):
        loss = transducer_loss(x, labels, frame_lengths, label_lengths, blank_id=blank_id)
        return loss.sum(), loss

    gradient, loss = jax.grad(total, has_aux=True)(logits)
    return loss, gradient


def enumerated_loss(log_blank, log_label, frames, labels):
    """-log of the sum over every path, float64; a path is the emission frame of each label."""
    scores = []
    for emissions in itertools.combinations_with_replacement(range(frames), labels):
        score = sum(float(log_label[frame, u]) for u, frame in enumerate(emissions))
        for frame in range(frames):
            emitted = sum(emission <= frame for emission in emissions)
            score += float(log_blank[frame, emitted])
        scores.append(score)
    return -np.logaddexp.reduce(np.asarray(scores, np.float64))


def plain_loss(log_blank, log_label, frames, labels):
    """The textbook double loop for one example, for autodiff."""
    alpha = {(0, 0): jnp.zeros((), log_blank.dtype)}
    for t, u in itertools.product(range(frames), range(labels + 1)):
        ways = []
        if t:
            ways.append(alpha[t - 1, u] + log_blank[t - 1, u])
        if u:
            ways.append(alpha[t, u - 1] + log_label[t, u - 1])
        if ways:
            alpha[t, u] = jax.nn.logsumexp(jnp.stack(ways))
    return -(alpha[frames - 1, labels] + log_blank[frames - 1, labels])


def random_lattices(seed, batch=1, frames=FRAMES, labels=LABELS):
    rng = np.random.default_rng(seed)
    blank = np.log(rng.uniform(0.01, 1, (batch, frames, labels + 1)))
    label = np.log(rng.uniform(0.01, 1, (batch, frames, labels)))
    return blank, label


def lengths(*values):
    return jnp.asarray(values, jnp.int32)


@pytest.mark.parametrize("frames", range(1, 5))
@pytest.mark.parametrize("labels", range(5))
def test_sum_over_enumerated_paths(frames, labels):
    blank, label = random_lattices(10 * frames + labels)
    loss = lattice_loss(
        jnp.asarray(blank, jnp.float32),
        jnp.asarray(label, jnp.float32),
        lengths(frames),
        lengths(labels),
    )
    np.testing.assert_allclose(
        loss, [enumerated_loss(blank[0], label[0], frames, labels)], rtol=1e-5
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(
        st.tuples(st.integers(0, FRAMES), st.integers(0, LABELS)), min_size=3, max_size=3
    ),
)
def test_any_lengths(seed, sizes):
    blank, label = random_lattices(seed, batch=3)
    blank32, label32 = jnp.asarray(blank, jnp.float32), jnp.asarray(label, jnp.float32)
    frame_lengths, label_lengths = (lengths(*column) for column in zip(*sizes, strict=True))
    loss = lattice_loss(blank32, label32, frame_lengths, label_lengths)
    gradients = lattice_gradients(blank32, label32, frame_lengths, label_lengths)
    # As NumPy arrays: each slice of another length would be a program of its own.
    grad_blank, grad_label = jax.device_get(gradients)
    for i, (frames, labels) in enumerate(sizes):
        expected = enumerated_loss(blank[i], label[i], frames, labels) if frames else 0.0
        np.testing.assert_allclose(loss[i], expected, rtol=1e-5, atol=1e-6)
        # Outside the lattice nothing; inside, each frame has one blank and each label one frame.
        inside = np.zeros(blank[i].shape, bool)
        inside[:frames, : labels + 1] = True
        assert not np.any(np.asarray(grad_blank[i])[~inside])
        assert not np.any(np.asarray(grad_label[i])[~(inside[:, :-1] & inside[:, 1:])])
        np.testing.assert_allclose(-grad_blank[i].sum(1)[:frames], np.ones(frames), atol=1e-5)
        if frames:
            np.testing.assert_allclose(-grad_label[i].sum(0)[:labels], np.ones(labels), atol=1e-5)


@pytest.mark.parametrize(("frames", "labels"), [(5, 4), (3, 4), (1, 4), (4, 0), (1, 0)])
def test_gradient_is_that_of_the_plain_recursion(frames, labels):
    blank, label = (jnp.asarray(x, jnp.float32) for x in random_lattices(frames))
    expected = jax.jit(
        jax.grad(lambda b, y: plain_loss(b[0], y[0], frames, labels), argnums=(0, 1))
    )(blank, label)
    gradients = lattice_gradients(blank, label, lengths(frames), lengths(labels))
    for got, want in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_gradient_of_logits_against_finite_differences_in_float64():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        logits = jnp.asarray(rng.normal(size=(3, FRAMES, LABELS + 1, VOCAB)))
        labels = jnp.asarray(rng.integers(1, VOCAB, (3, LABELS)))
        sizes = jnp.asarray([5, 2, 3]), jnp.asarray([4, 4, 0])
        weights = jnp.asarray([1.0, -2.0, 0.5])
        value = jax.jit(lambda x: (weights * transducer_loss(x, labels, *sizes)).sum())
        gradient = jax.jit(jax.grad(value))(logits)
        assert gradient.dtype == jnp.float64
        for _ in range(5):
            direction = rng.normal(size=logits.shape)
            step = 1e-5 * direction
            numeric = (value(logits + step) - value(logits - step)) / 2e-5
            np.testing.assert_allclose(np.vdot(gradient, direction), numeric, rtol=1e-7)


def test_gradient_of_lattices_is_that_of_log_softmax():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(2, 3, 4, VOCAB)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, VOCAB, (2, 3)))
    blank_weight, label_weight = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 3))

    def plain(x):
        log_probabilities = jax.nn.log_softmax(x)
        chosen = jax.nn.one_hot(labels, VOCAB)[:, None]
        return log_probabilities[..., 2], (log_probabilities[:, :, :-1] * chosen).sum(-1)

    def weighted(lattices):
        return (lattices[0] * blank_weight).sum() + (lattices[1] * label_weight).sum()

    ours = jax.jit(lambda x: lattices_from_logits(x, labels, 2))
    for got, want in zip(ours(logits), plain(logits), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(
        jax.jit(jax.grad(lambda x: weighted(ours(x))))(logits),
        jax.jit(jax.grad(lambda x: weighted(plain(x))))(logits),
        atol=1e-6,
    )


def test_long_lattices_keep_their_precision():
    """Thousands of nats: float32 gradients still agree with float64 ones."""
    rng = np.random.default_rng(2)
    blank = rng.uniform(-20, -5, (1, 400, 61))
    label = rng.uniform(-20, -5, (1, 400, 60))
    sizes = lengths(400), lengths(60)
    single = [jnp.asarray(x, jnp.float32) for x in (blank, label)]
    with jax.enable_x64(True):
        double = [jnp.asarray(x, jnp.float64) for x in single]
        want_loss = np.asarray(lattice_loss(*double, *sizes))
        want = [np.asarray(x) for x in lattice_gradients(*double, *sizes)]
    np.testing.assert_allclose(lattice_loss(*single, *sizes), want_loss, rtol=1e-6)
    for got, expected in zip(lattice_gradients(*single, *sizes), want, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-4)


@pytest.mark.parametrize("one_label_per_frame", [False, True])
def test_several_wavefronts_per_turn_as_on_tpus(one_label_per_frame, monkeypatch):
    rng = np.random.default_rng(5)
    # A hundred nats per arc: a scale that is shared by eight wavefronts must do.
    blank = jnp.asarray(-100 * rng.uniform(size=(5, 60, 21)), jnp.float32)
    label = jnp.asarray(-100 * rng.uniform(size=(5, 60, 20)), jnp.float32)
    sizes = lengths(60, 57, 1, 0, 33), lengths(20, 13, 1, 4, 0)
    found = []
    for turns in (1, transducer_lattice.TURNS, 7):
        monkeypatch.setattr(
            transducer_lattice,
            "by_platform",
            lambda function, *arrays, turns=turns: function(*arrays, turns=turns),
        )
        # Of this function JAX has no program yet.
        options = {"one_label_per_frame": one_label_per_frame}

        def total(blank, label, options=options):
            losses = transducer_loss_from_lattices(blank, label, *sizes, **options)
            return jnp.sum(losses), losses

        aligned = jax.jit(functools.partial(transducer_alignment, **options))
        found.append(
            (
                jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(blank, label),
                aligned(blank, label, *sizes),
            )
        )
    for several in found[1:]:
        for one, other in zip(*map(jax.tree.leaves, (found[0], several)), strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_zero_frames_are_an_absent_example():
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3, 3, 4)), jnp.float32)
    labels = jnp.ones((2, 2), jnp.int32)
    loss, gradient = loss_and_gradients(logits, labels, lengths(0, 0), lengths(2, 0))
    np.testing.assert_array_equal(loss, [0, 0])
    assert not np.any(gradient)


@pytest.mark.parametrize("value", [0.0, np.inf, -np.inf, np.nan])
def test_padding_never_matters(value):
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(3, FRAMES, LABELS + 1, VOCAB)).astype(np.float32)
    labels = rng.integers(1, VOCAB, (3, LABELS))
    sizes = [(3, 2), (2, 4), (0, 3)]
    frame_lengths, label_lengths = (lengths(*column) for column in zip(*sizes, strict=True))
    padded, other_labels = logits.copy(), labels.copy()
    for i, (frames, length) in enumerate(sizes):
        padded[i, frames:] = value
        padded[i, :, length + 1 :] = value
        other_labels[i, length:] = 0
    want, want_gradient = loss_and_gradients(logits, labels, frame_lengths, label_lengths)
    got, gradient = loss_and_gradients(padded, other_labels, frame_lengths, label_lengths)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-6)
    for i, (frames, length) in enumerate(sizes):
        assert not np.any(gradient[i, frames:])
        assert not np.any(gradient[i, :, length + 1 :])


def test_a_static_axis_without_labels():
    logits = jnp.asarray(np.random.default_rng(5).normal(size=(1, 3, 1, 4)), jnp.float32)
    loss, _ = loss_and_gradients(logits, jnp.zeros((1, 0), jnp.int32), lengths(3), lengths(0))
    np.testing.assert_allclose(loss, [-jax.nn.log_softmax(logits)[..., 0].sum()], rtol=1e-6)


def test_forbidden_arcs_and_impossible_lattices():
    blank, label = random_lattices(6)
    label[0, 0] = -np.inf  # no label on the first frame: still possible
    want = enumerated_loss(blank[0], label[0], FRAMES, LABELS)
    arguments = [jnp.asarray(x, jnp.float32) for x in (blank, label)]
    np.testing.assert_allclose(
        lattice_loss(*arguments, lengths(FRAMES), lengths(LABELS)), [want], rtol=1e-5
    )
    gradients = lattice_gradients(*arguments, lengths(FRAMES), lengths(LABELS))
    assert all(np.all(np.isfinite(g)) for g in gradients)
    assert not np.any(gradients[1][0, 0])

    label[0, :, 2] = -np.inf  # the third label cannot be emitted at all
    arguments = [jnp.asarray(x, jnp.float32) for x in (blank, label)]
    loss = lattice_loss(*arguments, lengths(FRAMES), lengths(LABELS))
    assert np.isfinite(loss[0]) and loss[0] > NO_PATH
    gradients = lattice_gradients(*arguments, lengths(FRAMES), lengths(LABELS))
    assert not any(np.any(g) for g in gradients)


def test_not_a_number_stays_in_its_example():
    logits = np.random.default_rng(7).normal(size=(2, 3, 3, 4)).astype(np.float32)
    logits[0, 1, 1, 1] = np.nan
    labels = jnp.ones((2, 2), jnp.int32)
    loss, gradient = loss_and_gradients(logits, labels, lengths(3, 3), lengths(2, 2))
    assert np.isnan(loss[0]) and np.isfinite(loss[1])
    assert np.any(np.isnan(gradient[0])) and np.all(np.isfinite(gradient[1]))


def test_confident_logits_have_finite_gradients():
    logits = 1e4 * np.random.default_rng(8).normal(size=(2, 6, 4, 5)).astype(np.float32)
    labels = jnp.asarray([[1, 2, 3], [4, 4, 4]])
    loss, gradient = loss_and_gradients(logits, labels, lengths(6, 2), lengths(3, 3))
    assert np.all(np.isfinite(loss))
    assert np.all(np.isfinite(gradient))


def test_bfloat16_logits_are_summed_in_float32():
    rng = np.random.default_rng(9)
    logits = jnp.asarray(rng.normal(size=(2, 6, 4, 5)), jnp.bfloat16)
    labels = jnp.asarray(rng.integers(1, 5, (2, 3)))
    sizes = lengths(6, 4), lengths(3, 2)
    loss, gradient = loss_and_gradients(logits, labels, *sizes)
    assert loss.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    want, want_gradient = loss_and_gradients(logits.astype(jnp.float32), labels, *sizes)
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    np.testing.assert_allclose(gradient.astype(jnp.float32), want_gradient, rtol=0.01, atol=1e-3)


def test_chunks_of_frames_under_checkpoint_give_the_whole():
    rng = np.random.default_rng(10)
    logits = jnp.asarray(rng.normal(size=(2, 6, 4, 5)), jnp.float32)
    labels = jnp.asarray(rng.integers(1, 5, (2, 3)))
    sizes = lengths(6, 4), lengths(3, 2)

    @jax.jit
    @jax.grad
    def chunked(x):
        chunks = x.reshape(2, 3, 2, 4, 5).transpose(1, 0, 2, 3, 4)
        lattices = jax.lax.map(
            jax.checkpoint(lambda chunk: lattices_from_logits(chunk, labels)), chunks
        )
        joined = [a.transpose(1, 0, 2, 3).reshape(2, 6, a.shape[-1]) for a in lattices]
        return transducer_loss_from_lattices(*joined, *sizes).sum()

    np.testing.assert_allclose(
        chunked(logits), loss_and_gradients(logits, labels, *sizes)[1], atol=1e-6
    )


def test_shapes_that_do_not_belong_together():
    logits, labels = jnp.zeros((2, 3, 4, 5)), jnp.zeros((2, 3), jnp.int32)
    with pytest.raises(ValueError, match=r"labels of logits .* must be \(2, 3\), not \(2, 4\)"):
        transducer_loss(logits, jnp.zeros((2, 4), jnp.int32), lengths(3, 3), lengths(3, 3))
    with pytest.raises(ValueError, match="blank_id 5 is not in a vocabulary of 5"):
        transducer_loss(logits, labels, lengths(3, 3), lengths(3, 3), blank_id=5)
    with pytest.raises(ValueError, match=r"must be \(2,\), not \(1,\) and \(2,\)"):
        transducer_loss(logits, labels, lengths(3), lengths(3, 3))
    with pytest.raises(ValueError, match=r"must be \(2, 3, 3\), not \(2, 3, 4\)"):
        transducer_loss_from_lattices(
            jnp.zeros((2, 3, 4)), jnp.zeros((2, 3, 4)), lengths(3, 3), lengths(3, 3)
        )
    with pytest.raises(ValueError, match="logits must be"):
        lattices_from_logits(jnp.zeros((3, 4, 5)), labels)
