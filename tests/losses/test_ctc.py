"""CTC against every path there is, summed in float64."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.losses.ctc import ctc_alignment, ctc_loss, has_path

VOCAB, FRAMES, LABELS = 3, 5, 3
# Frames and labels of each row: repetitions that just fit and that do not, an empty text, one
# without frames, more labels than frames.
CASES = [
    (5, [1, 2]),
    (5, [1, 1, 1]),
    (4, [1, 1, 1]),
    (5, [2, 2]),
    (3, [2, 1, 2]),
    (2, [2, 1, 2]),
    (3, []),
    (0, []),
    (0, [1]),
    (1, [2]),
    (5, [1, 2, 2]),
]


def collapse(path):
    """Merges repetitions and removes blanks."""
    return [symbol for symbol, _ in itertools.groupby(path) if symbol]


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(len(CASES), FRAMES, VOCAB), scale=2.0).astype(np.float32)
    # What pads labels may be a label, even the last one again.
    labels = np.full((len(CASES), LABELS), 2, np.int32)
    for row, (_, text) in enumerate(CASES):
        labels[row, : len(text)] = text
    frames = np.asarray([frames for frames, _ in CASES], np.int32)
    lengths = np.asarray([len(text) for _, text in CASES], np.int32)
    return logits, labels, frames, lengths


@pytest.fixture(scope="module")
def paths(rows):
    """For each row its paths with their log-probabilities, and the log-probabilities by frame."""
    logits = rows[0].astype(np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    found = []
    for row, (frames, text) in enumerate(CASES):
        found.append(
            [
                (sum(log_p[row, t, symbol] for t, symbol in enumerate(path)), path)
                for path in itertools.product(range(VOCAB), repeat=frames)
                if collapse(path) == text
            ]
        )
    return found, log_p


def test_a_path_is_there_where_one_can_be_written_down(rows, paths):
    _, labels, frames, lengths = rows
    expected = [bool(each) for each in paths[0]]
    np.testing.assert_array_equal(has_path(labels, frames, lengths), expected)
    assert expected.count(False) == 3


def test_loss_is_the_sum_over_all_paths(rows, paths):
    nats, labels, lacking = 0.0, 0, 0
    for (frames, text), found in zip(CASES, paths[0], strict=True):
        if not frames:
            continue
        if not found:
            lacking += 1
            continue
        nats -= np.logaddexp.reduce([score for score, _ in found])
        labels += len(text)
    loss, without = jax.jit(ctc_loss)(*rows)
    np.testing.assert_allclose(loss, (nats, labels), rtol=1e-6)
    assert without == (lacking, 1.0)
    assert lacking == 2


@pytest.mark.parametrize("row", range(len(CASES)))
def test_each_row_alone(rows, paths, row):
    loss, without = jax.jit(ctc_loss)(*(each[row : row + 1] for each in rows))
    frames, text = CASES[row]
    found = paths[0][row]
    if frames and found:
        expected = -np.logaddexp.reduce([score for score, _ in found])
        np.testing.assert_allclose(loss, (expected, len(text)), rtol=1e-6)
        assert without[0] == 0.0
    else:
        np.testing.assert_array_equal(loss, (0.0, 0.0))
        assert without[0] == (frames > 0)


def test_gradient_is_that_of_the_enumeration_and_stops_at_the_padding(rows, paths):
    """d loss / d logit = softmax - share of the paths that take the symbol on the frame."""
    logits, *rest = rows
    lengths = rows[2]
    spoiled = np.where(np.arange(FRAMES)[:, None] >= lengths[:, None, None], np.inf, logits)
    gradient = jax.jit(jax.grad(lambda x: ctc_loss(x, *rest)[0][0]))(spoiled)
    found, log_p = paths
    expected = np.zeros(logits.shape)
    for row, (frames, _) in enumerate(CASES):
        if not frames or not found[row]:
            continue
        total = np.logaddexp.reduce([score for score, _ in found[row]])
        expected[row, :frames] = np.exp(log_p[row, :frames])
        for score, path in found[row]:
            expected[row, np.arange(frames), path] -= np.exp(score - total)
    np.testing.assert_allclose(gradient, expected, atol=2e-6)


def test_best_path_is_the_likeliest_of_all(rows, paths):
    logits, labels, frames, lengths = rows
    alignment = jax.jit(ctc_alignment)(jax.nn.log_softmax(logits), labels, frames, lengths)
    found, log_p = paths
    checked = 0
    for row, (count, text) in enumerate(CASES):
        assert int(alignment.durations[row].sum()) == (count if text else 0)
        np.testing.assert_array_equal(alignment.frames[row, len(text) :], 0)
        if not count:
            assert alignment.scores[row] == 0.0
            continue
        if not found[row]:
            assert alignment.scores[row] < -1e29
            continue
        score, path = max(found[row])
        np.testing.assert_allclose(alignment.scores[row], score, rtol=1e-5)
        begins = [
            t for t, symbol in enumerate(path) if symbol and (t == 0 or path[t - 1] != symbol)
        ]
        np.testing.assert_array_equal(alignment.frames[row, : len(text)], begins)
        np.testing.assert_allclose(
            alignment.label_scores[row, : len(text)],
            [log_p[row, t, label] for t, label in zip(begins, text, strict=True)],
            rtol=1e-5,
        )
        checked += len(begins)
    assert checked > 8


def test_a_long_unlikely_text_keeps_its_price():
    """Real paths that cost more than 1e5 nats are still told from impossible ones."""
    logits = np.zeros((1, 2000, 3), np.float32)
    logits[:, :, 2] = 200.0
    (total, _), _ = ctc_loss(logits, np.asarray([[1]]), np.asarray([2000]), np.asarray([1]))
    np.testing.assert_allclose(total, 2000 * 200.0 - np.log(2000 * 2001 / 2), rtol=1e-5)


def test_shapes_that_do_not_belong_together():
    call = functools.partial(ctc_loss, jnp.zeros((2, 4, 3)), jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        call(jnp.ones(2, jnp.int32), jnp.ones(3, jnp.int32))
