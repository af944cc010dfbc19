"""`maestro plan` without a compiler: its options, its figures, its refusals."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest

from maestro_jax.cli.commands.plan import explanation, plan_text
from maestro_jax.cli.main import main
from maestro_jax.errors import UserError
from maestro_jax.gin_utils.gin_config import parse_and_build
from maestro_jax.planning import plan as planning
from maestro_jax.planning.chips import parse_topology
from maestro_jax.planning.compiled import CompiledMemory, quick_options
from maestro_jax.planning.cycles import LoopTime, TimeShare

FILES = [
    *("--gin_file", "runs/pretrain.gin", "--gin_file", "models/xl.gin"),
    *("--gin_file", "objectives/maestro.gin", "--gin_file", "data/voxpopuli.gin"),
]


def plan(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    status = main(["plan", *arguments])
    output, errors = capsys.readouterr()
    return status, output, errors.strip().splitlines()[-1] if errors.strip() else ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "plan needs a run"),
        (FILES, "plan needs --topology"),
        ([*FILES, "--topology", "v5x:16x16"], "Did you mean"),
        ([*FILES, "--topology", "v5e:16x16", "--mesh", "1,2"], "three whole numbers"),
        ([*FILES, "--topology", "v5e:16x16", "--decoding", "fast"], "greedy, none"),
        (
            [*FILES, "--topology", "v5e:16x16", "--steps", "9", "--mesh", "1,3,1", "--roofline"],
            "mesh_shape (1, 3, 1) needs 3 devices, but there are 256",
        ),
    ],
)
def test_bad_input_is_one_line(capsys, arguments: list[str], message: str) -> None:
    status, output, error = plan(capsys, *arguments)
    assert status == 2
    assert output == ""
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.extended
def test_the_paper_s_run_on_gpus(capsys) -> None:
    arguments = [*FILES, "--topology", "gpu:H100x8x8", "--steps", "500000", "--json"]
    status, output, _ = plan(capsys, *arguments)
    assert status == 0
    found = json.loads(output)
    assert found["chips"] == 64
    assert found["mesh"] == {"data": 4, "fsdp": 16, "tensor": 1}
    assert {name: each["per_chip"] for name, each in found["streams"].items()} == {
        "speech": 16,
        "paired": 4,
        "text": 16,
    }
    assert found["training"] is None
    roofline, run = found["roofline"], found["run"]
    # Seconds, hours and utilisation are of one step of so many FLOPs at the peak of an H100 SXM.
    peak = 64 * 989.5e12
    assert roofline["model_flops_utilisation"] == pytest.approx(
        roofline["model_flops"] / roofline["seconds"] / peak, rel=0.01
    )
    assert run["hours"] == pytest.approx(500_000 * roofline["seconds"] / 3600)
    assert run["chip_hours"] == pytest.approx(64 * run["hours"])
    assert run["audio_hours"] == pytest.approx(500_000 * (1024 + 256) * 32 / 3600)


@pytest.mark.extended
def test_what_does_not_fit_ends_with_one_line(capsys) -> None:
    arguments = [*FILES, "--topology", "v5e:2x2", "--mesh=1,-1,1", "--steps", "10", "--roofline"]
    status, output, error = plan(capsys, *arguments)
    assert status == 2
    assert "memory per chip, estimated, of 15.75 GiB" in output
    assert "activations" in error
    assert "is too small" in error


@pytest.mark.parametrize("exact", [False, True])
def test_exact_reaches_the_planner(capsys, monkeypatch, exact: bool) -> None:
    asked = []

    def plan_run(*_, **options):
        asked.append(options["exact"])
        raise UserError("no further")

    monkeypatch.setattr(planning, "plan_run", plan_run)
    arguments = [*FILES, "--topology", "v6e:16x16", "--steps", "9", *["--exact"] * exact]
    status, _, error = plan(capsys, *arguments)
    assert (status, error, asked) == (2, "error: no further", [exact])


@pytest.mark.extended
def test_what_a_quick_compilation_is_worth_is_said() -> None:
    files = [*FILES[1::2]]
    run = parse_and_build(files, {"STEPS": "9", "AUDIO_SAMPLES": "64000"})
    found = planning.plan_run(run, parse_topology("v6e:16x16"), compile_it=False)
    memory = CompiledMemory(arguments=1, results=1, temporaries=1, code=1, capacity=10)
    compiled = dataclasses.replace(
        found, training=planning.ProgramPlan(memory=memory, compiler_seconds=1.0)
    )
    assert "--exact" not in plan_text(compiled)
    options = quick_options(found.topology.chip)
    training = dataclasses.replace(compiled.training, compiler_options=options)
    text = plan_text(dataclasses.replace(compiled, training=training, decoding=compiled.training))
    (line,) = (line for line in text.splitlines() if "--exact" in line)
    assert "1 (without waiting, small tiles)" in text
    assert line.startswith("the training step was compiled with ")
    assert "xla_tpu_scoped_vmem_limit_kib=8192" in line


def test_explain_says_where_the_time_goes() -> None:
    share = functools.partial(TimeShare, runs=1.0)
    training = planning.ProgramPlan(
        memory=None,
        time_shares=(
            share(kind="products", phase="forward", part="encoder", seconds=3e-3, floor=1e-3),
            share(kind="products", phase="backward", part="encoder", seconds=4e-3, floor=2e-3),
            share(kind="copies", phase="forward", part="decoder", seconds=1e-3, floor=0.0),
        ),
        loops=(
            LoopTime(name="jit(f)/jvp(Model.encode)/encoder/while", turns=18, seconds=2e-3),
            LoopTime(name="jit(f)/decoder/while", turns=None, seconds=1e-6),
            LoopTime(name="jit(f)/jvp()/while", turns=4, seconds=1e-6),
        ),
    )
    rows = [line.split() for text in explanation(training) for line in text.splitlines()]
    assert ["products", "3", "0", "4", "0", "7", "87.5%", "3"] in rows
    assert ["decoder", "1", "0", "0", "0", "1", "12.5%", "0"] in rows
    assert ["encoder", "forward", "18", "2"] in rows
    # A loop of unknown length is named however short one turn of it is.
    assert ["decoder", "update", "unknown:", "counted", "as", "1", "0"] in rows
    assert not any("objective" in row for row in rows)
    [unknown] = explanation(planning.ProgramPlan(memory=None, loops=training.loops))
    assert "not published" in unknown


def test_explain_needs_the_compiler(capsys) -> None:
    for more in (["v5e:16x16", "--roofline"], ["gpu:H100x8"]):
        status, output, error = plan(capsys, *FILES, "--topology", *more, "--explain")
        assert (status, output) == (2, "")
        assert error.startswith("error: --explain reads what the TPU compiler made")
