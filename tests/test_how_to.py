"""The tutorials for objectives and blocks: their code, as it stands on the page, trains."""

from __future__ import annotations

import json
import pathlib
import re

import jax
import pytest
from narrow_model import NARROW

from maestro_jax.batches import synthetic_batch
from maestro_jax.gin_utils import gin_config
from maestro_jax.training import parameter_trees
from maestro_jax.training.trainer import train

PAGES = pathlib.Path(__file__).resolve().parents[1] / "docs" / "how_to"


def blocks_of(page: str) -> dict[str, str]:
    """The code of a page by its language; each language has one block."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    assert len({language for language, _ in found}) == len(found)
    return dict(found)


@pytest.fixture
def tutorial(tmp_path, monkeypatch):
    """Writes the files of a page, and trains two steps of the run that they describe."""

    def follow(page: str, module: str) -> tuple:
        code = blocks_of(page)
        package = tmp_path / "my_lab"
        package.mkdir()
        (package / f"{module}.py").write_text(code["python"])
        gin_file = tmp_path / "run.gin"
        gin_file.write_text(code["gin"])
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.chdir(tmp_path)
        sizes = {f"{stream}_BATCH": "8" for stream in ("SPEECH", "PAIRED", "TEXT", "MT", "ST")}
        sizes |= {"AUDIO_SAMPLES": "9600", "TOKENS": "6", "STEPS": "2", "DIAGNOSTICS_EVERY": "0"}
        bindings = {**NARROW, **sizes}
        run = gin_config.parse_and_build([str(gin_file)], bindings, [f"my_lab.{module}"])
        batches = (synthetic_batch(run.streams, step, 32) for step in range(2))
        state = train(run, tmp_path / "model", batches=lambda start: batches)
        lines = (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()
        return run, state, [json.loads(line) for line in lines]

    # The module stays imported: gin knows its classes, and refuses others of the same names.
    return follow


@pytest.mark.extended
def test_an_objective_of_a_user(tutorial) -> None:
    run, state, logged = tutorial("objective", "rdrop")
    assert type(run.objective).__module__ == "my_lab.rdrop" and int(state.step) == 2
    for values in logged:
        total = values["loss/transducer"] + 0.5 * values["loss/consistency"]
        assert values["loss"] == pytest.approx(total, rel=1e-5)
        # Both passes drew dropout of their own.
        assert values["loss/consistency"] > 1e-4
    assert run.objective.decoders == ("transducer",)


@pytest.mark.extended
def test_a_block_of_a_user(tutorial) -> None:
    run, state, logged = tutorial("block", "blocks")
    assert type(run.model.shared_encoder.stack.block).__module__ == "my_lab.blocks"
    names = {name for name, _ in parameter_trees.named_leaves(state.params)}
    encoders = {name for name in names if "/stack/" in name}
    assert "shared_encoder/stack/layer_0/FeedForward_0/up/kernel" in encoders
    assert not any("attention" in name for name in encoders)
    assert len(logged) == 2 and all(values["skipped_steps"] == 0 for values in logged)
    assert jax.tree.all(jax.tree.map(lambda leaf: bool((leaf == leaf).all()), state.params))
