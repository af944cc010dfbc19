"""The beam search against every path of small lattices, and against slow searches in float64."""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from table_transducer import TableTransducer, listed

from maestro_jax.decoding.beam import beam_decode
from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.greedy import greedy_decode
from maestro_jax.decoding.ngram import NgramLm

WIDE = 20  # More than the 15 label sequences of the lattices that are enumerated.


def search(transducer, frame_lengths, **options):
    predict, joint, state = transducer.networks
    options = {"max_labels": 3, "max_symbols_per_frame": 99} | options
    return jax.jit(
        lambda encoded, lengths: beam_decode(
            predict,
            joint,
            state,
            encoded,
            lengths,
            blank_id=transducer.blank_id,
            hat=transducer.hat,
            one_label_per_frame=transducer.one_label_per_frame,
            **options,
        ),
    )(transducer.encoded, jnp.asarray(frame_lengths, jnp.int32))


def likelihoods(transducer, row, frames, max_labels):
    """Label sequence to log-likelihood, over every path."""
    sums: dict = {}
    for labels, score, _ in transducer.paths(row, frames, max_labels):
        sums[labels] = float(np.logaddexp(sums.get(labels, -math.inf), score))
    return sums


KINDS = {
    "softmax": {},
    "hat, blank last": {"hat": True, "blank_id": 2},
    "one label a frame": {"one_label_per_frame": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_beam_that_holds_everything_finds_every_likelihood(kind):
    transducer = TableTransducer.random(1, batch=3, **KINDS[kind])
    lengths = (4, 2, 0)
    found = search(transducer, lengths, beam_size=WIDE)
    for row, frames in enumerate(lengths):
        want = likelihoods(transducer, row, frames, 3)
        best_path = {}
        for labels, score, emissions in transducer.paths(row, frames, 3):
            if score > best_path.get(labels, (-math.inf,))[0]:
                best_path[labels] = score, emissions
        places = int(np.sum(found.scores[row] > -np.inf))
        assert places == len(want)
        for place in range(places):
            tokens, on_frames, token_scores = listed(found, row, place)
            np.testing.assert_allclose(found.scores[row, place], want.pop(tokens), rtol=2e-6)
            emissions = best_path[tokens][1]
            assert on_frames == [frame for frame, _ in emissions]
            np.testing.assert_allclose(token_scores, [gain for _, gain in emissions], rtol=1e-5)
        assert not want
        assert np.all(np.diff(found.scores[row, :places]) <= 0)
        np.testing.assert_array_equal(found.fused_scores[row], found.scores[row])
        assert not np.any(found.lengths[row, places:])
        assert np.all(found.tokens[row, places:] == transducer.blank_id)


@pytest.mark.parametrize(
    ("kind", "beam_size"), [*((kind, 3) for kind in KINDS), ("softmax", 2), ("softmax", 5)]
)
def test_a_narrow_beam_is_the_slow_search(kind, beam_size):
    transducer = TableTransducer.random(2, batch=6, frames=5, **KINDS[kind])
    found = search(transducer, [5, 5, 4, 3, 1, 5], beam_size=beam_size)
    for row, frames in enumerate([5, 5, 4, 3, 1, 5]):
        want = transducer.beam_search(row, frames, 3, beam_size)
        for place, (labels, score) in enumerate(want):
            assert listed(found, row, place)[0] == labels
            np.testing.assert_allclose(found.scores[row, place], score, rtol=2e-6)
        assert np.sum(found.scores[row] > -np.inf) == len(want)


def test_hypotheses_are_added_up_before_the_beam_is_pruned():
    """Many seeds in one batch: where pruning first would find another winner, ours is right."""
    transducer = TableTransducer.random(3, batch=200, frames=4, scale=0.7)
    found = search(transducer, [4] * 200, beam_size=2)
    differ = 0
    for row in range(200):
        ours = transducer.beam_search(row, 4, 3, 2)[0]
        pruned_first = transducer.beam_search(row, 4, 3, 2, merge_first=False)[0]
        if ours[0] != pruned_first[0]:
            differ += 1
            assert listed(found, row, 0)[0] == ours[0]
            np.testing.assert_allclose(found.scores[row, 0], ours[1], rtol=2e-6)
    assert differ >= 5


def test_the_sum_of_paths_wins_over_the_best_path():
    """One frame says nothing of when the label comes: two paths of 0.3 each beat one of 0.4."""
    p = np.full((1, 2, 9, 3), 1e-9)
    p[0, 0, 0] = [0.7, 0.3, 1e-9]
    p[0, 1, 0] = [0.4 / 0.7, 0.3 / 0.7, 1e-9]
    p[0, :, 1] = [1.0, 1e-9, 1e-9]
    transducer = TableTransducer(np.log(p).astype(np.float32))
    found = search(transducer, [2], beam_size=2, max_labels=1)
    assert listed(found, 0, 0)[0] == (1,) and listed(found, 0, 1)[0] == ()
    np.testing.assert_allclose(np.exp(found.scores[0]), [0.6, 0.4], rtol=1e-5)
    predict, joint, state = transducer.networks
    greedy = greedy_decode(
        predict, joint, state, transducer.encoded, jnp.asarray([2]), max_labels=1
    )
    assert greedy.lengths[0] == 0


def table_lm(seed, vocab=3, sentences=6):
    rng = np.random.default_rng(seed)
    texts = [rng.integers(1, vocab, size=rng.integers(1, 4)).tolist() for _ in range(sentences)]
    return NgramLm.estimate(texts, vocab_size=vocab, order=2)


def fused_addition(transducer, fusion, row=0):
    """What fusion adds to a label sequence, from the model's tables; `ended` adds the end."""

    def extra(labels, ended):
        total, state = 0.0, fusion.lm.initial_state(1)
        for context in range(len(labels) + 1):
            last = labels[context - 1] if context else transducer.blank_id
            scores, state = fusion.lm.score(state, jnp.asarray([last]))
            if context < len(labels):
                total += fusion.weight * float(scores[0, labels[context]]) + fusion.length_bonus
            elif ended:
                total += fusion.weight * float(scores[0, transducer.blank_id])
        return total

    return functools.cache(extra)


@pytest.mark.parametrize(("kind", "bonus"), [("softmax", 0.0), ("one label a frame", 0.8)])
def test_fusion_against_every_path(kind, bonus):
    transducer = TableTransducer.random(4, batch=3, **KINDS[kind])
    fusion = Fusion(lm=table_lm(0), weight=0.9, length_bonus=bonus)
    lengths = (4, 3, 0)
    found = search(transducer, lengths, beam_size=WIDE, fusion=fusion)
    moved = 0
    extra = fused_addition(transducer, fusion)
    for row, frames in enumerate(lengths):
        want = likelihoods(transducer, row, frames, 3)
        assert np.sum(found.scores[row] > -np.inf) == len(want)
        for place in range(len(want)):
            tokens, _, _ = listed(found, row, place)
            np.testing.assert_allclose(found.scores[row, place], want[tokens], rtol=3e-6)
            fused = want[tokens] + extra(tokens, True)
            np.testing.assert_allclose(found.fused_scores[row, place], fused, rtol=3e-6)
        best = max(want, key=lambda labels: want[labels] + extra(labels, True))
        assert listed(found, row, 0)[0] == best
        moved += best != max(want, key=want.get)
    assert moved


@pytest.mark.parametrize("beam_size", [1, 3])
def test_fusion_drives_a_narrow_beam(beam_size):
    transducer = TableTransducer.random(5, batch=12, frames=4)
    fusion = Fusion(lm=table_lm(1), weight=1.2, length_bonus=0.1)
    found = search(transducer, [4] * 12, beam_size=beam_size, fusion=fusion)
    extra = fused_addition(transducer, fusion)
    for row in range(12):
        want = transducer.beam_search(row, 4, 3, beam_size, extra=extra)
        for place, (labels, score) in enumerate(want):
            assert listed(found, row, place)[0] == labels
            np.testing.assert_allclose(found.scores[row, place], score, rtol=3e-6)


@pytest.mark.parametrize("encoder", ["zero", "mean"])
@pytest.mark.parametrize("hat", [True, False])
def test_an_internal_language_model_is_subtracted(hat, encoder):
    """This toy's joint network adds logits of frame and label: without frames, it has the labels'.

    HAT (Variani et al. 2020) and ILME (Meng et al. 2021) have nothing in the encoder's place, Zeyer
    et al. 2021 the mean of its output. The blank is not among what the internal model may say.
    """
    rng = np.random.default_rng(6)
    of_label = rng.normal(size=(5, 4)).astype(np.float32)
    frames = rng.normal(size=(1, 4, 4)).astype(np.float32)
    # The last frame is padding.
    of_label_alone = of_label + (frames[0, :3].mean(axis=0) if encoder == "mean" else 0.0)
    run = functools.partial(
        beam_decode,
        lambda state, labels: (jnp.asarray(of_label)[labels], state),
        lambda frame, outputs: frame + outputs,
        (),
        jnp.asarray(frames),
        jnp.asarray([3]),
        max_labels=2,
        max_symbols_per_frame=9,
        hat=hat,
        beam_size=14,
    )
    fusion = Fusion(internal_weight=0.7, internal_encoder=encoder)
    plain, subtracted = jax.jit(lambda: (run(), run(fusion=fusion)))()
    scores = {listed(plain, 0, i)[0]: float(plain.scores[0, i]) for i in range(13)}
    assert len(scores) == 13
    for place in range(13):
        tokens, _, _ = listed(subtracted, 0, place)
        np.testing.assert_allclose(subtracted.scores[0, place], scores[tokens], rtol=3e-6)
        internal = sum(
            of_label_alone[a, b] - np.logaddexp.reduce(of_label_alone[a, 1:])
            for a, b in zip((0, *tokens), tokens, strict=False)
        )
        want = scores[tokens] - 0.7 * internal
        np.testing.assert_allclose(subtracted.fused_scores[0, place], want, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="choose one of zero, mean"):
        Fusion(internal_encoder="none")


@pytest.mark.parametrize(
    ("kind", "cap", "max_labels"), [*((kind, 2, 6) for kind in KINDS), ("softmax", 9, 2)]
)
def test_a_beam_of_one_is_the_greedy_search(kind, cap, max_labels):
    lengths = jnp.asarray([7, 0, 3, 7, 1, 5])
    transducer = TableTransducer.random(7, batch=6, frames=7, labels=6, bias=-0.5, **KINDS[kind])
    predict, joint, state = transducer.networks
    options = {
        "max_labels": max_labels,
        "max_symbols_per_frame": cap,
        "blank_id": transducer.blank_id,
        "hat": transducer.hat,
        "one_label_per_frame": transducer.one_label_per_frame,
    }
    greedy, beam = jax.jit(
        lambda encoded: (
            greedy_decode(predict, joint, state, encoded, lengths, **options),
            beam_decode(predict, joint, state, encoded, lengths, beam_size=1, **options),
        ),
    )(transducer.encoded)
    for name, want, got in zip(greedy._fields, greedy, beam, strict=True):
        np.testing.assert_allclose(got[:, 0], want, rtol=1e-5, atol=1e-6, err_msg=name)
    assert np.any(greedy.truncated) or max_labels > 2
    assert np.sum(greedy.lengths) > 4


@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(0, 6), min_size=3, max_size=3),
    bias=st.sampled_from([-2.0, 0.0, 2.0]),
)
def test_a_batch_is_its_examples(seed, lengths, bias):
    """Alone, without the padding that others need, each row gives the same tokens and frames."""
    transducer = TableTransducer.random(seed, batch=3, frames=6, labels=4, bias=bias)
    whole = COMPILED(transducer.logits, jnp.asarray(lengths))
    for row, length in enumerate(lengths):
        frames = 3 if length <= 3 else 6
        alone = COMPILED(transducer.logits[row : row + 1, :frames], jnp.asarray([length]))
        for name, a, b in zip(whole._fields, whole, alone, strict=True):
            np.testing.assert_allclose(a[row], b[0], rtol=1e-6, atol=1e-6, err_msg=name)
        alive = np.asarray(whole.scores[row]) > -np.inf
        assert alive[0]
        found = [listed(whole, row, place) for place in np.flatnonzero(alive)]
        assert len({tokens for tokens, _, _ in found}) == len(found)
        for _, on_frames, token_scores in found:
            assert on_frames == sorted(on_frames) and all(0 <= t < length for t in on_frames)
            assert all(score <= 0 for score in token_scores)


def _decode_logits(logits, lengths):
    transducer = TableTransducer(logits)  # Traced: the table is an argument.
    batch, frames, codes, vocab = logits.shape
    table = logits.reshape(batch * frames, codes, vocab)
    predict, _, _ = TableTransducer(np.zeros(logits.shape)).networks
    return beam_decode(
        predict,
        lambda frame, outputs: table[frame[:, 0].astype(int), outputs[:, 0]],
        {"code": jnp.zeros(batch, jnp.int32)},
        transducer.encoded,
        lengths,
        beam_size=3,
        max_labels=4,
        max_symbols_per_frame=2,
    )


COMPILED = jax.jit(_decode_logits)


def test_a_shape_is_traced_once():
    traces = []

    @jax.jit
    def decode(logits, lengths):
        traces.append(logits.shape)
        return _decode_logits(logits, lengths)

    for seed, batch in [(0, 2), (1, 2), (2, 4), (3, 2)]:
        logits = TableTransducer.random(seed, batch=batch, labels=4).logits
        decode(logits, jnp.arange(batch) + 1)
    assert [shape[0] for shape in traces] == [2, 4]


def test_padding_never_matters():
    rng = np.random.default_rng(8)
    encoded = rng.normal(size=(3, 6, 4)).astype(np.float32)
    lengths = jnp.asarray([2, 6, 0])
    label = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
    run = jax.jit(
        lambda encoded: beam_decode(
            lambda state, labels: (label[labels] + 0.5 * state, label[labels]),
            lambda frame, outputs: 2 * frame + outputs,
            jnp.zeros((3, 4)),
            encoded,
            lengths,
            beam_size=3,
            max_labels=5,
        ),
    )
    clean = run(encoded)
    padding = np.arange(6)[None, :, None] >= np.asarray(lengths)[:, None, None]
    for value in (100.0, np.nan):
        for got, want in zip(run(np.where(padding, value, encoded)), clean, strict=True):
            np.testing.assert_array_equal(got, want)
    assert clean.scores[2].tolist() == [0.0, -np.inf, -np.inf]
    assert not np.any(clean.lengths[2])


def test_ties_go_to_the_blank_then_to_the_lower_token():
    transducer = TableTransducer(np.zeros((1, 1, 81, 3), np.float32))
    found = search(transducer, [1], beam_size=4, max_labels=1)
    assert [listed(found, 0, place)[0] for place in range(3)] == [(), (1,), (2,)]


def test_no_room_is_marked_and_scored():
    transducer = TableTransducer.random(9, batch=1, frames=4, labels=3, bias=-4.0)
    found = search(transducer, [4], beam_size=2, max_labels=2)
    assert np.all(found.truncated[0]) and found.lengths[0].tolist() == [2, 2]
    want = likelihoods(transducer, 0, 4, 2)
    assert float(found.scores[0, 0]) <= want[listed(found, 0, 0)[0]] + 1e-4
    roomy = search(TableTransducer.random(9, batch=1, bias=4.0), [4], beam_size=2)
    assert not np.any(roomy.truncated)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (CPU) devices")
def test_a_split_batch_stays_split():
    """No frame and no hypothesis goes to another device; the only reduction is of a boolean."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    rng = np.random.default_rng(10)
    encoded = rng.normal(size=(16, 11, 4)).astype(np.float32)
    lengths = rng.integers(0, 12, size=16).astype(np.int32)
    label = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
    fusion = Fusion(lm=table_lm(2, vocab=4), weight=0.5)

    def decode(encoded, lengths):
        return beam_decode(
            lambda state, labels: (label[labels] + 0.5 * state, label[labels]),
            lambda frame, outputs: 2 * frame + outputs,
            jnp.zeros((16, 4)),
            encoded,
            lengths,
            beam_size=4,
            max_labels=8,
            fusion=fusion,
        )

    alone = jax.jit(decode)(encoded, lengths)
    with jax.set_mesh(mesh):
        given_ = jax.device_put((encoded, lengths), rows)
        split = jax.jit(decode, in_shardings=(rows, rows))
        compiled = split.lower(*given_).compile()
        found = compiled(*given_)
    for name, want, got in zip(alone._fields, alone, found, strict=True):
        assert got.sharding.is_equivalent_to(rows, got.ndim), name
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6, err_msg=name)
    text = compiled.as_text()
    assert "all-gather" not in text and "all-to-all" not in text
    assert "collective-permute" not in text
    reduced = re.findall(r"= (\S+) all-reduce(?:-start)?\(", text)
    assert reduced and all(shape.startswith("pred[]") for shape in reduced)


def test_wrong_arguments():
    predict, joint, state = TableTransducer.random(0).networks
    frames = jnp.zeros((2, 3, 1))

    def run(**options):
        lengths = jnp.ones(2, int)
        jax.eval_shape(lambda: beam_decode(predict, joint, state, frames, lengths, **options))

    with pytest.raises(ValueError, match="beam_size must be at least 1, not 0"):
        run(beam_size=0, max_labels=2)
    with pytest.raises(ValueError, match="at least 1, not 0 and 4"):
        run(beam_size=2, max_labels=0)
    with pytest.raises(ValueError, match="must not be negative"):
        Fusion(weight=-1.0)
    with pytest.raises(ValueError, match="blank_id 7"):
        run(beam_size=2, max_labels=2, blank_id=7)
