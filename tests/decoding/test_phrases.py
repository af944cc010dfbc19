"""Phrases against a search of the written text, and through every search against every path."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table_transducer import TableTransducer, listed

from maestro_jax.decoding.attention import attention_decode
from maestro_jax.decoding.beam import beam_decode
from maestro_jax.decoding.ctc import ctc_beam_search
from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.phrases import PhraseBias, parse_phrases, written_forms
from maestro_jax.errors import UserError
from maestro_jax.text.vocabularies import ByteVocabulary, train_sentencepiece

PIECES = [" ", " a", "a", "b", " ab", "ab", "ba", " b", "-", "c-", ".", " c", "c"]
PIECES += ["日", "日本", "本"]
TOKENS = [None, None, None, *(piece.encode() for piece in PIECES)]


def bonus_of(text, phrases):
    """Sums the phrases that stand in a text, wherever they do."""
    marks = "".join(sorted({c for p in phrases for c in p if not c.isalnum()} - {" "}))
    separator = f"[^\\w{re.escape(marks)}]" if marks else r"\W"
    total = 0.0
    for phrase, bonus in phrases.items():
        pattern = "".join(separator if c == " " else re.escape(c) for c in phrase)
        before = "" if phrase[0] in "日本" else r"(?<!\w)"
        after = "" if phrase[-1] in "日本" else r"(?!\w)"
        # A lookahead, so that occurrences may overlap.
        total += bonus * len(re.findall(f"{before}(?={pattern}{after})", text))
    return total


def added(bias, tokens):
    """Returns what a hypothesis has been given, token by token, and at its end."""
    state, gains = bias.initial_state(1), []
    score = jax.jit(type(bias).score)
    for last, following in zip((0, *tokens), (*tokens, 0), strict=True):
        scores, state = score(bias, state, jnp.asarray([last]))
        gains.append(float(scores[0, following]))
    return gains


@pytest.mark.parametrize("seed", range(6))
def test_what_remains_are_the_phrases_of_the_text(seed):
    """Overlapping, nested and broken-off phrases, in any pieces, beside any punctuation."""
    rng = np.random.default_rng(seed)
    alphabet = ["a", "b", "c", " ", "-", "日", "本"]
    phrases = {}
    while len(phrases) < 8:
        phrase = " ".join("".join(rng.choice(alphabet, rng.integers(1, 5))).split())
        if phrase.strip("- ") == phrase and phrase:
            phrases[phrase] = float(rng.uniform(0.5, 3))
    bias = PhraseBias.build(phrases, TOKENS)
    found = 0
    for _ in range(12):
        tokens = rng.integers(3, len(TOKENS), size=12).tolist()
        text = b"".join(TOKENS[token] for token in tokens).decode()
        want = bonus_of(text, phrases)
        gains = added(bias, tokens)
        assert sum(gains) == pytest.approx(want, abs=1e-4), text
        assert max(gains) <= bias.largest_gain + 1e-5
        found += want > 0
    assert found >= 3


def test_a_phrase_is_rewarded_on_the_way_and_taken_back():
    phrases = {"ab ab": 4.0, "ab c": 2.0}
    bias = PhraseBias.build(phrases, TOKENS)
    spell = {piece: token for token, piece in enumerate(PIECES, start=3)}
    whole = added(bias, [spell[" ab"], spell[" a"], spell["b"]])
    assert all(gain > 0 for gain in whole[:3]) and sum(whole) == pytest.approx(4.0)
    other = added(bias, [spell[" ab"], spell[" "], spell["c"]])
    assert sum(other) == pytest.approx(2.0)
    broken = added(bias, [spell[" ab"], spell[" b"]])
    assert broken[0] > 0 > broken[1] and sum(broken) == pytest.approx(0.0)
    # Within a word nothing begins; a longer word is another one.
    assert added(bias, [spell[" c"], spell["ab"]]) == [0.0, 0.0, 0.0]
    assert sum(added(bias, [spell[" ab"], spell[" c"], spell["a"]])) == pytest.approx(0.0)


def test_phrases_without_spaces_and_with_dashes():
    pieces = [" a", "–", "b", "—", "日", "本", " ", "'"]
    tokens = [None, None, None, *(piece.encode() for piece in pieces)]
    spell = {piece: token for token, piece in enumerate(pieces, start=3)}

    def bonus(phrases, *written):
        return sum(added(PhraseBias.build(phrases, tokens), [spell[piece] for piece in written]))

    # Anywhere; without phrases that begin with a word, words are nothing special.
    assert bonus({"日本": 2.0}, " a", "日", "本", "b") == pytest.approx(2.0)
    assert bonus({"日本": 2.0}, "日", " ", "本") == pytest.approx(0.0)
    # The dash of a phrase is that dash; any other one is an edge.
    assert bonus({"a–b": 3.0}, " a", "–", "b") == pytest.approx(3.0)
    assert bonus({"a–b": 3.0}, " a", "—", "b") == pytest.approx(0.0)
    assert bonus({"a": 1.0, "b": 2.0}, " a", "—", "b") == pytest.approx(3.0)
    # An apostrophe within a phrase is an edge of other phrases.
    assert bonus({"a'b": 4.0, "b": 1.0}, " a", "'", "b") == pytest.approx(5.0)


EXTRA = {"a": 1.5, "ab": 0.8, "ab a": 2.0}
SMALL = [None, b" a", b"b"]


def text_bonus(tokens, weight, offset=0):
    text = b"".join(SMALL[token - offset] for token in tokens).decode()
    return weight * bonus_of(text, EXTRA)


def test_a_transducer_s_beam_ranks_by_the_phrases():
    transducer = TableTransducer.random(11, batch=8)
    predict, joint, state = transducer.networks
    bias = PhraseBias.build(EXTRA, SMALL)
    run = functools.partial(
        beam_decode,
        predict,
        joint,
        state,
        transducer.encoded,
        jnp.full(8, 4),
        max_labels=3,
        max_symbols_per_frame=99,
        beam_size=20,
    )
    fusion = Fusion(phrases=bias, phrases_weight=0.9)
    plain, found = jax.jit(lambda: (run(), run(fusion=fusion)))()
    moved = 0
    for row in range(8):
        scores = {listed(plain, row, i)[0]: float(plain.scores[row, i]) for i in range(15)}
        fused = {text: score + text_bonus(text, 0.9) for text, score in scores.items()}
        ranked = sorted(fused, key=lambda text: -fused[text])
        for place, text in enumerate(ranked):
            assert listed(found, row, place)[0] == text
            np.testing.assert_allclose(found.fused_scores[row, place], fused[text], atol=1e-4)
            np.testing.assert_allclose(found.scores[row, place], scores[text], atol=1e-5)
        moved += ranked[0] != max(scores, key=lambda text: scores[text])
    assert moved >= 2


def test_ctc_ranks_by_the_phrases():
    logits = np.random.default_rng(4).normal(size=(3, 5, 3), scale=1.5)
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    fusion = Fusion(phrases=PhraseBias.build(EXTRA, SMALL), phrases_weight=1.1)
    run = functools.partial(
        ctc_beam_search, log_probs, jnp.asarray([5, 4, 2]), beam_size=40, max_labels=5
    )
    plain, found = jax.jit(lambda: (run(), run(fusion=fusion)))()
    for row in range(3):
        places = range(int(np.isfinite(plain.scores[row]).sum()))
        fused = {
            (text := listed(plain, row, i)[0]): float(plain.scores[row, i]) + text_bonus(text, 1.1)
            for i in places
        }
        ranked = sorted(fused, key=lambda text: -fused[text])
        for place, text in enumerate(ranked[:12]):
            assert listed(found, row, place)[0] == text
            np.testing.assert_allclose(found.fused_scores[row, place], fused[text], atol=1e-4)


def test_an_attention_decoder_ranks_by_the_phrases():
    """With room that not every text needs, a search that stops early must wait for bonuses."""
    table = jnp.asarray(np.random.default_rng(5).normal(size=(4, 4), scale=1.5), jnp.float32)
    # End of text is 1, so that the tokens are 2 and 3.
    bias = PhraseBias.build(EXTRA, [None, *SMALL])
    run = functools.partial(
        attention_decode,
        lambda tokens, position, past: (table[tokens], past),
        jnp.zeros((1, 31)),
        jnp.ones(1, bool),
        beam_size=31,
        max_labels=4,
        length_alpha=0.8,
    )
    fusion = Fusion(phrases=bias, phrases_weight=0.9)
    plain, found = jax.jit(lambda: (run(), run(fusion=fusion)))()
    fused = {}
    for place in range(31):
        text = tuple(np.asarray(plain.tokens[0, place, : plain.lengths[0, place]]).tolist())
        score = float(plain.scores[0, place]) + text_bonus(text, 0.9, offset=1)
        fused[text] = score / ((5 + len(text) + 1) / 6) ** 0.8
    ranked = sorted(fused, key=lambda text: -fused[text])
    for place, text in enumerate(ranked):
        tokens = np.asarray(found.tokens[0, place, : found.lengths[0, place]]).tolist()
        assert tuple(tokens) == text
        np.testing.assert_allclose(found.fused_scores[0, place], fused[text], atol=1e-4)


def test_a_rare_word_is_heard_in_a_greedy_search_and_a_weight_of_0_changes_nothing():
    """Two spellings of one sound: the model prefers the common one by less than the bonus."""
    tokens = [None, b" maya", b" mei", b"er", b" mai"]
    frames = np.full((1, 4, 5), -6.0, np.float32)
    frames[0, :, 0] = [0.0, 3.0, 0.0, 3.0]
    frames[0, 0, [1, 2, 4]] = [3.0, 2.0, 2.5]
    frames[0, 2, 3] = 3.0
    encoded = jnp.asarray(frames)
    run = functools.partial(
        beam_decode,
        lambda state, labels: (jnp.zeros((len(labels), 5)), state),
        lambda frame, outputs: frame + outputs,
        (),
        encoded,
        jnp.asarray([4]),
        max_labels=6,
        max_symbols_per_frame=1,
        beam_size=1,
    )
    bias = PhraseBias.build({"meier": 4.0}, tokens)
    plain, none, heard = jax.jit(
        lambda: (
            run(),
            run(fusion=Fusion(phrases=bias, phrases_weight=0.0)),
            run(fusion=Fusion(phrases=bias)),
        )
    )()
    for got, want in zip(none, plain, strict=True):
        np.testing.assert_array_equal(got, want)
    assert listed(plain, 0, 0)[0] == (1, 3)
    assert listed(heard, 0, 0)[0] == (2, 3)
    assert float(heard.fused_scores[0, 0] - heard.scores[0, 0]) == pytest.approx(4.0)


def test_bytes_of_tokens_and_forms_of_phrases(tmp_path):
    cased = train_sentencepiece(["Anna meets Müller", "they meet"], tmp_path / "c.model", 60, "bpe")
    lower = train_sentencepiece(["anna meets müller"], tmp_path / "l.model", 60, "char")
    for vocabulary in (cased, lower, ByteVocabulary()):
        written = vocabulary.token_bytes()
        ids = vocabulary.encode("anna müe")
        assert b"".join(written[i] for i in ids).decode().strip() == "anna müe"
        assert written[:3] == [None] * 3 and len(written) == vocabulary.vocab_size
    assert written_forms(" anna  müller", cased) == ["anna müller", "Anna müller"]
    assert written_forms("Anna Müller", lower) == ["anna müller"]
    assert written_forms("Žižek", lower) == []


def test_a_list_of_phrases(tmp_path):
    lines = ["Anna  Müller", "", "St. Gallen\t2.5", "Anna Müller\t3\r"]
    assert parse_phrases(lines, "names.txt") == {"Anna Müller": 3.0, "St. Gallen": 2.5}
    for lines, message in [
        (["Anna\ttwo"], "line 1 of names.txt: .* has 'two' after its tab"),
        (["Anna\t-1"], "has '-1' after its tab"),
        (["\t1"], "line 1"),
        ([" "], "there is no phrase in names.txt"),
    ]:
        with pytest.raises(UserError, match=message):
            parse_phrases(lines, "names.txt")
