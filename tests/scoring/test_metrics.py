"""Error rates against brute force, BLEU against arithmetic by hand; a metric of one's own."""

import functools
import json
import math
import random
import subprocess
import sys

import jiwer
import numpy as np
import pytest
import sacrebleu.significance
from sacrebleu.metrics import BLEU, CHRF

from maestro_jax.errors import UserError
from maestro_jax.evaluation.comparison import compare
from maestro_jax.evaluation.evaluate import score
from maestro_jax.evaluation.predictions import Prediction
from maestro_jax.evaluation.score_table import ScoreTable
from maestro_jax.scoring import metrics
from maestro_jax.scoring.metrics import (
    Metric,
    bleu_tokenizer,
    bootstrap_interval,
    compute_score,
    get_metric,
    metrics_of_kind,
    register_metric,
)


def scored(name, references, hypotheses, language="en", **options):
    return compute_score(get_metric(name), references, hypotheses, language=language, **options)


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
    words, characters = (
        scored(name, references, hypotheses, bootstrap_samples=0) for name in ("wer", "cer")
    )
    pairs = list(zip(references, hypotheses, strict=True))
    word_errors = sum(edit_distance(r.split(), h.split()) for r, h in pairs)
    character_errors = sum(edit_distance(r, h) for r, h in pairs)
    assert words.counts["errors"] == word_errors
    assert words.counts["words"] == sum(len(r.split()) for r in references)
    assert words.value == pytest.approx(100 * word_errors / words.counts["words"])
    assert characters.counts["errors"] == character_errors
    assert characters.counts["characters"] == sum(len(r) for r in references)
    assert characters.value == pytest.approx(100 * character_errors / sum(map(len, references)))
    # Whatever shortest edit is chosen, it accounts for the difference in length.
    surplus = sum(len(h.split()) - len(r.split()) for r, h in pairs)
    assert words.counts["insertions"] - words.counts["deletions"] == surplus


def test_counts_by_hand():
    # "oh" is lost, "fox" is heard as "box", "now" is added: no other three edits do it.
    score = scored(
        "wer",
        ["oh the quick red fox jumps"],
        ["the quick red box jumps now"],
        bootstrap_samples=0,
    )
    assert score.counts == {
        "words": 6,
        "substitutions": 1,
        "deletions": 1,
        "insertions": 1,
        "errors": 3,
    }
    assert score.value == 50.0


def test_case_and_punctuation_are_compared_as_they_are():
    assert scored("wer", ["Hello, you"], ["hello you"], bootstrap_samples=0).value == 50.0


def test_white_space_is_one_space():
    assert scored("cer", [" a \t b\n"], ["a b"]).value == 0.0
    assert scored("wer", [" a \t b\n"], ["a b"]).counts["words"] == 2


def test_an_empty_reference_counts_insertions():
    score = scored("wer", ["", "a b c d"], ["x y", "a b c d"], bootstrap_samples=0)
    assert score.counts["insertions"] == 2
    assert score.value == 50.0


def test_rates_without_reference_words_are_defined():
    for name in ("wer", "cer"):
        silent = scored(name, ["", ""], ["", ""])
        assert silent.value == 0.0
        noisy = scored(name, [""], ["x"])
        assert noisy.value == math.inf
        nothing = scored(name, [], [])
        assert math.isnan(nothing.value) and nothing.interval is None
        for each in (silent, noisy, nothing):
            json.dumps(each.to_json(name), allow_nan=False)
        assert noisy.to_json(name)[name] is None


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 references but 1"):
        scored("wer", ["a", "b"], ["a"])
    with pytest.raises(ValueError, match="1 references but 0"):
        scored("bleu", ["a"], [])


def test_interval_holds_the_point_and_is_reproducible():
    references, hypotheses = random_sentences(3, 80), random_sentences(4, 80)
    for name in ("wer", "cer"):
        score = scored(name, references, hypotheses, seed=5)
        assert score.interval[0] < score.value < score.interval[1]
        assert scored(name, references, hypotheses, seed=5) == score
        assert scored(name, references, hypotheses, seed=6).interval != score.interval


def test_interval_of_one_word_utterances_is_the_binomial_one():
    count, wrong = 900, 180
    references = ["yes"] * count
    hypotheses = ["no"] * wrong + ["yes"] * (count - wrong)
    low, high = scored("wer", references, hypotheses, bootstrap_samples=4000).interval
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
    score = scored("bleu", ["the cat sat on a mat"], ["the cat sat on the mat"])
    assert score.value == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert score.counts == {"reference_tokens": 6, "hypothesis_tokens": 6, "length_ratio": 1.0}


def test_brevity_penalty_by_hand():
    score = scored("bleu", ["the cat sat on a mat"], ["the cat sat on"])
    assert score.value == pytest.approx(100 * math.exp(1 - 6 / 4))


def test_chinese_and_japanese_are_scored_by_character():
    # 5 of 6 characters, 4 of 5, 3 of 4, 2 of 3: the last one differs.
    expected = pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    for language in ("zh", "zh-CN", "cmn_hans_cn", "yue", "ja", "th"):
        score = scored("bleu", ["猫坐在垫子上"], ["猫坐在垫子下"], language)
        assert score.value == expected
        assert "tok:char" in score.signature
    assert bleu_tokenizer("sv-SE") == "13a"


def test_perfect_and_disjoint_translations():
    texts = ["A small house, red.", "Four hundred people voted for it."]
    for name in ("bleu", "chrf"):
        perfect = scored(name, texts, texts)
        assert perfect.value == pytest.approx(100)
        assert perfect.interval == pytest.approx((100, 100))
        assert scored(name, ["aaaa bbbb cccc dddd"], ["xxxx yyyy zzzz wwww"]).value == 0.0


def test_case_counts_in_translations():
    lower = scored("bleu", ["The Commission of Europe"], ["the commission of europe"])
    assert lower.value < 50


def test_bleu_signature_is_the_published_protocol():
    signature = scored("bleu", ["a b c d"], ["a b c d"]).signature
    assert signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def translations(seed=0):
    rng = random.Random(seed)
    references = random_sentences(7, 60)
    hypotheses = [
        " ".join(word for word in text.split() if rng.random() > 0.2) for text in references
    ]
    return references, hypotheses


@pytest.mark.parametrize(("name", "scorer"), [("bleu", BLEU), ("chrf", CHRF)])
def test_score_and_interval_are_those_of_sacrebleu(name, scorer):
    references, hypotheses = translations()
    theirs = scorer()
    theirs.corpus_score(hypotheses, [references])
    signature = str(theirs.get_signature())
    expected = theirs.corpus_score(hypotheses, [references], n_bootstrap=2000)
    score = scored(name, references, hypotheses, bootstrap_samples=2000)
    assert score.value == pytest.approx(expected.score)
    low, high = score.interval
    assert low < score.value < high
    # sacreBLEU gives half of the distance between the percentiles.
    assert (high - low) / 2 == pytest.approx(expected._ci, rel=0.1)
    assert score.signature == signature


def test_paired_comparison_of_translations_is_that_of_sacrebleu():
    references, ours = translations()
    _, theirs = translations(seed=1)
    sides = [
        [
            Prediction(
                id=f"{index:02}", language="de", target_language="en", reference=r, hypothesis=h
            )
            for index, (r, h) in enumerate(zip(references, hypotheses, strict=True))
        ]
        for hypotheses in (ours, theirs)
    ]
    test = sacrebleu.significance.PairedTest(
        [("baseline", theirs), ("ours", ours)], {"BLEU": BLEU()}, [references], n_samples=2000
    )
    results = test()[1]["BLEU"]
    [result] = compare(*sides, bootstrap_samples=2000, randomisations=0).rows
    assert result.metric == "bleu"
    assert (result.baseline_score, result.score) == pytest.approx(
        tuple(each.score for each in results)
    )
    assert result.bootstrap_p_value == pytest.approx(results[1].p_value, abs=0.05)
    assert result.difference_interval[0] < result.difference < result.difference_interval[1]
    [result] = compare(*sides, metric="chrf", bootstrap_samples=0, randomisations=0).rows
    assert result.score == pytest.approx(CHRF().corpus_score(ours, [references]).score)


def test_scores_are_those_of_jiwer_and_of_the_command_of_sacrebleu(tmp_path):
    """Of random texts, with repeated words and empty hypotheses, through the API and a file."""
    references, hypotheses = random_sentences(7, 200), random_sentences(8, 200)
    references = [text or "a" for text in references]
    rate = scored("wer", references, hypotheses, bootstrap_samples=0)
    assert rate.value == pytest.approx(100 * jiwer.wer(references, hypotheses), rel=1e-12)
    # A corpus on which no n-gram order is empty, in which sacreBLEU would smooth.
    references = [f"{text}, and the cat sat on a mat." for text in references]
    hypotheses = [f"{text}, and the cat sat on a Mat" for text in hypotheses]
    for name, texts in (("ref", references), ("hyp", hypotheses)):
        (tmp_path / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    output = subprocess.run(
        [sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-m", "bleu", "chrf", "-w", "6"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for theirs, name in zip(json.loads(output), ("bleu", "chrf"), strict=True):
        ours = scored(name, references, hypotheses, bootstrap_samples=0)
        assert theirs["score"] == pytest.approx(ours.value, abs=1e-6)
        assert theirs["signature"] == ours.signature


def test_bleu_bootstrap_resamples_the_corpus_score():
    # Of one utterance every draw is the corpus itself, whose BLEU needs the smoothing.
    score = scored("bleu", ["the cat sat on a mat"], ["the cat slept on it"])
    assert 0 < score.value < 50
    assert score.interval == pytest.approx((score.value, score.value))


def test_empty_translations_are_defined():
    assert scored("bleu", ["", "a house by the sea"], ["noise", ""]).value == 0.0
    nothing = scored("bleu", [], [])
    assert math.isnan(nothing.value)
    assert nothing.to_json("bleu")["bleu"] is None
    assert "tok:13a" in nothing.signature


@pytest.fixture
def registry(monkeypatch):
    """Forgets, after the test, what it registers."""
    monkeypatch.setattr(metrics, "_METRICS", dict(metrics._METRICS))


class Cased(Metric):
    """Utterances whose first letter has the wrong case, in percent."""

    name, title, unit, kinds = "cased", "case %", "percent", ("asr",)
    normalized = False

    def statistics(self, references, hypotheses, language):
        pairs = zip(references, hypotheses, strict=True)
        return [[r[:1] != h[:1], True] for r, h in pairs]

    def score(self, sums):
        return 100 * sums[0] / sums[1]


def test_a_metric_of_ones_own_is_in_tables_and_files(registry):
    register_metric(Cased)
    predictions = [
        Prediction(id=str(i), language=language, reference="Eins zwei.", hypothesis=hypothesis)
        for language, hypothesis in (("de", "eins zwei"), ("nl", "Eins zwei"))
        for i in range(2)
    ]
    evaluation = score(predictions, kind="asr", name="toy")
    # Case and punctuation are there for this metric, and normalised away for the error rates.
    assert [row.value("cased") for row in evaluation.rows] == [100.0, 0.0]
    assert [row.value("wer") for row in evaluation.rows] == [0.0, 0.0]
    page = ScoreTable(evaluation).markdown()
    header = [cell.strip() for cell in page.splitlines()[2].strip("|").split("|")]
    average = [cell.strip(" *") for cell in page.splitlines()[6].strip("|").split("|")]
    assert average[header.index("case %")] == "50.0"
    content = ScoreTable(evaluation).as_dict()
    assert content["units"]["cased"] == "percent" and content["titles"]["cased"] == "case %"
    assert content["averages"][0]["cased"] == 50.0
    assert content["rows"][0]["cased_interval"] == [100.0, 100.0]
    assert "cased" not in {metric.name for metric in metrics_of_kind("st")}
    [result] = compare(predictions[:2], predictions[:2], metric="cased").rows
    assert (result.score, result.difference) == (100.0, 0.0)
    json.dumps(content, allow_nan=False)


def test_metrics_that_cannot_be_registered_are_refused(registry):
    def variant(**attributes):
        return type("Other", (Cased,), attributes)

    register_metric(Cased)
    register_metric(Cased)  # Its module may be imported again.
    for attributes, message in (
        ({"name": "wer"}, "named 'wer' is registered by maestro_jax.scoring.metrics"),
        ({"name": "Case %"}, "cannot be named 'Case %'"),
        ({"name": "rows"}, "cannot be named 'rows'"),
        ({"title": ""}, "needs a class attribute 'title'"),
        ({"name": "other", "kinds": ("tts",)}, "has the kinds"),
        ({"name": "other", "kinds": "asr"}, "has the kinds"),
    ):
        with pytest.raises(UserError, match=message):
            register_metric(variant(**attributes))
    with pytest.raises(UserError, match="Did you mean 'cased'"):
        get_metric("caseds")


def test_what_a_metric_does_wrong_is_told_with_its_name(registry):
    class Odd(Cased):
        name = "odd"

        def statistics(self, references, hypotheses, language):
            return np.zeros(len(references)) if len(references) == 1 else 1 / 0

    with pytest.raises(UserError, match=r"metric 'odd' returned statistics of shape \(1,\)"):
        compute_score(Odd(), ["a"], ["a"])
    with pytest.raises(UserError, match="metric 'odd' failed: ZeroDivisionError"):
        compute_score(Odd(), ["a", "b"], ["a", "b"])
