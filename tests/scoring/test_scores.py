"""Error rates against a brute-force edit distance, BLEU against arithmetic by hand."""

import functools
import json
import math
import random

import numpy as np
import pytest

from maestro_jax.scoring.bootstrap import bootstrap_interval
from maestro_jax.scoring.scores import bleu_tokenizer, translation_scores, word_scores


def edit_distance(left, right):
    """The definition, with no table: delete, insert or substitute at the end."""

    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        return min(
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
            distance(i - 1, j - 1) + (left[i - 1] != right[j - 1]),
        )

    return distance(len(left), len(right))


def random_sentences(seed, count):
    rng = random.Random(seed)
    vocabulary = ["a", "an", "ant", "bee", "b", "see"]
    return [" ".join(rng.choices(vocabulary, k=rng.randint(0, 7))) for _ in range(count)]


def test_rates_agree_with_brute_force():
    references, hypotheses = random_sentences(1, 60), random_sentences(2, 60)
    scores = word_scores(references, hypotheses, bootstrap_samples=0)
    pairs = list(zip(references, hypotheses, strict=True))
    word_errors = sum(edit_distance(r.split(), h.split()) for r, h in pairs)
    character_errors = sum(edit_distance(r, h) for r, h in pairs)
    words = sum(len(r.split()) for r in references)
    characters = sum(len(r) for r in references)
    assert scores.words.errors == word_errors
    assert scores.words.reference_length == words
    assert scores.wer == pytest.approx(100 * word_errors / words)
    assert scores.characters.errors == character_errors
    assert scores.cer == pytest.approx(100 * character_errors / characters)
    # Whatever shortest edit is chosen, it accounts for the difference in length.
    hypothesis_words = sum(len(h.split()) for h in hypotheses)
    assert scores.words.insertions - scores.words.deletions == hypothesis_words - words
    assert scores.empty_references == references.count("") > 0
    assert scores.empty_hypotheses == hypotheses.count("") > 0


def test_counts_by_hand():
    # "oh" is lost, "fox" is heard as "box", "now" is added: no other three edits do it.
    scores = word_scores(
        ["oh the quick red fox jumps"], ["the quick red box jumps now"], bootstrap_samples=0
    )
    counts = scores.words
    assert (counts.substitutions, counts.deletions, counts.insertions) == (1, 1, 1)
    assert scores.wer == 50.0


def test_case_and_punctuation_are_compared_as_they_are():
    assert word_scores(["Hello, you"], ["hello you"], bootstrap_samples=0).wer == 50.0


def test_white_space_is_one_space():
    assert word_scores([" a \t b\n"], ["a b"]).cer == 0.0


def test_an_empty_reference_counts_insertions():
    scores = word_scores(["", "a b c d"], ["x y", "a b c d"], bootstrap_samples=0)
    assert scores.empty_references == 1
    assert scores.utterances == 2
    assert scores.words.insertions == 2
    assert scores.wer == 50.0


def test_rates_without_reference_words_are_defined():
    silent = word_scores(["", ""], ["", ""])
    assert silent.wer == silent.cer == 0.0
    noisy = word_scores([""], ["x"])
    assert noisy.wer == math.inf
    nothing = word_scores([], [])
    assert math.isnan(nothing.wer)
    assert nothing.wer_interval is None
    for scores in (silent, noisy, nothing):
        json.dumps(scores.to_json(), allow_nan=False)
    assert noisy.to_json()["wer"] is None


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 references but 1"):
        word_scores(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="1 references but 0"):
        translation_scores(["a"], [], "en")


def test_interval_holds_the_point_and_is_reproducible():
    references, hypotheses = random_sentences(3, 80), random_sentences(4, 80)
    scores = word_scores(references, hypotheses, seed=5)
    assert scores.wer_interval[0] < scores.wer < scores.wer_interval[1]
    assert scores.cer_interval[0] < scores.cer < scores.cer_interval[1]
    assert word_scores(references, hypotheses, seed=5) == scores
    assert word_scores(references, hypotheses, seed=6).wer_interval != scores.wer_interval


def test_interval_of_one_word_utterances_is_the_binomial_one():
    count, wrong = 900, 180
    references = ["yes"] * count
    hypotheses = ["no"] * wrong + ["yes"] * (count - wrong)
    low, high = word_scores(references, hypotheses, bootstrap_samples=4000).wer_interval
    half = 100 * 1.96 * math.sqrt(0.2 * 0.8 / count)
    assert low == pytest.approx(20 - half, abs=0.25)
    assert high == pytest.approx(20 + half, abs=0.25)


def test_bootstrap_leaves_out_undefined_draws():
    # Half of the utterances have no words: a draw of such alone has no rate.
    statistics = np.array([[1, 2], [0, 0]])
    interval = bootstrap_interval(
        statistics, lambda sums: sums[0] / sums[1] if sums[1] else math.nan, samples=50
    )
    assert interval == (0.5, 0.5)
    assert bootstrap_interval(statistics, lambda sums: math.nan, samples=5) is None


def test_bleu_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; equal length.
    scores = translation_scores(["the cat sat on a mat"], ["the cat sat on the mat"], "en")
    assert scores.bleu == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert scores.reference_length == scores.hypothesis_length == 6


def test_brevity_penalty_by_hand():
    scores = translation_scores(["the cat sat on a mat"], ["the cat sat on"], "en")
    assert scores.bleu == pytest.approx(100 * math.exp(1 - 6 / 4))


def test_chinese_and_japanese_are_scored_by_character():
    # 5 of 6 characters, 4 of 5, 3 of 4, 2 of 3: the last one differs.
    expected = pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    for language in ("zh", "zh-CN", "cmn_hans_cn", "yue", "ja", "th"):
        scores = translation_scores(["猫坐在垫子上"], ["猫坐在垫子下"], language)
        assert scores.bleu == expected
        assert "tok:char" in scores.bleu_signature
    assert bleu_tokenizer("sv-SE") == "13a"


def test_perfect_and_disjoint_translations():
    texts = ["A small house, red.", "Four hundred people voted for it."]
    perfect = translation_scores(texts, texts, "en")
    assert perfect.bleu == pytest.approx(100)
    assert perfect.chrf == pytest.approx(100)
    assert perfect.bleu_interval == pytest.approx((100, 100))
    disjoint = translation_scores(["aaaa bbbb cccc dddd"], ["xxxx yyyy zzzz wwww"], "en")
    assert disjoint.bleu == disjoint.chrf == 0.0


def test_case_counts_in_translations():
    lower = translation_scores(["The Commission of Europe"], ["the commission of europe"], "en")
    assert lower.bleu < 50


def test_bleu_signature_is_the_published_protocol():
    signature = translation_scores(["a b c d"], ["a b c d"], "en").bleu_signature
    assert signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_bleu_interval_holds_the_point():
    rng = random.Random(0)
    references = random_sentences(7, 40)
    hypotheses = [
        " ".join(word for word in text.split() if rng.random() > 0.2) for text in references
    ]
    scores = translation_scores(references, hypotheses, "en", bootstrap_samples=300)
    assert scores.bleu_interval[0] < scores.bleu < scores.bleu_interval[1]


def test_bleu_bootstrap_resamples_the_corpus_score():
    # Of one utterance every draw is the corpus itself, whose BLEU needs the smoothing.
    scores = translation_scores(["the cat sat on a mat"], ["the cat slept on it"], "en")
    assert 0 < scores.bleu < 50
    assert scores.bleu_interval == pytest.approx((scores.bleu, scores.bleu))


def test_empty_translations_are_defined_and_counted():
    scores = translation_scores(["", "a house by the sea"], ["noise", ""], "en")
    assert (scores.empty_references, scores.empty_hypotheses) == (1, 1)
    assert scores.bleu == 0.0
    nothing = translation_scores([], [], "en")
    assert math.isnan(nothing.bleu)
    assert nothing.to_json()["bleu"] is None
    assert "tok:13a" in nothing.bleu_signature
