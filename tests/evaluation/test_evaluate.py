"""Scores of languages and directions: counts, gaps, averages, what a vocabulary cannot write."""

import re
import unicodedata

import pytest

from maestro_jax.errors import UserError
from maestro_jax.evaluation.evaluate import DecodingStatistics, score
from maestro_jax.evaluation.predictions import (
    Prediction,
    merge,
    read_predictions,
    write_predictions,
)
from maestro_jax.evaluation.score_table import ScoreTable
from maestro_jax.scoring.entity_recall import EntityRecall


def spoken(id, language, reference, hypothesis=None, **fields):
    """A prediction, right if no hypothesis is given."""
    hypothesis = reference if hypothesis is None else hypothesis
    return Prediction(
        id=id, language=language, reference=reference, hypothesis=hypothesis, **fields
    )


def test_every_language_is_scored_by_itself():
    predictions = [
        spoken("fr-1", "fr", "l'eau", "l’eau"),
        spoken("de-2", "de", "eins zwei drei", "eins zwo drei"),
        spoken("de-1", "de", "Guten Tag!", "guten tag"),
    ]
    evaluation = score(predictions, kind="asr", name="toy", expected={"de": 2, "fr": 1})
    rows = {row.direction: row for row in evaluation.rows}
    assert sorted(rows) == ["de", "fr"]
    assert rows["de"].value("wer") == pytest.approx(100 / 5)
    assert rows["fr"].value("wer") == 0.0
    means, averaged = evaluation.average()
    assert means["wer"] == pytest.approx((20 + 0) / 2)
    assert [row.direction for row in averaged] == ["de", "fr"]
    assert evaluation.complete


def test_languages_that_were_heard_and_phrases_that_were_found():
    predictions = [
        spoken("1", "de", "herr meier ruft", "herr maier ruft", heard="de"),
        spoken("2", "de", "frau meier", heard="en"),
        spoken("3", "de", "meier", "", heard=""),
        spoken("4", "sl", "dober dan", heard=""),
    ]
    phrases = EntityRecall(["Meier"])
    evaluation = score(predictions, kind="asr", name="toy", extra_metrics=[phrases])
    german, slovene = evaluation.rows
    assert german.heard_accuracy == 50.0 and slovene.heard_accuracy is None
    assert german.value("entity_recall") == pytest.approx(100 / 3)
    table = ScoreTable(evaluation)
    values = table.as_dict()
    assert values["rows"][0]["heard_accuracy"] == 50.0
    assert values["rows"][0]["entity_recall_counts"] == {"phrases": 3, "found": 1}
    assert values["rows"][1]["entity_recall"] is None
    assert "Entity recall %" in table.text() and "33.3" in table.text()
    translated = Prediction(
        id="5", language="de", target_language="en", reference="a", hypothesis="a", heard="en"
    )
    (row,) = score([translated], kind="st", name="toy").rows
    assert row.heard_accuracy == 100.0


def test_translation_directions():
    predictions = [
        spoken("1", "de", "Good day, all of you!", target_language="en"),
        spoken("2", "de", "one two three four", target_language="en"),
        spoken("1", "fr", "the water of the sea", target_language="en"),
    ]
    evaluation = score(predictions, kind="st", name="toy", expected={"de": 2, "fr-en": 1})
    assert [row.direction for row in evaluation.rows] == ["de-en", "fr-en"]
    assert evaluation.complete
    assert evaluation.average()[0]["bleu"] == pytest.approx(100)


def test_several_targets_of_one_language():
    predictions = [
        spoken("1", "en", "ein Haus am See", target_language="de"),
        spoken("1", "en", "海边的房子", target_language="zh-CN"),
    ]
    evaluation = score(predictions, kind="st", name="toy")
    assert {row.direction: round(row.value("bleu")) for row in evaluation.rows} == {
        "en-de": 100,
        "en-zh-CN": 100,
    }
    signatures = [row.scores["bleu"].signature for row in evaluation.rows]
    assert "tok:13a" in signatures[0] and "tok:char" in signatures[1]


def test_repeats_are_scored_once():
    """Parts that were written before and after an interruption may overlap."""
    predictions = [
        spoken("de-1", "de", "Guten Tag!", task="t", index=0),
        spoken("de-1", "de", "Guten Tag!", "again", task="t", index=0),
        spoken("de-3", "de", "ja", "nein", task="t", index=2),
    ]
    evaluation = score(predictions, kind="asr", name="toy", expected={"de": 2})
    assert evaluation.repeats == 1
    assert evaluation.utterances == 2
    assert evaluation.rows[0].scores["wer"].counts["errors"] == 1
    assert evaluation.complete


def test_gaps_are_marked():
    predictions = [spoken("1", "de", "eins"), spoken("2", "de", "zwei")]
    evaluation = score(predictions, kind="asr", name="toy", expected={"de": 3, "sl": 4})
    assert [(row.direction, row.complete) for row in evaluation.rows] == [
        ("de", False),
        ("sl", False),
    ]
    # The absent language has no score, so it is in no average.
    assert [row.direction for row in evaluation.average()[1]] == ["de"]


def test_over_long_utterances_have_a_row_of_their_own():
    predictions = [
        spoken("1", "de", "eins zwei drei", "eins", segments=2),
        spoken("2", "de", "eins zwei drei"),
        spoken("1", "sl", "ena"),
    ]
    evaluation = score(predictions, kind="asr", name="toy", expected={"de": 2, "sl": 1})
    [cut] = evaluation.over_long
    assert (cut.direction, cut.utterances) == ("de", 1)
    assert cut.value("wer") == pytest.approx(100 * 2 / 3)
    # They are in the row of their language too, and in no average twice.
    assert evaluation.rows[0].value("wer") == pytest.approx(100 * 2 / 6)
    assert evaluation.average()[0]["wer"] == pytest.approx(100 / 6)
    text = ScoreTable(evaluation).text()
    assert re.search(r"^de, over-long +1 +66\.7", text, re.MULTILINE)
    [row] = ScoreTable(evaluation).as_dict()["over_long"]
    assert row["wer"] == pytest.approx(200 / 3)


def test_statistics_of_processes():
    """Work adds up, and side by side the slowest counts."""
    one = DecodingStatistics(utterances=3, audio_seconds=6.0, decode_seconds=2.0)
    other = DecodingStatistics(utterances=2, audio_seconds=4.0, decode_seconds=4.0)
    both = DecodingStatistics.of_processes([one, other])
    assert (both.utterances, both.audio_seconds, both.decode_seconds) == (5, 10.0, 4.0)
    assert both.rtfx == 2.5


def test_averages_over_chosen_languages():
    predictions = [
        Prediction(id=language, language=language, reference="a b", hypothesis=hypothesis)
        for language, hypothesis in (("de", "a b"), ("sl", "x b"), ("sv-SE", "x y"))
    ]
    evaluation = score(predictions, kind="asr", name="toy")
    assert evaluation.average()[0]["wer"] == pytest.approx(50)
    assert evaluation.average(without={"sl"})[0]["wer"] == pytest.approx(50)
    assert evaluation.average(only={"de", "sl"})[0]["wer"] == pytest.approx(25)
    assert evaluation.average(only={"sv"})[0]["wer"] == pytest.approx(100)


def test_translations_are_compared_composed():
    """A reference in Unicode's form NFD is the text that a vocabulary writes in NFC."""
    composed = "tiếng Việt được viết như thế"
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    prediction = Prediction(
        id="1", language="en", target_language="vi", reference=decomposed, hypothesis=composed
    )
    [row] = score([prediction], kind="st", name="toy").rows
    assert row.value("bleu") == pytest.approx(100) and row.value("chrf") == pytest.approx(100)


def test_what_a_vocabulary_cannot_write_is_said():
    """Two words of eight have a letter that no model with this vocabulary can write."""
    references = ["ein blauer Bus", "ein grüner Zug", "eine schöne Zeit", "und so"]
    predictions = [
        Prediction(id=str(n), language=language, reference=text, hypothesis=text)
        for language in ("de", "nl")
        for n, text in enumerate(references if language == "de" else references[:1])
    ]
    evaluation = score(
        predictions, kind="asr", name="toy", round_trip=lambda text: re.sub("[öü]", " ⁇ ", text)
    )
    rows = {row.direction: row for row in evaluation.rows}
    assert rows["de"].value("wer") == 0 and rows["nl"].vocabulary_limit is None
    # "grüner" and "schöne" each become two words, so each costs a substitution and an insertion.
    assert rows["de"].vocabulary_limit == pytest.approx(100 * 4 / 11)
    assert (
        "CANNOT WRITE all references; a model without a mistake would score de WER 36.4"
        in ScoreTable(evaluation).text()
    )
    content = ScoreTable(evaluation).as_dict()
    assert [row["vocabulary_limit"] for row in content["rows"]] == [pytest.approx(400 / 11), None]
    text = "heute fährt ein grüner Zug an die See"
    translated = Prediction(
        id="1", language="en", target_language="de", reference=text, hypothesis=text
    )
    [row] = score(
        [translated], kind="st", name="toy", round_trip=lambda t: t.replace("ü", "u")
    ).rows
    assert row.value("bleu") == pytest.approx(100) and 20 < row.vocabulary_limit < 80
    assert (
        score(predictions, kind="asr", name="toy", round_trip=str.upper).rows[0].vocabulary_limit
        is None
    )


def test_one_id_for_two_utterances_is_refused():
    predictions = [
        Prediction(id="1", language="de", reference="a", hypothesis="a"),
        Prediction(id="1", language="de", reference="b", hypothesis="b"),
    ]
    with pytest.raises(UserError, match="id '1'"):
        merge(predictions)


def test_one_id_in_two_places_is_refused():
    """Two processes see one example each, and neither sees that their ids are the same."""
    same = [spoken("1", "de", "ja", task="t", index=index) for index in (4, 7)]
    with pytest.raises(UserError, match="examples 4 and 7 of task 't' have the same id '1'"):
        merge(same)
    tasks = [spoken("1", "de", "ja", task=task, index=0) for task in ("a", "b")]
    with pytest.raises(UserError, match="score them separately: --task a --task b"):
        merge(tasks)


def test_a_reference_may_be_empty():
    evaluation = score([spoken("1", "de", "")], kind="asr", name="toy")
    assert evaluation.rows[0].empty_references == 1


def test_predictions_survive_any_text(tmp_path):
    path = tmp_path / "deep" / "lines.jsonl"
    odd = 'line\nbreak \u2028 "quote" ž 今\x85'
    predictions = [
        Prediction(id="1", language="sl", reference=odd, hypothesis=odd[::-1]),
        spoken("2", "sl", "a b", words=[["a", 0.5, -0.25], ["b", None, -1.0]], seconds=1.5),
    ]
    write_predictions(predictions, path)
    assert read_predictions(path) == predictions
    path.write_text('{"id": "1"}\n')
    with pytest.raises(UserError, match="line 1 of"):
        read_predictions(path)
    with pytest.raises(UserError, match="cannot read"):
        read_predictions(tmp_path / "absent.jsonl")
