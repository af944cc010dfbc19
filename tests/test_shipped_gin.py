"""Every gin file that the package carries: read, built, and traced without a device's work."""

from __future__ import annotations

import jax
import pytest

from maestro_jax.cli import gin_config
from maestro_jax.configs_path import config_root
from maestro_jax.data.streams import batch_shapes
from maestro_jax.training.partitioning import Partitioning

MODELS = sorted(path.name for path in (config_root() / "models").glob("*.gin"))
HEADS = sorted(path.name for path in (config_root() / "models" / "heads").glob("*.gin"))
OBJECTIVES = sorted(path.name for path in (config_root() / "objectives").glob("*.gin"))
DATA = sorted(path.name for path in (config_root() / "data").glob("*.gin"))
RUNS = sorted(path.name for path in (config_root() / "runs").glob("*.gin"))


def build(
    run="pretrain.gin",
    model="tiny.gin",
    objective="maestro.gin",
    data="minivox_tiny.gin",
    head=None,
):
    files = [f"runs/{run}", f"models/{model}", f"objectives/{objective}", f"data/{data}"]
    files += [f"models/heads/{head}"] if head else []
    return gin_config.parse_and_build(files, {"STEPS": "1000", "WARMUP_STEPS": "10"})


def abstract_state_is_sharded(run) -> None:
    mesh = Partitioning(mesh_shape=(2, 2, 2)).mesh(jax.devices()[:8])
    with run.partitioning.activate(mesh):
        abstract = run.abstract_state()
    specs = jax.tree.map(lambda s: s.spec, run.partitioning.state_shardings(mesh, abstract).params)
    sharded = [spec for spec in jax.tree.leaves(specs) if any(axis for axis in spec)]
    assert len(sharded) > len(jax.tree.leaves(specs)) / 2


@pytest.mark.parametrize("model", MODELS)
def test_models(model: str) -> None:
    abstract_state_is_sharded(build(model=model))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives(objective: str) -> None:
    run = build(objective=objective)
    assert set(run.objective.active_streams(10**9)) <= set(run.objective.streams)
    assert run.used_streams
    # What an objective trains to write, the model has.
    assert set(getattr(run.objective, "decoders", ())) <= set(run.model.vocab_sizes)


@pytest.mark.parametrize("head", HEADS)
def test_heads(head: str) -> None:
    """A head comes on top of any model, and leaves the rest of it as it is."""
    without = build().model
    model = build(model="tiny.gin", head=head).model
    assert len(model.vocab_sizes) == len(without.vocab_sizes) + 1
    assert model.vocab_size == without.vocab_size
    head_fields = {"ctc_head": None, "translation_decoder": None, "parent": None, "name": None}
    assert model.clone(**head_fields) == without.clone(**head_fields)


@pytest.mark.parametrize("data", DATA)
def test_data(data: str) -> None:
    from maestro_jax.data.task_listing import get_task_or_mixture

    run = build(data=data)
    batch_shapes(run.streams)
    for stream in run.streams.values():
        get_task_or_mixture(stream.mixture)


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str) -> None:
    files = [f"runs/{name}"]
    bindings = {}
    if "INIT_FROM" in gin_config.macros(files):
        bindings["INIT_FROM"] = "None"
    if name in ("pretrain.gin", "finetune.gin"):
        files += ["models/tiny.gin", "objectives/maestro.gin", "data/minivox_tiny.gin"]
        bindings |= {"STEPS": "100000", "WARMUP_STEPS": "10"}
    run = gin_config.parse_and_build(files, bindings)
    assert run.steps > 0


@pytest.mark.parametrize("folder", ["models", "models/heads", "objectives", "data", "runs"])
def test_each_file_opens_with_what_it_is_for(folder: str) -> None:
    for path in (config_root() / folder).glob("*.gin"):
        head = path.read_text().split("\n\n")[0]
        assert head.startswith("# "), path.name
        assert "# Required to be set: " in head, path.name
        assert "# Commonly overridden: " in head, path.name
