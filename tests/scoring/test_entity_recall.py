"""Recall of phrases against counts by hand."""

from __future__ import annotations

import math

import numpy as np

from maestro_jax.scoring.entity_recall import EntityRecall
from maestro_jax.scoring.metrics import compute_score


def test_phrases_are_whole_words_and_count_as_often_as_they_stand_there():
    metric = EntityRecall(["Anna Müller", "Bern", "bern", "nowhere"])
    references = ["Anna Müller, from Bern.", "Bern, Bern and Bern", "the berne convention", ""]
    hypotheses = ["anna mueller from bern", "bern bern", "bern bern", "anna müller"]
    counted = metric.statistics(references, hypotheses, "en")
    np.testing.assert_array_equal(counted, [[2, 1], [3, 2], [0, 0], [0, 0]])
    score = compute_score(metric, references, hypotheses, language="en")
    assert score.value == 100 * 3 / 5
    assert score.counts == {"phrases": 5, "found": 3}
    assert score.interval[0] < 60 <= score.interval[1]


def test_without_spaces_phrases_are_characters():
    metric = EntityRecall(["東京"])
    counted = metric.statistics(["私は東京に 東 京へ"], ["東京"], "ja")
    np.testing.assert_array_equal(counted, [[2, 1]])


def test_nothing_to_recall_is_no_number():
    score = compute_score(EntityRecall(["Bern"]), ["Basel"], ["Bern"], language="de")
    assert math.isnan(score.value) and score.interval is None
