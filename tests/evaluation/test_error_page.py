"""The page of errors: its counts against jiwer's and sacreBLEU's, its text safe from markup."""

from __future__ import annotations

import html.parser
import json
import pathlib
import re

import jiwer
import numpy as np
import pytest
import sacrebleu
import soundfile

from maestro_jax.evaluation.error_page import (
    align,
    error_page,
    worst,
    write_error_page,
    write_worst_audio,
)
from maestro_jax.evaluation.predictions import Prediction
from maestro_jax.scoring.metrics import WordErrorRate
from maestro_jax.text.normalizers import normalize

# The fields of an utterance, as the script of the page names them.
FIELDS = (
    "id row substitutions deletions insertions units parts reference hypothesis seconds score "
    "audio chrf bleu"
).split()
HOSTILE = "</script><script>alert(1)</script> <!-- <img src=x onerror=alert(2)> & \u2028 {{data}}"


class Page(html.parser.HTMLParser):
    """The elements of a page, and what its element `data` holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._current = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._current = dict(attrs).get("id") or tag

    def handle_data(self, data):
        self.texts[self._current] = self.texts.get(self._current, "") + data

    @property
    def data(self):
        return json.loads(self.texts["data"])

    @property
    def utterances(self):
        return [dict(zip(FIELDS, each, strict=True)) for each in self.data["utterances"]]


def spoken(hypotheses: dict[str, str], references: dict[str, str], language: str = "de"):
    return [
        Prediction(id=key, language=language, reference=references[key], hypothesis=text)
        for key, text in hypotheses.items()
    ]


def test_counts_are_those_of_jiwer() -> None:
    rng = np.random.default_rng(0)
    words = ["eins", "zwei", "drei", "vier"]
    texts = [[" ".join(rng.choice(words, rng.integers(0, 8))) for _ in range(40)] for _ in range(2)]
    # Capitals and punctuation do not count.
    predictions = [
        Prediction(id=f"u{i}", language="de", reference=f"{r.title()}.", hypothesis=h)
        for i, (r, h) in enumerate(zip(*texts, strict=True))
    ]
    page = Page(error_page(predictions, name="toy"))
    expected = jiwer.process_words(*[[t or "" for t in side] for side in texts])
    [row] = page.data["rows"]
    for name in ("substitutions", "deletions", "insertions"):
        assert row[name] == getattr(expected, name), name
    assert row["units"] == sum(len(text.split()) for text in texts[0])
    assert row["scores"]["WER %"] == pytest.approx(100 * expected.wer, abs=0.005)
    confused = {(ref, hyp): count for ref, hyp, count in row["confusions"]}
    assert sum(n for (ref, hyp), n in confused.items() if ref and hyp) == expected.substitutions
    for utterance, reference, hypothesis in zip(page.utterances, *texts, strict=True):
        one = jiwer.process_words(reference, hypothesis)
        counts = [utterance[name] for name in ("substitutions", "deletions", "insertions")]
        assert counts == [one.substitutions, one.deletions, one.insertions]
        sides = [
            " ".join(filter(None, (p if isinstance(p, str) else p[n] for p in utterance["parts"])))
            for n in (0, 1)
        ]
        assert sides == [reference, hypothesis]


def test_texts_are_no_markup(tmp_path: pathlib.Path) -> None:
    predictions = [
        Prediction(id=HOSTILE, language="de", reference=HOSTILE, hypothesis="a \ud800 b")
    ]
    path = write_error_page(
        tmp_path / "page.html", predictions, name=HOSTILE, details={HOSTILE: HOSTILE}
    )
    page = Page(path.read_bytes().decode())
    plain = Page(error_page([], name="nothing"))
    # Whatever texts say, the elements are those of a page without any.
    assert page.elements == plain.elements
    assert [tag for tag, _ in page.elements].count("script") == 2
    [utterance] = page.utterances
    assert utterance["id"] == utterance["reference"] == HOSTILE
    assert page.texts["title"].strip() == f"Errors: {HOSTILE}"
    raw = path.read_bytes().decode()
    assert "<img" not in raw and raw.count("</script>") == 2
    assert not set("<>&\u2028") & set(page.texts["data"])
    # Nothing is loaded from anywhere, and the script makes text nodes alone.
    assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|document\.write", raw)


def test_characters_are_aligned_where_words_are_not_spaced() -> None:
    predictions = [
        Prediction(id="u", language="ja", reference="今日は 暑い。", hypothesis="今日も暑いね"),
        Prediction(id="v", language="ar", reference="السلام عليكم", hypothesis="السلام عليك"),
    ]
    page = Page(error_page(predictions, name="toy"))
    arabic, japanese = page.data["rows"]
    assert japanese["by_character"] and "CER %" in japanese["scores"]
    assert not arabic["by_character"] and arabic["scores"] == {"WER %": 50.0}
    first, second = sorted(page.utterances, key=lambda each: each["id"])
    assert first["parts"] == ["今日", ["は", "も"], "暑い", ["", "ね"]]
    assert (first["units"], first["reference"]) == (5, "今日は 暑い。")
    assert second["parts"] == ["السلام", ["عليكم", "عليك"]]
    # What was compared is not repeated.
    assert (second["reference"], second["hypothesis"]) == (None, None)


def test_translations_have_their_own_scores() -> None:
    references = ["She is nine years old.", "The house was built in 1572.", "Yes."]
    hypotheses = ["She is five years old.", "The house was built in 1572.", "No, no."]
    predictions = [
        Prediction(id=str(i), language="de", target_language="en", reference=r, hypothesis=h)
        for i, (r, h) in enumerate(zip(references, hypotheses, strict=True))
    ]
    page = Page(error_page(predictions, name="toy"))
    [row] = page.data["rows"]
    bleu, chrf = (
        getattr(sacrebleu, f"corpus_{name}")(hypotheses, [references]).score
        for name in ("bleu", "chrf")
    )
    assert row["scores"] == {
        "BLEU": pytest.approx(bleu, abs=0.005),
        "chrF": pytest.approx(chrf, abs=0.005),
    }
    for each, reference, hypothesis in zip(page.utterances, references, hypotheses, strict=True):
        for name in ("chrf", "bleu"):
            expected = getattr(sacrebleu, f"sentence_{name}")(hypothesis, [reference]).score
            assert each[name] == pytest.approx(expected, abs=0.051)
    assert page.utterances[0]["parts"] == ["She is", ["nine", "five"], "years old."]
    assert [each.id for each in worst(predictions, 2)] == ["2", "0"]


def test_the_worst_come_first_and_keep_their_audio(tmp_path: pathlib.Path) -> None:
    references = {"a": "eins zwei", "b": "eins zwei drei", "c": "vier", "d": "fünf"}
    predictions = spoken({"a": "eins", "b": "null", "c": "vier", "d": ""}, references)
    ranked = worst(predictions, 3)
    assert [each.id for each in ranked] == ["b", "d", "a"]
    audio = np.arange(-800, 800, dtype=np.int16)
    files = write_worst_audio(
        tmp_path / "toy audio",
        predictions,
        lambda each: None if each.id == "d" else audio,
        count=3,
    )
    assert {each.id: path.name for each, path in files.items()} == {
        "b": "0001.wav",
        "a": "0003.wav",
    }
    samples, rate = soundfile.read(str(files[ranked[0]]), dtype="int16")
    assert rate == 16_000 and (samples == audio).all()
    path = write_error_page(tmp_path / "toy.html", predictions, name="toy", audio=files.get)
    addresses = {each["id"]: each["audio"] for each in Page(path.read_text()).utterances}
    assert addresses["b"] == "./toy%20audio/0001.wav" and addresses["d"] is None
    path = write_error_page(
        tmp_path / "toy.html", predictions, name="toy", audio={"a": str(tmp_path / "x#1.flac")}
    )
    assert Page(path.read_text()).utterances[0]["audio"] == "./x%231.flac"


def test_a_large_test_set_shows_the_worst_of_each_language() -> None:
    predictions = [
        Prediction(id=f"u{i}", language=language, reference="a b c", hypothesis="a b c"[: i % 6])
        for language, count in (("de", 60), ("sl", 30))
        for i in range(count)
    ]
    page = Page(error_page(predictions, name="toy", most=30))
    shown = [page.data["rows"][each["row"]]["name"] for each in page.utterances]
    assert (shown.count("de"), shown.count("sl"), page.data["total"]) == (20, 10, 90)
    assert [row["utterances"] for row in page.data["rows"]] == [60, 30]
    # "" has three errors, "a" and "a " two: a third of all utterances are among these.
    assert {each["deletions"] for each in page.utterances} == {2, 3}


def test_alignment_of_normalised_text_is_of_what_is_scored() -> None:
    [alignment] = align(
        [normalize("Ja, gut -- so.", "de")], [normalize("ja so", "de")], by_character=False
    )
    assert alignment.parts == ("ja", ("gut", ""), "so")
    assert (alignment.errors, alignment.units) == (1, 3)
    assert align([], [], by_character=True) == []


def test_rows_of_a_suite_are_test_sets() -> None:
    class Strict(WordErrorRate):
        """Counts every word of the hypothesis as a word too many."""

        def statistics(self, references, hypotheses, language):
            return np.asarray([[0, 0, len(text.split()), 4] for text in hypotheses])

    tasks = {"b_task": "B", "a_task": "A"}
    predictions = [
        Prediction(id="u", language="en", reference="a b", hypothesis=text, task=task)
        for task, text in (("a_task", "a"), ("b_task", "a b"))
    ]
    page = Page(error_page(predictions, name="toy", rows=tasks, scorers={"A": [Strict()]}))
    first, second = page.data["rows"]
    assert (first["name"], first["scores"], first["rules"]) == ("B", {"WER %": 0.0}, False)
    assert (second["name"], second["scores"], second["rules"]) == ("A", {"WER %": 25.0}, True)
    assert [each["row"] for each in page.utterances] == [0, 1]
