"""`maestro align` on a model directory with a checkpoint, as `maestro train` leaves one."""

from __future__ import annotations

import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from praatio import textgrid

from maestro_jax.cli.main import main
from maestro_jax.gin_utils import gin_config, run_record
from maestro_jax.inference.aligner import Aligner
from maestro_jax.text.languages import LanguageTable
from maestro_jax.text.vocabularies import train_sentencepiece
from maestro_jax.training.checkpoints import Checkpoints
from maestro_jax.training.parameter_trees import unbox
from maestro_jax.training.partitioning import Partitioning


@pytest.fixture
def model(run_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A model directory; its averaged weights are others than those of its last step."""
    # A user's machine, not the eight devices of the tests: quicker to compile for.
    whole = Partitioning.mesh
    monkeypatch.setattr(Partitioning, "mesh", lambda self, _=None: whole(self, jax.devices()[:1]))
    run = gin_config.parse_and_build([run_file], {"STEPS": "1"})
    directory = tmp_path / "model"
    run_record.write(directory, {"config.gin": gin_config.config_text()}, ["maestro"])
    vocabulary = train_sentencepiece(["ab ba cab", "abc d'a"], tmp_path / "v.model", 16, "char")
    vocabulary.save(directory)
    rng = np.random.default_rng(4)
    # Larger than initial weights, so that frames differ and paths move.
    state = jax.tree.map(
        lambda leaf: rng.normal(0.0, 0.4, leaf.shape).astype(leaf.dtype),
        unbox(run.abstract_state()),
    )
    checkpoints = Checkpoints(directory)
    checkpoints.save(state, {"step": 1})
    checkpoints.close()
    mesh = run.partitioning.mesh()
    loaded = types.SimpleNamespace(
        run=run,
        params=state.ema_params,
        vocabulary=vocabulary,
        languages=LanguageTable(),
        decoder="transducer",
        translates=False,
        samples=16_000,
        data_shards=mesh.shape["data"] * mesh.shape["fsdp"],
    )
    return types.SimpleNamespace(directory=directory, loaded=loaded)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A file of 0.6 s."""
    path = tmp_path / "speech.flac"
    samples = 0.1 * np.random.default_rng(0).normal(size=9600)
    soundfile.write(path, samples, 16_000, subtype="PCM_16")
    return path


@pytest.mark.extended
def test_every_format_says_the_same(
    model: types.SimpleNamespace,
    recording: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples, _ = soundfile.read(recording, dtype="float32")
    expected = Aligner(model.loaded).align(samples, "ab cab")
    command = ["align", str(model.directory), str(recording), "Ab, cab!"]

    assert main([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["text"] == "ab cab" and record["file"] == str(recording)
    assert [token["text"] for token in record["tokens"]] == list("▁ab▁cab")
    for key in ("start", "end", "confidence"):
        for kind in ("tokens", "words"):
            ours = [getattr(unit, key) for unit in getattr(expected, kind)]
            assert [unit[key] for unit in record[kind]] == pytest.approx(ours, abs=2e-5)
    assert len({token["start"] for token in record["tokens"]}) > 1
    assert record["score"] == pytest.approx(expected.score, rel=1e-4)

    page = tmp_path / "speech.TextGrid"
    assert main([*command, "--output", str(page)]) == 0
    assert capsys.readouterr().out == f"wrote {page}\n"
    grid = textgrid.openTextgrid(str(page), includeEmptyIntervals=False)
    assert grid.maxTimestamp == pytest.approx(0.6)
    spoken = " ".join(entry.label for entry in grid.getTier("words").entries)
    assert spoken == "ab cab"
    starts = [entry.start for entry in grid.getTier("tokens").entries]
    assert starts == sorted({token["start"] for token in record["tokens"]})

    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["token", "start", "end", "confidence", "word"]
    cells = [line.split() for line in lines[2:9]]
    assert [row[0] for row in cells] == list("▁ab▁cab")
    assert [float(row[1]) for row in cells] == [token["start"] for token in record["tokens"]]
    assert [row[4] for row in cells if len(row) > 4] == ["ab", "cab"]
    assert lines[-1].startswith("0.600 s; -") and "nats per token" in lines[-1]


def test_bad_input_is_one_line(
    model: types.SimpleNamespace,
    recording: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0, np.int16), 16_000)
    directory, file = str(model.directory), str(recording)
    for arguments, told in (
        ([directory, str(empty), "ab"], "zero length"),
        ([directory, file, "  "], "the text is empty"),
        ([directory, file, "ab xyz"], "vocabulary has no 'x', 'y', 'z'"),
        ([directory, file, "ab", "--output", str(tmp_path)], "is a directory; name a file"),
        (
            [directory, file, "ab", "--output", str(tmp_path / "no" / "a.json")],
            "make the directory",
        ),
        ([directory, file, "ab", "--format", "xml"], "choose from"),
        ([str(tmp_path), file, "ab"], "not a checkpoint directory"),
    ):
        assert main(["align", *arguments]) == 2, arguments
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and told in error, error
