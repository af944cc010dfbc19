"""Greedy decoding of a toy transducer against a plain Python loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_transducer import listed

from maestro_jax.decoding.greedy import greedy_decode
from maestro_jax.losses.transducer import transducer_loss

BATCH, FRAMES, FEATURES, HIDDEN, VOCAB = 4, 9, 3, 5, 6
MAX_LABELS, CAP = 20, 2


def toy(seed, blank_id=0, blank_bias=0.0):
    """A recurrent predictor with a two-leaf state of different ranks, and an additive joint."""
    rng = np.random.default_rng(seed)
    embed = jnp.asarray(rng.normal(size=(VOCAB, HIDDEN)), jnp.float32)
    recur = jnp.asarray(rng.normal(size=(HIDDEN, HIDDEN)), jnp.float32)
    encode = jnp.asarray(2 * rng.normal(size=(FEATURES, HIDDEN)), jnp.float32)
    project = jnp.asarray(2 * rng.normal(size=(HIDDEN, VOCAB)), jnp.float32)
    bias = blank_bias * jax.nn.one_hot(blank_id, VOCAB)

    def predict(state, labels):
        hidden = jnp.tanh(state["hidden"][:, 0] @ recur + embed[labels])
        return hidden, {"hidden": hidden[:, None], "calls": state["calls"] + 1}

    def joint(frame, outputs):
        return jnp.tanh(frame @ encode + outputs) @ project + bias

    def state(batch):
        return {"hidden": jnp.zeros((batch, 1, HIDDEN)), "calls": jnp.zeros(batch, jnp.int32)}

    return predict, joint, state


def plain_loop(
    predict,
    joint,
    state,
    encoded,
    frames,
    blank_id=0,
    cap=CAP,
    max_labels=MAX_LABELS,
    hat=False,
    one_label_per_frame=False,
):
    """One example, one symbol at a time, float64 scores."""
    predict, joint = jax.jit(predict), jax.jit(joint)
    outputs, state = predict(state, jnp.asarray([blank_id]))
    tokens, emitted_on, token_scores, score, truncated = [], [], [], 0.0, False
    for frame in range(frames):
        symbols = 0
        while True:
            scores = log_probabilities(joint(encoded[None, frame], outputs), blank_id, hat)
            best = int(np.argmax(scores))
            if best != blank_id and symbols < cap and len(tokens) == max_labels:
                truncated = True
            if best == blank_id or symbols == cap or len(tokens) == max_labels:
                score += scores[blank_id]
                break
            tokens.append(best)
            emitted_on.append(frame)
            token_scores.append(scores[best])
            score += scores[best]
            symbols += 1
            outputs, state = predict(state, jnp.asarray([best]))
            if one_label_per_frame:
                break
    return tokens, emitted_on, score, truncated, token_scores


def log_probabilities(logits, blank_id, hat):
    z = np.asarray(logits)[0].astype(np.float64)
    if not hat:
        return z - np.logaddexp.reduce(z)
    labels = np.delete(z, blank_id)
    labels = labels - np.logaddexp.reduce(labels) - np.logaddexp(0.0, z[blank_id])
    return np.insert(labels, blank_id, -np.logaddexp(0.0, -z[blank_id]))


def decoder(predict, joint, state, cap=CAP, max_labels=MAX_LABELS, **options):
    return jax.jit(
        lambda encoded, frame_lengths: greedy_decode(
            predict,
            joint,
            state(encoded.shape[0]),
            encoded,
            frame_lengths,
            max_symbols_per_frame=cap,
            max_labels=max_labels,
            **options,
        )
    )


def rows_of(found):
    for i, length in enumerate(found.lengths.tolist()):
        tokens, frames, token_scores = listed(found, i)
        assert len(tokens) == length
        yield list(tokens), frames, float(found.scores[i]), bool(found.truncated[i]), token_scores


def random_input(seed):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(BATCH, FRAMES, FEATURES)), jnp.float32)


DECODERS = {
    name: (toy(seed, **toy_options), options)
    for name, seed, toy_options, options in [
        ("typical", 0, {"blank_bias": 3.0}, {}),
        ("babbling", 1, {"blank_bias": -3.0}, {"max_labels": 30}),
        ("truncated", 2, {}, {"max_labels": 3}),
        ("hat", 4, {"blank_bias": 0.5}, {"hat": True}),
        ("one label a frame", 5, {}, {"one_label_per_frame": True}),
        ("frame by frame", 0, {"blank_bias": 3.0}, {"window": 1}),
        ("wide window", 0, {"blank_bias": 3.0}, {"window": 32}),
        ("blank last", 3, {"blank_id": VOCAB - 1, "blank_bias": 2.0}, {"blank_id": VOCAB - 1}),
    ]
}
COMPILED = {name: decoder(*model, **options) for name, (model, options) in DECODERS.items()}


@pytest.mark.parametrize("name", DECODERS)
def test_agrees_with_a_plain_loop(name):
    (predict, joint, state), options = DECODERS[name]
    options = {name: value for name, value in options.items() if name != "window"}
    produced = 0
    for seed in range(3):
        encoded = random_input(seed)
        frame_lengths = jnp.asarray([[9, 0, 4, 1], [1, 9, 9, 2], [3, 7, 0, 5]][seed])
        found = COMPILED[name](encoded, frame_lengths)
        for i, (tokens, frames, score, truncated, token_scores) in enumerate(rows_of(found)):
            want = plain_loop(
                predict, joint, state(1), encoded[i], int(frame_lengths[i]), **options
            )
            assert (tokens, frames, truncated) == (want[0], want[1], want[3])
            np.testing.assert_allclose(score, want[2], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(token_scores, want[4], rtol=1e-5, atol=1e-6)
            produced += len(tokens)
        assert np.any(found.truncated) == (name == "truncated")
    assert produced > 10


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    frames=st.lists(st.integers(0, FRAMES), min_size=BATCH, max_size=BATCH),
)
def test_a_batch_is_its_examples(seed, frames):
    """Each row, decoded beside empty rows, gives what it gives beside the others."""
    encoded = random_input(seed)
    whole = COMPILED["typical"](encoded, jnp.asarray(frames))
    for i, length in enumerate(frames):
        alone = COMPILED["typical"](encoded, jnp.zeros(BATCH, jnp.int32).at[i].set(length))
        np.testing.assert_array_equal(whole.tokens[i], alone.tokens[i])
        np.testing.assert_array_equal(whole.frames[i], alone.frames[i])
        assert whole.lengths[i] == alone.lengths[i]
        np.testing.assert_allclose(whole.scores[i], alone.scores[i], rtol=1e-6)
        assert np.all(np.asarray(alone.lengths)[np.arange(BATCH) != i] == 0)


def test_padding_never_matters():
    encoded = random_input(5)
    frame_lengths = jnp.asarray([4, 9, 0, 2])
    clean = COMPILED["typical"](encoded, frame_lengths)
    padding = jnp.arange(FRAMES)[None, :, None] >= frame_lengths[:, None, None]
    for value in (100.0, jnp.nan):
        dirty = COMPILED["typical"](jnp.where(padding, value, encoded), frame_lengths)
        for got, want in zip(dirty, clean, strict=True):
            np.testing.assert_array_equal(got, want)


def test_all_rows_empty():
    found = COMPILED["typical"](random_input(6), jnp.zeros(BATCH, jnp.int32))
    for tokens, _, score, truncated, _ in rows_of(found):
        assert (tokens, score, truncated) == ([], 0.0, False)


def test_the_cap_holds_on_every_frame():
    found = COMPILED["babbling"](random_input(7), jnp.full(BATCH, FRAMES))
    for _, frames, _, _, _ in rows_of(found):
        assert np.bincount(frames, minlength=FRAMES).max() == CAP


@pytest.mark.parametrize("name", ["typical", "babbling"])
def test_the_score_is_a_path_of_the_loss(name):
    """No single path is likelier than all alignments of its tokens together."""
    (predict, joint, state), _ = DECODERS[name]
    encoded = random_input(8)
    found = COMPILED[name](encoded, jnp.full(BATCH, FRAMES))
    outputs, carried = predict(state(BATCH), jnp.zeros(BATCH, jnp.int32))
    predictions = [outputs]
    step = jax.jit(predict)
    for u in range(found.tokens.shape[1]):
        outputs, carried = step(carried, found.tokens[:, u])
        predictions.append(outputs)
    logits = joint(encoded[:, :, None], jnp.stack(predictions, axis=1)[:, None])
    loss = jax.jit(transducer_loss)(logits, found.tokens, jnp.full(BATCH, FRAMES), found.lengths)
    assert np.all(found.scores <= -loss + 1e-4)
    assert np.all(found.scores > -loss - 30)


def test_a_joint_that_reads_the_symbol_off_the_encoding():
    wanted = [3, 0, 2, 0, 0, 5]
    encoded = 50.0 * jax.nn.one_hot(jnp.asarray([wanted]), VOCAB)

    def predict(state, labels):
        return state, state

    def joint(frame, outputs):
        return frame

    found = greedy_decode(
        predict,
        joint,
        jnp.zeros((1, 1)),
        encoded,
        jnp.asarray([len(wanted)]),
        max_symbols_per_frame=1,
        max_labels=8,
    )
    assert found.tokens[0, :3].tolist() == [3, 2, 5] and found.lengths.tolist() == [3]
    assert found.frames[0, :3].tolist() == [0, 2, 5]
    # Six certain symbols, and three blanks that the cap forces at -50 nats each.
    np.testing.assert_allclose(found.scores, [-150.0], rtol=1e-5)


def test_wrong_arguments():
    predict, joint, state = toy(0)
    with pytest.raises(ValueError, match="at least 1, not 0 and 4"):
        greedy_decode(
            predict, joint, state(1), jnp.zeros((1, 3, FEATURES)), jnp.ones(1, int), max_labels=0
        )
    with pytest.raises(ValueError, match="frame_lengths"):
        greedy_decode(
            predict, joint, state(1), jnp.zeros((1, 3, FEATURES)), jnp.ones(2, int), max_labels=5
        )
    with pytest.raises(ValueError, match="window must be at least 1, not 0"):
        greedy_decode(
            predict,
            joint,
            state(1),
            jnp.zeros((1, 3, FEATURES)),
            jnp.ones(1, int),
            max_labels=5,
            window=0,
        )


def test_the_blank_wins_a_tie_wherever_it_stands():
    for blank_id in (0, VOCAB - 1):
        found = greedy_decode(
            lambda state, labels: (state, state),
            lambda frame, outputs: jnp.zeros((len(frame), VOCAB)),
            jnp.zeros((1, 1)),
            jnp.zeros((1, 3, FEATURES)),
            jnp.asarray([3]),
            max_labels=5,
            blank_id=blank_id,
        )
        assert found.lengths.tolist() == [0]
        np.testing.assert_allclose(found.scores, [-3 * np.log(VOCAB)], rtol=1e-6)
