"""Formats of other tools: their layout, and what sclite counts in them where it is installed."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from maestro_jax.errors import UserError
from maestro_jax.evaluation.hypothesis_formats import write_formats
from maestro_jax.evaluation.predictions import Prediction

SCLITE = shutil.which("sclite", path=f"{os.environ.get('PATH', '')}:/usr/lib/sctk/bin")
NAME = "toy_paired.test"


def spoken(identity: str, reference: str, hypothesis: str, language: str = "de") -> Prediction:
    """A prediction whose words begin every half second."""
    words = tuple((word, 0.5 * i, -0.5) for i, word in enumerate(hypothesis.split()))
    return Prediction(
        id=identity,
        language=language,
        reference=reference,
        hypothesis=hypothesis,
        seconds=4.0,
        words=words,
    )


# By hand, substitutions, deletions and insertions of each.
PREDICTIONS = [
    spoken("u 2 (b)", "Eins, zwei, drei.", "eins zwo drei vier"),  # 1 0 1
    spoken("u1", "Vier - fünf!", ""),  # 0 2 0
    spoken("u3", "Ja?", "ja"),  # 0 0 0
    spoken("U1", "štiri pet", "štiri šest", "sl"),  # 1 0 0
]
COUNTS = {"de": (6, 1, 2, 1), "sl": (2, 1, 0, 0)}


def written(tmp_path: pathlib.Path, *formats: str, **options) -> dict[str, str]:
    paths = write_formats(tmp_path, NAME, options.pop("of", PREDICTIONS), formats, **options)
    return {path.name: path.read_text() for path in paths}


def test_layouts(tmp_path: pathlib.Path) -> None:
    files = written(tmp_path, "txt", "trn", "stm", "ctm")
    assert files[f"{NAME}.hyp.txt"] == "eins zwo drei vier\n\nja\nštiri šest\n"
    assert files[f"{NAME}.ref.txt"].splitlines()[0] == "Eins, zwei, drei."
    assert files[f"{NAME}.ref.trn"].splitlines() == [
        "eins zwei drei (de-u_2_b_)",
        "vier fünf (de-u1)",
        "ja (de-u3)",
        "štiri pet (sl-U1#2)",
    ]
    assert files[f"{NAME}.hyp.trn"].splitlines()[1] == "(de-u1)"
    assert files[f"{NAME}.stm"].splitlines() == [
        "U1#2 1 sl 0.00 4.00 štiri pet",
        "u1 1 de 0.00 4.00 vier fünf",
        "u3 1 de 0.00 4.00 ja",
        "u_2_b_ 1 de 0.00 4.00 eins zwei drei",
    ]
    lines = files[f"{NAME}.ctm"].splitlines()
    # exp(-0.5); the last word lasts until the end of the audio.
    assert lines[0] == "U1#2 1 0.00 0.50 štiri 0.6065"
    assert lines[1] == "U1#2 1 0.50 3.50 šest 0.6065"
    assert lines[2] == "u1 1 0.00 0.01 @"


@pytest.mark.skipif(SCLITE is None, reason="sclite (Debian package sctk) is not installed")
@pytest.mark.parametrize("timed", [False, True], ids=["trn", "ctm"])
def test_sclite_counts_the_same_errors(tmp_path: pathlib.Path, timed: bool) -> None:
    written(tmp_path, "trn", "stm", "ctm")
    sides = (
        ("-r", f"{NAME}.stm", "stm", "-h", f"{NAME}.ctm", "ctm")
        if timed
        else ("-r", f"{NAME}.ref.trn", "trn", "-h", f"{NAME}.hyp.trn", "trn", "-i", "rm")
    )
    report = subprocess.run(
        [SCLITE, *sides, "-e", "utf-8", "-o", "rsum", "stdout"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for language, (words, *errors) in COUNTS.items():
        [row] = re.findall(rf"^ *\| {language} +\|([^\n]*)\|$", report, re.MULTILINE)
        numbers = [int(number) for number in re.findall(r"\d+", row)]
        # Sentences, words, correct, substitutions, deletions, insertions, errors, wrong sentences.
        assert numbers[1] == words and numbers[3:6] == errors, report


def test_the_manifest_of_the_leaderboard(tmp_path: pathlib.Path) -> None:
    files = written(tmp_path, "openasr", model="me/tiny model", decoding_seconds=2.0)
    assert list(files) == [
        f"MODEL_maestro_jax-me-tiny-model_DATASET_toy_paired_{language}_test.jsonl"
        for language in ("de", "sl")
    ]
    records = [json.loads(line) for text in files.values() for line in text.splitlines()]
    assert records[0] == {
        "audio_filepath": "u 2 (b)",
        "duration": 4.0,
        "time": 0.5,
        "text": "Eins, zwei, drei.",
        "pred_text": "eins zwo drei vier",
    }
    assert len(records) == 4 and sum(record["time"] for record in records) == 2.0
    without = written(tmp_path, "openasr")
    assert {json.loads(line)["time"] for t in without.values() for line in t.splitlines()} == {None}


def test_what_a_format_needs(tmp_path: pathlib.Path) -> None:
    untimed = [Prediction(id="u", language="de", reference="ja", hypothesis="ja")]
    with pytest.raises(UserError, match="ctm needs the times of words.*'u'.*--decoder"):
        written(tmp_path, "txt", "ctm", of=untimed)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="stm needs the duration"):
        written(tmp_path, "stm", of=untimed)
    translated = [
        Prediction(id="u", language="de", target_language="en", reference="yes", hypothesis="yes")
    ]
    with pytest.raises(UserError, match="trn is for transcripts"):
        written(tmp_path, "trn", of=translated)
    assert written(tmp_path, "txt", of=translated)
    with pytest.raises(UserError, match="no format 'tm'.*Did you mean 'stm'"):
        written(tmp_path, "tm")
