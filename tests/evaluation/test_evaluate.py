"""The loop over batches: padding, shards, gaps and averages."""

import re
import socket
import subprocess
import sys
import textwrap
import unicodedata

import pytest

from maestro_jax.errors import UserError
from maestro_jax.evaluation.evaluate import evaluate, score
from maestro_jax.evaluation.predictions import (
    Prediction,
    merge,
    read_predictions,
    write_predictions,
)
from maestro_jax.evaluation.score_table import ScoreTable

SPOKEN = [
    {"id": "de-1", "language": "de", "text": "Guten Tag!", "translation": "Good day, all of you!"},
    {"id": "de-2", "language": "de", "text": "eins zwei drei", "translation": "one two three four"},
    {"id": "fr-1", "language": "fr", "text": "l'eau", "translation": "the water of the sea"},
]


def in_batches(examples, size):
    """Features are the texts themselves; the last batch is filled up with padding."""
    for start in range(0, len(examples), size):
        rows = examples[start : start + size]
        features = [row["text"] for row in rows] + ["PADDING"] * (size - len(rows))
        yield features, rows


def echo(features):
    return list(features)


def test_every_language_is_scored_by_itself(tmp_path):
    answers = {"Guten Tag!": "guten tag", "eins zwei drei": "eins zwo drei", "l'eau": "l’eau"}
    seen = []
    evaluation = evaluate(
        in_batches(SPOKEN, 2),
        lambda features: [answers.get(text, "padding speaks") for text in features],
        kind="asr",
        name="toy",
        output_dir=tmp_path,
        expected={"de": 2, "fr": 1},
        progress=seen.append,
    )
    rows = {row.direction: row for row in evaluation.rows}
    assert sorted(rows) == ["de", "fr"]
    assert rows["de"].value("wer") == pytest.approx(100 / 5)
    assert rows["fr"].value("wer") == 0.0
    means, averaged = evaluation.average()
    assert means["wer"] == pytest.approx((20 + 0) / 2)
    assert [row.direction for row in averaged] == ["de", "fr"]
    assert seen == [2, 3]
    assert evaluation.complete

    lines = read_predictions(tmp_path / "toy.predictions.jsonl")
    assert [line.id for line in lines] == ["de-1", "de-2", "fr-1"]
    assert lines[0].reference == "Guten Tag!"
    assert lines[2].hypothesis == "l’eau"
    assert score(lines, kind="asr", name="toy").rows[0].scores == rows["de"].scores


def test_translation_directions():
    translations = {row["text"]: row["translation"] for row in SPOKEN}
    evaluation = evaluate(
        in_batches(SPOKEN, 3),
        lambda features: [translations[text] for text in features],
        kind="st",
        name="toy",
        expected={"de": 2, "fr-en": 1},
    )
    assert [row.direction for row in evaluation.rows] == ["de-en", "fr-en"]
    assert evaluation.complete
    assert evaluation.average()[0]["bleu"] == pytest.approx(100)


def test_several_targets_of_one_language():
    examples = [
        {"id": "1", "language": "en", "translation": "ein Haus am See", "target_language": "de"},
        {"id": "1", "language": "en", "translation": "海边的房子", "target_language": "zh-CN"},
    ]
    evaluation = evaluate(
        [([0, 1], examples)],
        lambda features: ["ein Haus am See", "海边的房子"],
        kind="st",
        name="toy",
    )
    assert {row.direction: round(row.value("bleu")) for row in evaluation.rows} == {
        "en-de": 100,
        "en-zh-CN": 100,
    }
    signatures = [row.scores["bleu"].signature for row in evaluation.rows]
    assert "tok:13a" in signatures[0] and "tok:char" in signatures[1]


def test_shards_are_gathered_and_repeats_scored_once():
    other_process = [
        Prediction(id="de-1", language="de", reference="Guten Tag!", hypothesis="again"),
        Prediction(id="de-3", language="de", reference="ja", hypothesis="nein"),
    ]
    evaluation = evaluate(
        in_batches(SPOKEN[:2], 2),
        echo,
        kind="asr",
        name="toy",
        expected={"de": 3},
        gather=lambda mine: [*mine, *other_process],
    )
    assert evaluation.repeats == 1
    assert evaluation.utterances == 3
    assert evaluation.rows[0].scores["wer"].counts["errors"] == 1
    assert evaluation.complete


def test_gaps_are_marked():
    evaluation = evaluate(
        in_batches(SPOKEN[:2], 2), echo, kind="asr", name="toy", expected={"de": 3, "sl": 4}
    )
    assert [(row.direction, row.complete) for row in evaluation.rows] == [
        ("de", False),
        ("sl", False),
    ]
    # The absent language has no score, so it is in no average.
    assert [row.direction for row in evaluation.average()[1]] == ["de"]


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


@pytest.mark.parametrize("key", ["id", "language", "text"])
def test_metadata_without_a_field_is_refused(key):
    example = {name: value for name, value in SPOKEN[0].items() if name != key}
    with pytest.raises(UserError, match=repr(key)):
        evaluate([(["x"], [example])], echo, kind="asr", name="toy")


def test_a_reference_may_be_empty_and_strings_may_be_bytes():
    example = {"id": b"1", "language": b"de", "text": b""}
    evaluation = evaluate([(["x"], [example])], echo, kind="asr", name="toy")
    assert evaluation.rows[0].empty_references == 1


def test_bad_calls():
    with pytest.raises(ValueError, match="1 hypotheses for 2"):
        evaluate([(["x"], SPOKEN[:2])], echo, kind="asr", name="toy")
    with pytest.raises(UserError, match="no utterances"):
        evaluate([], echo, kind="asr", name="toy")
    with pytest.raises(UserError, match="'tts'"):
        evaluate([], echo, kind="tts", name="toy")


def test_predictions_survive_any_text(tmp_path):
    path = tmp_path / "deep" / "lines.jsonl"
    odd = 'line\nbreak \u2028 "quote" ž 今\x85'
    predictions = [Prediction(id="1", language="sl", reference=odd, hypothesis=odd[::-1])]
    write_predictions(predictions, path)
    assert read_predictions(path) == predictions
    path.write_text('{"id": "1"}\n')
    with pytest.raises(UserError, match="line 1 of"):
        read_predictions(path)
    with pytest.raises(UserError, match="cannot read"):
        read_predictions(tmp_path / "absent.jsonl")


@pytest.mark.multiprocess
def test_gathering_from_two_processes(tmp_path):
    program = textwrap.dedent(
        """
        import sys
        import jax
        from maestro_jax.evaluation.evaluate import evaluate
        address, rank, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
        jax.distributed.initialize(address, num_processes=2, process_id=rank)
        # Shards of unlike size, that share the utterance "2".
        ids = [["0", "1", "2"], ["2"]][rank]
        metadata = [{"id": i, "language": "de", "text": "wort ž " + i} for i in ids]
        evaluation = evaluate(
            [([m["text"] for m in metadata], metadata)], list, kind="asr", name="toy",
            output_dir=folder, expected={"de": 3},
        )
        assert evaluation.complete and evaluation.repeats == 1, evaluation
        assert evaluation.rows[0].value("wer") == 0
        """
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, address, str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert [line.id for line in read_predictions(tmp_path / "toy.predictions.jsonl")] == list("012")
