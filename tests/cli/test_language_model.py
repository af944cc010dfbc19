"""`maestro language_model` and what it writes."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from maestro_jax.cli import main as cli
from maestro_jax.inference.language_models import arpa_model, text_model
from maestro_jax.text.vocabularies import train_sentencepiece

SENTENCES = ["ab ba cab", "abc da", "ba ba"]


def test_it_writes_the_model_of_the_text(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = train_sentencepiece(SENTENCES, tmp_path / "vocabulary.model", 12, "char")
    text, output = tmp_path / "text.txt", tmp_path / "lm.arpa.gz"
    text.write_text("\n".join(SENTENCES))
    command = ["language_model", str(tmp_path), str(text), "--output", str(output)]
    assert cli.main([*command, "--order", "3", "--prune", "0,0,1"]) == 0
    assert f"--lm_arpa {output}" in capsys.readouterr().out
    wanted = text_model(text, vocabulary, order=3, prune=(0, 0, 1))
    written = arpa_model(output, vocabulary)
    assert written.counts == wanted.counts
    for sentence in SENTENCES:
        ids = vocabulary.encode(sentence)
        np.testing.assert_allclose(written.text_log_prob(ids), wanted.text_log_prob(ids), rtol=1e-5)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["m", "t"], "--output"),
        (["m", "t", "--output", "nowhere/lm.arpa"], "make the directory"),
        (["m", "t", "--output", "lm.arpa", "--prune", "one"], "'one' is not whole numbers"),
        (["m", "t", "--output", "lm.arpa"], "no vocabulary at m"),
    ],
)
def test_bad_input_is_one_line(argv, message, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["language_model", *argv]) != 0
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
