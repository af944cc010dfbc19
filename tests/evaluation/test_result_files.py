"""The scores in the files of a result, computed again from its hypotheses with other tools."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jiwer
import numpy as np
import pytest

from maestro_jax.evaluation.evaluate import score
from maestro_jax.evaluation.predictions import Prediction, merge, write_predictions
from maestro_jax.evaluation.results import check_writable
from maestro_jax.evaluation.score_table import ScoreTable

SENTENCES = {
    "de": "Wir fahren, heute um 9 Uhr, nach Köln. Das Fenster ist – glaub' ich – offen",
    "fr": "L’eau de la mer n'est pas froide; aujourd'hui, non plus ! Où est-il allé",
    "sl": "Štiri mačke pijejo mleko, pet pa jih spi na soncu. Kje je čaj",
    "en": 'The "old" house by the sea isn’t for sale. It rained (again) all day',
}
SIZES = {"de": 17, "fr": 5, "sl": 29, "en": 11}


def noisy(text: str, rng: np.random.Generator) -> str:
    """A text with words left out, doubled, and of other words."""
    words = []
    for word in text.split():
        edit = rng.random()
        words += [] if edit < 0.1 else [word, word] if edit < 0.2 else [word]
        if edit > 0.9:
            words[-1] = words[-1][::-1]
    return " ".join(words)


def write_result(directory: Path, kind: str) -> tuple[dict, list[dict]]:
    """Writes a result with errors of all sorts; returns the table and the hypotheses in it."""
    rng = np.random.default_rng(3)
    predictions = []
    for language, sentence in SENTENCES.items():
        words = sentence.split()
        for number in range(SIZES[language]):
            reference = " ".join(rng.permutation(words)[: rng.integers(4, len(words))])
            hypothesis = noisy(reference, rng)
            if number % 3 == 0:
                hypothesis = hypothesis.upper() if kind == "asr" else hypothesis.rstrip(".,")
            if number == 4:
                hypothesis = ""
            predictions.append(
                Prediction(
                    id=f"{language}-{number}",
                    language=language,
                    target_language="" if kind == "asr" else "en",
                    reference=reference,
                    hypothesis=hypothesis,
                )
            )
    rng.shuffle(predictions)
    merged, _ = merge(predictions)
    table = ScoreTable(score(merged, kind=kind, name="toy.test"), groups={"some": ("de", "sl")})
    write_predictions(merged, directory / "toy.test.hypotheses.jsonl")
    _, path = table.write(directory)
    lines = (directory / "toy.test.hypotheses.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(path.read_text(encoding="utf-8")), [json.loads(line) for line in lines]


def as_documented(text: str) -> str:
    """Lower case, no punctuation, apostrophes kept inside words, dashes read as spaces."""
    kept = []
    for letter in unicodedata.normalize("NFC", text.replace("\u2019", "'")).lower():
        category = unicodedata.category(letter)
        if letter == "'" or category[0] not in "PS":
            kept.append(letter)
        elif category == "Pd":
            kept.append(" ")
    words = (word.strip("'") for word in "".join(kept).split())
    return " ".join(word for word in words if word)


def test_processes_that_start_at_the_same_moment_can_all_write(tmp_path, monkeypatch):
    """They test the directory with files of their own, even where their clocks agree."""
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check_writable, [tmp_path / str(n // 8) for n in range(400)]))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_error_rates_are_those_of_jiwer(tmp_path: Path) -> None:
    table, lines = write_result(tmp_path, "asr")
    assert {row["direction"]: row["utterances"] for row in table["rows"]} == SIZES
    expected = {}
    for row in table["rows"]:
        own = [line for line in lines if line["language"] == row["direction"]]
        references, hypotheses = (
            [as_documented(line[side]) for line in own] for side in ("reference", "hypothesis")
        )
        wer = jiwer.process_words(references, hypotheses)
        assert row["wer"] == pytest.approx(100 * wer.wer, rel=1e-12)
        assert row["cer"] == pytest.approx(100 * jiwer.cer(references, hypotheses), rel=1e-12)
        for edit in ("substitutions", "deletions", "insertions"):
            assert row["wer_counts"][edit] == getattr(wer, edit)
        expected[row["direction"]] = 100 * wer.wer
    # Not all the same, or an average of others would be the same too.
    assert len(set(expected.values())) == len(expected)
    averages = {average["name"]: average for average in table["averages"]}
    assert averages["all"]["wer"] == pytest.approx(sum(expected.values()) / 4, rel=1e-12)
    some = (expected["de"] + expected["sl"]) / 2
    assert averages["some"]["wer"] == pytest.approx(some, rel=1e-12)


def test_scores_of_translations_are_those_of_the_sacrebleu_command(tmp_path: Path) -> None:
    table, lines = write_result(tmp_path, "st")
    expected: dict[str, dict[str, float]] = {"bleu": {}, "chrf": {}}
    for row in table["rows"]:
        own = [line for line in lines if f"{line['language']}-en" == row["direction"]]
        files = []
        for side in ("reference", "hypothesis"):
            files.append(tmp_path / f"{row['direction']}.{side}")
            files[-1].write_text("".join(f"{line[side]}\n" for line in own), encoding="utf-8")
        command = [sys.executable, "-m", "sacrebleu", str(files[0]), "-i", str(files[1])]
        command += ["-m", "bleu", "chrf", "-w", "10", "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for name, theirs in zip(expected, json.loads(done.stdout), strict=True):
            assert row[name] == pytest.approx(theirs["score"], abs=1e-9)
            assert theirs["name"].lower().startswith(name)
            expected[name][row["direction"]] = theirs["score"]
    for name, scores in expected.items():
        assert table["averages"][0]["name"] == "all"
        assert table["averages"][0][name] == pytest.approx(sum(scores.values()) / 4, abs=1e-9)
        assert len(set(scores.values())) == 4
