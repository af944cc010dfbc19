"""`maestro transcribe` over several recordings, of which some are broken; no model is loaded."""

from __future__ import annotations

import json
import pathlib
import types
from collections.abc import Callable

import numpy as np
import pytest
import soundfile

from maestro_jax.cli.main import main
from maestro_jax.errors import UserError
from maestro_jax.inference.timed_words import TimedToken, Transcript


class Lengths:
    """Hears how many seconds a recording has."""

    decoder = "transducer"

    def transcribe_chunks(self, recordings, *, target_language, language, progress):
        for chunks in recordings:
            try:
                samples = sum(len(chunk) for chunk in chunks)
            except UserError as error:
                yield error
                continue
            progress(samples)
            seconds = samples / 16_000
            word = TimedToken(text=f"{seconds:g}", start=0.5, score=-1.0)
            yield Transcript(
                text=word.text,
                seconds=seconds,
                score=-1.0,
                segments=1,
                target_language=target_language,
                words=(word,),
            )


@pytest.fixture
def transcribe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., types.SimpleNamespace]:
    """Runs the command in a directory with recordings of 1, 2 and 3 seconds and two broken ones."""
    loads = []

    def load(*_, **__):
        loads.append(1)
        return Lengths()

    monkeypatch.setattr(
        "maestro_jax.training.saved_checkpoints.find_checkpoint", lambda name: tmp_path / "m/c/1"
    )
    monkeypatch.setattr("maestro_jax.gin_utils.gin_config.load_run", lambda *_, **__: None)
    monkeypatch.setattr("maestro_jax.cli.environment.enable_compilation_cache", lambda: None)
    monkeypatch.setattr("maestro_jax.inference.transcriber.Transcriber.from_checkpoint", load)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for seconds in (1, 2, 3):
        path = tmp_path / "d" / f"{seconds}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * rng.normal(size=16_000 * seconds), 16_000)
    (tmp_path / "zeros.wav").write_bytes(bytes(300))
    (tmp_path / "text.mp3").write_text("no audio")

    def call(*words: str) -> types.SimpleNamespace:
        loads.clear()
        status = main(["transcribe", "m", *words])
        printed = capsys.readouterr()
        errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        return types.SimpleNamespace(
            status=status, out=printed.out, errors=errors, loaded=bool(loads)
        )

    return call


def test_the_others_are_transcribed_and_all_broken_ones_named(transcribe):
    found = transcribe("zeros.wav", "d/2.wav", "absent.wav", "text.mp3", "d/1.wav")
    assert found.out.splitlines() == ["d/2.wav: 2", "d/1.wav: 1"]
    assert found.status == 2 and len(found.errors) == 4
    for line, name in zip(found.errors, ("zeros.wav", "absent.wav", "text.mp3"), strict=False):
        assert name in line
    assert "3 of 5 recordings could not be read" in found.errors[-1]


def test_json_has_an_entry_for_each_in_order(transcribe):
    found = transcribe("d", "zeros.wav", "d/2.wav", "--json")
    records = json.loads(found.out)
    assert [record["file"] for record in records] == ["d/1.wav", "d/2.wav", "d/3.wav", "zeros.wav"]
    assert [record.get("text") for record in records] == ["1", "2", "3", None]
    assert "zeros.wav" in records[3]["error"] and found.status == 2


def test_where_none_can_be_read_no_model_is(transcribe):
    found = transcribe("zeros.wav", "text.mp3", "--json")
    assert found.status == 2 and not found.loaded and len(found.errors) == 3
    assert ["error" in record for record in json.loads(found.out)] == [True, True]
    found = transcribe("text.mp3")
    assert found.status == 2 and not found.loaded
    [line] = found.errors
    assert "text.mp3 cannot be read as audio" in line


def test_all_good(transcribe):
    found = transcribe("d")
    assert (found.status, found.errors) == (0, [])
    assert found.out.splitlines() == ["d/1.wav: 1", "d/2.wav: 2", "d/3.wav: 3"]
    found = transcribe("d/3.wav", "--timestamps")
    assert found.out.split() == ["3", "0.50", "-1.00", "3"]


@pytest.mark.parametrize("command", ["transcribe", "align"])
@pytest.mark.parametrize(
    "words", [["--model_dir", "X", "a.wav"], ["--model_dir=X"], ["--checkpoint"]]
)
def test_the_model_is_named_without_an_option(command, words, capsys):
    assert main([command, *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    option = words[0].split("=")[0]
    assert f"the model's directory without {option}" in line and "decoder" not in line
    assert f"maestro {command} {'CHECKPOINT' if words[0] == '--checkpoint' else 'X'} FILE" in line
