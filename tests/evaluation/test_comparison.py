"""Two recognisers on one test set, against word errors counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.evaluation.comparison import compare
from maestro_jax.evaluation.predictions import Prediction

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


def test_rates_and_ratio() -> None:
    result = compare(predictions(OURS), predictions(THEIRS)[::-1])
    assert result.utterances == 4
    assert result.score == pytest.approx(100 * sum(OUR_ERRORS) / sum(WORDS))
    assert result.baseline_score == pytest.approx(100 * sum(THEIR_ERRORS) / sum(WORDS))
    assert result.ratio == pytest.approx(sum(OUR_ERRORS) / sum(THEIR_ERRORS))


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
    assert compare(half, whole).ratio_interval == pytest.approx((0.5, 0.5))
    low, high = compare(predictions(OURS), predictions(THEIRS)).ratio_interval
    rng = np.random.default_rng(7)
    draws = rng.integers(4, size=(20000, 4))
    ours, theirs = np.asarray(OUR_ERRORS)[draws].sum(1), np.asarray(THEIR_ERRORS)[draws].sum(1)
    ratios = ours[theirs > 0] / theirs[theirs > 0]
    assert low == pytest.approx(np.percentile(ratios, 2.5), abs=0.05)
    assert high == pytest.approx(np.percentile(ratios, 97.5), abs=0.15)
    assert (
        compare(predictions(OURS), predictions(THEIRS), bootstrap_samples=0).ratio_interval is None
    )


def test_other_utterances_are_refused() -> None:
    with pytest.raises(UserError, match="different test sets"):
        compare(predictions(OURS), predictions(THEIRS)[1:])
    with pytest.raises(UserError, match="different test sets"):
        compare([], [])


def test_languages_without_spaces_are_compared_by_character() -> None:
    def said(hypothesis: str, language: str = "ja") -> list[Prediction]:
        return [
            Prediction(id="u", language=language, reference="今日は暑い", hypothesis=hypothesis)
        ]

    result = compare(said("今日も暑い"), said("明日も暑い"), bootstrap_samples=0)
    assert (result.metric, result.score, result.baseline_score) == ("cer", 20.0, 40.0)
    with pytest.raises(UserError, match="scored by cer and by wer"):
        compare([*said("x"), *said("x", "de")], [*said("x"), *said("x", "de")])
