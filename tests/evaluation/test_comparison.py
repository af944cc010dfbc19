"""Two recognisers on one test set, against word errors counted by hand."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from maestro_jax.errors import UserError
from maestro_jax.evaluation.comparison import (
    PairedComparison,
    compare,
    randomised_differences,
)
from maestro_jax.evaluation.evaluate import score
from maestro_jax.evaluation.predictions import Prediction
from maestro_jax.scoring.metrics import get_metric

REFERENCES = ("ena dva tri", "štiri pet", "šest sedem osem devet", "deset")
OURS = ("ena dva tri", "štiri", "šest sedem osem devet", "deset")
THEIRS = ("ena", "pet štiri pet", "nič", "Deset.")
# By hand: insertions, deletions and substitutions of each utterance.
OUR_ERRORS, THEIR_ERRORS, WORDS = (0, 1, 0, 0), (2, 1, 4, 0), (3, 2, 4, 1)


def predictions(hypotheses: tuple[str, ...]) -> list[Prediction]:
    return [
        Prediction(id=f"u{i}", language="sl", reference=reference, hypothesis=hypothesis)
        for i, (reference, hypothesis) in enumerate(zip(REFERENCES, hypotheses, strict=True))
    ]


def pair(first: tuple[str, ...], second: tuple[str, ...], **options) -> PairedComparison:
    """Compares two models on one language."""
    result = compare(predictions(first), predictions(second), **options)
    [row] = result.rows
    assert result.average == dataclasses.replace(row, name="average")
    return row


def test_rates_and_ratio() -> None:
    [row] = compare(predictions(OURS), predictions(THEIRS)[::-1]).rows
    assert (row.name, row.metric, row.utterances) == ("sl", "wer", 4)
    assert row.score == pytest.approx(100 * sum(OUR_ERRORS) / sum(WORDS))
    assert row.baseline_score == pytest.approx(100 * sum(THEIR_ERRORS) / sum(WORDS))
    assert row.difference == pytest.approx(-60.0)
    assert row.ratio == pytest.approx(sum(OUR_ERRORS) / sum(THEIR_ERRORS))
    assert row.model_is_better and not row.significant


def test_the_interval_draws_the_same_utterances_for_both() -> None:
    # Where one model always makes half of the other's errors, no draw says anything else.
    half = [
        Prediction(id=f"u{i}", language="sl", reference="a b c d", hypothesis="a b c")
        for i in range(9)
    ]
    whole = [
        Prediction(id=f"u{i}", language="sl", reference="a b c d", hypothesis="a b")
        for i in range(9)
    ]
    assert compare(half, whole).average.ratio_interval == pytest.approx((0.5, 0.5))
    row = pair(OURS, THEIRS, bootstrap_samples=10_000)
    rng = np.random.default_rng(7)
    draws = rng.integers(4, size=(20000, 4))
    words = np.asarray(WORDS)[draws].sum(1)
    ours, theirs = np.asarray(OUR_ERRORS)[draws].sum(1), np.asarray(THEIR_ERRORS)[draws].sum(1)
    ratios = ours[theirs > 0] / theirs[theirs > 0]
    expected = {
        "interval": 100 * ours / words,
        "baseline_interval": 100 * theirs / words,
        "difference_interval": 100 * (ours - theirs) / words,
        "ratio_interval": ratios,
    }
    for name, values in expected.items():
        ends = np.percentile(values, [2.5, 97.5])
        assert getattr(row, name) == pytest.approx(tuple(ends), rel=0.05), name
    assert pair(OURS, THEIRS, bootstrap_samples=0).ratio_interval is None


def test_randomisation_agrees_with_all_assignments() -> None:
    # Each of the 2^4 ways of exchanging the outputs of the four utterances.
    ours, theirs = np.asarray(OUR_ERRORS), np.asarray(THEIR_ERRORS)
    reached = 0
    for exchanged in itertools.product((False, True), repeat=4):
        difference = np.where(exchanged, theirs - ours, ours - theirs).sum()
        reached += abs(difference) >= abs((ours - theirs).sum())
    assert 2 <= reached < 16
    row = pair(OURS, THEIRS, randomisations=20_000, bootstrap_samples=0)
    assert row.randomisation_p_value == pytest.approx(reached / 16, abs=0.02)
    assert row.bootstrap_p_value is None
    assert pair(OURS, THEIRS, randomisations=0).randomisation_p_value is None


def test_equal_models_do_not_differ() -> None:
    row = pair(THEIRS, THEIRS)
    assert (row.difference, row.bootstrap_p_value, row.randomisation_p_value) == (0.0, 1.0, 1.0)
    assert not row.significant and not row.model_is_better


def translations(seed: int, errors: float, count: int = 60) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    references = [" ".join(rng.choice(list("abcdefgh"), 12)) for _ in range(count)]
    rng = np.random.default_rng(seed)
    hypotheses = [
        " ".join(word if rng.random() > errors else "x" for word in text.split())
        for text in references
    ]
    return references, hypotheses


def test_bleu_agrees_with_sacrebleu(monkeypatch: pytest.MonkeyPatch) -> None:
    references, first = translations(1, 0.30)
    _, second = translations(2, 0.25)
    monkeypatch.setenv("SACREBLEU_SEED", "12345")
    results = {}
    for test in ("ar", "bs"):
        systems = [("baseline", first), ("model", second)]
        paired = PairedTest(systems, {"bleu": BLEU()}, [references], test, n_samples=4000)
        results[test] = paired()[1]["BLEU"]
    sides = [
        [
            Prediction(
                id=f"{i:03d}",
                language="de",
                target_language="en",
                reference=reference,
                hypothesis=hypothesis,
            )
            for i, (reference, hypothesis) in enumerate(zip(references, hypotheses, strict=True))
        ]
        for hypotheses in (second, first)
    ]
    [row] = compare(*sides, seed=12345, bootstrap_samples=4000, randomisations=4000).rows
    assert row.metric == "bleu" and row.higher_is_better
    assert row.baseline_score == pytest.approx(results["bs"][0].score)
    assert row.score == pytest.approx(results["bs"][1].score)
    assert 0.005 < results["ar"][1].p_value < 0.2
    assert row.randomisation_p_value == pytest.approx(results["ar"][1].p_value, abs=0.02)
    # The same assignments from the same seed.
    statistics = [
        get_metric("bleu").statistics(references, texts, "en") for texts in (second, first)
    ]
    draws = randomised_differences(get_metric("bleu"), *statistics, samples=4000, seed=12345)
    reached = np.sum(np.abs(draws) >= abs(row.difference) - 1e-9)
    assert (reached + 1) / 4001 == pytest.approx(results["ar"][1].p_value, abs=1e-3)
    low, high = row.interval
    assert (high - low) / 2 == pytest.approx(results["bs"][1].ci, rel=0.06)
    # sacreBLEU counts one of two sides, where no draw changes the sign.
    assert row.bootstrap_p_value == pytest.approx(2 * results["bs"][1].p_value, rel=0.3)


def test_averages_draw_within_each_language() -> None:
    rng = np.random.default_rng(3)
    sides: tuple[list[Prediction], list[Prediction]] = ([], [])
    errors: dict[str, np.ndarray] = {}
    for language, count in (("de", 30), ("sl", 10)):
        # [utterances, models]: how many of the ten words are wrong.
        errors[language] = rng.integers(0, 6, size=(count, 2))
        for i, both in enumerate(errors[language]):
            for side, wrong in zip(sides, both, strict=True):
                words = " ".join("ab"[int(place < wrong)] for place in range(10))
                side.append(
                    Prediction(
                        id=f"{i:02d}", language=language, reference="a " * 10, hypothesis=words
                    )
                )
    result = compare(*sides, bootstrap_samples=4000)
    rates = {language: 10.0 * counts.mean(axis=0) for language, counts in errors.items()}
    average = np.mean(list(rates.values()), axis=0)
    assert [row.name for row in result.rows] == ["de", "sl"]
    assert result.average.utterances == 40
    assert (result.average.score, result.average.baseline_score) == pytest.approx(tuple(average))
    draws = np.zeros((20_000, 2))
    rng = np.random.default_rng(11)
    for counts in errors.values():
        draws += 5.0 * counts[rng.integers(len(counts), size=(20_000, len(counts)))].mean(axis=1)
    for interval, values in (
        (result.average.interval, draws[:, 0]),
        (result.average.difference_interval, draws[:, 0] - draws[:, 1]),
    ):
        assert interval == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=0.4)


def test_other_utterances_are_refused() -> None:
    names = ("run1", "run2")
    with pytest.raises(UserError, match=r"run2 lacks 1 of 4 utterances \(sl 'u0'\)"):
        compare(predictions(OURS), predictions(THEIRS)[1:], names=names)
    with pytest.raises(UserError, match="no predictions of run1 and of run2"):
        compare([], [], names=names)
    changed = predictions(THEIRS)
    changed[3] = dataclasses.replace(changed[3], reference="enajst")
    with pytest.raises(UserError, match="1 references differ, as of sl 'u3': 'deset' and 'enajst'"):
        compare(predictions(OURS), changed, names=names)


def test_each_language_has_its_own_metric() -> None:
    def said(hypothesis: str, language: str = "ja") -> list[Prediction]:
        return [
            Prediction(id="u", language=language, reference="今日は暑い", hypothesis=hypothesis)
        ]

    result = compare(
        [*said("今日も暑い"), *said("今日も暑い", "de")],
        [*said("明日も暑い"), *said("今日は暑い", "de")],
        bootstrap_samples=0,
    )
    assert [(row.name, row.metric) for row in result.rows] == [("de", "wer"), ("ja", "cer")]
    assert [(row.score, row.baseline_score) for row in result.rows] == [(100.0, 0.0), (20.0, 40.0)]
    assert (result.average.metric, result.average.score) == ("error_rate", 60.0)
    with pytest.raises(UserError, match="'bleu' does not score transcripts"):
        compare(said("x"), said("x"), metric="bleu")


def test_rows_of_a_suite_are_test_sets() -> None:
    # Two test sets of one language share an id.
    tasks = {"b_task": "B", "a_task": "A"}
    sides = [
        [
            Prediction(id="u", language="en", reference="a b", hypothesis=text, task=task)
            for task, text in zip(tasks, texts, strict=True)
        ]
        for texts in (("a b", "a"), ("a", "x y"))
    ]
    result = compare(*sides, rows=tasks)
    assert [(row.name, row.score, row.baseline_score) for row in result.rows] == [
        ("B", 0.0, 50.0),
        ("A", 50.0, 100.0),
    ]
    assert result.average.difference == -50.0


def test_intervals_are_those_of_score_tables() -> None:
    both = [
        *predictions(OURS),
        *(dataclasses.replace(p, language="de") for p in predictions(THEIRS)),
    ]
    rows = score(both, kind="asr", name="toy").rows
    compared = compare(both, both).rows
    assert [row.interval for row in compared] == [row.primary.interval for row in rows]


def test_blocks_are_drawn_and_exchanged_together() -> None:
    """Two copies of every utterance tell no more than one, unless they are drawn one by one."""

    def spoken(number: int, hypothesis: str) -> Prediction:
        return Prediction(id=f"{number}", language="sl", reference="a b c", hypothesis=hypothesis)

    ours = [spoken(i, "a b x" if i % 3 else "a b c") for i in range(40)]
    theirs = [spoken(i, "a x x" if i % 4 else "a b c") for i in range(40)]

    def twice(predictions):
        return [
            dataclasses.replace(each, id=f"{each.id}/{copy}")
            for each in predictions
            for copy in range(2)
        ]

    once = compare(ours, theirs, randomisations=500).average
    blocks = compare(
        twice(ours), twice(theirs), randomisations=500, blocks=lambda p: p.id.partition("/")[0]
    ).average
    apart = compare(twice(ours), twice(theirs), randomisations=500).average
    assert blocks.utterances == 80
    assert blocks.score == apart.score == once.score

    def width(interval):
        return interval[1] - interval[0]

    # The order of blocks is another one than that of utterances, so the draws are.
    assert width(blocks.difference_interval) == pytest.approx(
        width(once.difference_interval), rel=0.2
    )
    assert width(apart.difference_interval) < 0.8 * width(once.difference_interval)
