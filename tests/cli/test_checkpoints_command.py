"""`maestro checkpoints`: the table, the verdict, and what prune removes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest

from maestro_jax.cli.main import main
from maestro_jax.training.checkpoints import BestCheckpoint, Checkpoints
from maestro_jax.training.state import TrainState

STEPS = (100, 200, 300, 400, 500)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(directory, keep=10)
    checkpoints.best = BestCheckpoint(step=100, metric="validation/wer", mode="min", value=0.25)
    for step in STEPS:
        params = {"kernel": jnp.full((50, 40), step, jnp.float32)}
        checkpoints.save(TrainState(jnp.int32(step), params, (), None), {"step": step, "seed": 0})
    checkpoints.close()
    return directory


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def steps(model: Path) -> list[int]:
    return sorted(int(path.name) for path in (model / "checkpoints").iterdir())


def flip_a_bit(model: Path, step: int) -> str:
    directory = model / "checkpoints" / str(step)
    path = max((directory / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return str(path.relative_to(directory))


def test_the_table_names_what_is_damaged_and_the_best(model: Path, capsys) -> None:
    name = flip_a_bit(model, 300)
    (model / "checkpoints" / "500" / "data" / "metadata").unlink()
    assert main(["checkpoints", str(model)]) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["step", "GB", "saved", "state", "best"]
    assert [int(row.split()[0]) for row in rows] == list(STEPS)
    assert "whole" in rows[0] and rows[0].endswith("validation/wer 0.25")
    assert f"damaged: {name} has other bytes than were written" in rows[2]
    assert "damaged: data/metadata is missing" in rows[4]


def test_verify_fails_if_one_is_damaged(model: Path, capsys) -> None:
    assert main(["checkpoints", str(model), "verify"]) == 0
    flip_a_bit(model, 300)
    assert main(["checkpoints", str(model), "verify"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: 1 of 5 checkpoints are damaged, {model}/checkpoints/300 first")


def test_verify_compares_arrays_besides_files(model: Path, capsys) -> None:
    """Files that were written from other arrays, and digested."""
    from maestro_jax.training.checkpoint_files import ARRAYS, write_list

    directory = model / "checkpoints" / "400"
    listed = json.loads((directory / ARRAYS).read_text())
    listed["params/kernel"][1] ^= 1
    (directory / ARRAYS).write_text(json.dumps(listed))
    write_list(directory)
    assert main(["checkpoints", str(model)]) == 0
    assert main(["checkpoints", str(model), "verify"]) == 2
    assert "(the array params/kernel in state has other values" in capsys.readouterr().err


def test_prune_removes_nothing_without_yes(model: Path, capsys) -> None:
    options = ["checkpoints", str(model), "prune", "--keep_last", "1", "--keep_every", "200"]
    assert main(options) == 0
    assert steps(model) == list(STEPS)
    assert "1 of 5 checkpoints, 0.000 GB: --yes removes them" in capsys.readouterr().out
    assert main([*options, "--yes"]) == 0
    assert steps(model) == [100, 200, 400, 500], "the best, two by their step, the last"
    assert main([*options, "--yes"]) == 0 and "nothing to remove" in capsys.readouterr().out


def test_prune_keeps_the_newest_that_is_whole(model: Path) -> None:
    flip_a_bit(model, 500)
    assert main(["checkpoints", str(model), "prune", "--keep_last", "1", "--yes"]) == 0
    assert steps(model) == [100, 400]
    for step in (100, 400):
        flip_a_bit(model, step)
    assert main(["checkpoints", str(model), "prune", "--keep_last", "1", "--yes"]) == 0
    assert steps(model) == [100, 400], "of damaged ones only, nothing is removed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prune"], "prune needs --keep_last N"),
        (["--yes"], "--yes belongs to `maestro checkpoints MODEL_DIR prune`, not to list"),
        (["verify", "--last", "2"], "--last belongs to .* average`, not to verify"),
        (["clean"], "invalid choice: 'clean'"),
    ],
)
def test_options_of_another_action(model: Path, capsys, words: list[str], message: str) -> None:
    import re

    assert main(["checkpoints", str(model), *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_directory_without_checkpoints(tmp_path: Path, capsys) -> None:
    assert main(["checkpoints", str(tmp_path)]) == 2
    assert "has no checkpoints; give a model directory" in capsys.readouterr().err
