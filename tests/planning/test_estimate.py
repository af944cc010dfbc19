"""Phases and hours of runs, and plans by roofline alone, by hand."""

from __future__ import annotations

import dataclasses

import pytest

from maestro_jax.errors import UserError
from maestro_jax.gin_utils import gin_config
from maestro_jax.planning.chips import parse_topology
from maestro_jax.planning.estimate import RunPhase, estimate, run_phases, run_time
from maestro_jax.planning.roofline import slow_bytes


def test_the_papers_curriculum() -> None:
    """Speech alone for 500k steps, pairs for 15k, then text as well."""
    bindings = {"STEPS": "800000", "AUDIO_SAMPLES": "480000"}
    run = gin_config.parse_and_build(["runs/paper_voxpopuli.gin"], bindings)
    speech, paired, text = ("speech",), ("speech", "paired"), ("speech", "paired", "text")
    assert run_phases(run) == (
        RunPhase(begins=0, steps=500_000, streams=speech),
        RunPhase(begins=500_000, steps=15_000, streams=paired),
        RunPhase(begins=515_000, steps=285_000, streams=text),
    )
    time = run_time(run, {speech: 0.5, paired: 0.8, text: 1.0}, chips=256)
    seconds = 500_000 * 0.5 + 15_000 * 0.8 + 285_000
    assert time.hours == pytest.approx(seconds / 3600)
    assert time.chip_hours == pytest.approx(256 * seconds / 3600)
    # 30 seconds a row: 1024 of speech all the time, 256 pairs from 500k on.
    audio = 30 * (1024 * 800_000 + 256 * 300_000) / 3600
    assert time.audio_hours == pytest.approx(audio)
    assert time.audio_hours_per_second == pytest.approx(audio / seconds)
    assert time.phases[0].audio_hours_per_second == pytest.approx(1024 * 30 / 3600 / 0.5)


@pytest.mark.parametrize("steps", [1, 99, 100, 101, 400])
def test_phases_end_with_the_run(small, steps: int) -> None:
    phases = run_phases(small.run(paired=True, steps=steps))
    assert sum(phase.steps for phase in phases) == steps
    assert [phase.begins for phase in phases] == ([0, 100] if steps > 100 else [0])


def test_a_plan_of_gpus(small) -> None:
    run = small.run(mesh=(2, 8, 1), batch=64, paired=True)
    plan = estimate(run, parse_topology("gpu:H100x8x2"))
    assert plan.mesh == (2, 8, 1) and plan.rows == {"speech": 4, "paired": 2}
    assert plan.parameters == 2 * small.matrix + small.INPUTS + small.HIDDEN
    assert plan.fits and plan.refusal is None
    # The first phase is 100 steps of one stream, which cost less than the 300 of two.
    first, second = plan.time.phases
    assert (first.phase.steps, second.phase.steps) == (100, 300)
    assert second.step_seconds == plan.step.seconds
    assert first.step_seconds < second.step_seconds
    hours = (100 * first.step_seconds + 300 * second.step_seconds) / 3600
    assert plan.time.hours == pytest.approx(hours)
    assert plan.time.chip_hours == pytest.approx(16 * hours)
    # Gradients between the machines: half of each device's shard, up and down.
    gradients = next(each for each in plan.transfers if each.axis == "data")
    slow = sum(slow_bytes(plan.topology, plan.mesh, each) for each in plan.transfers)
    assert slow == pytest.approx(gradients.sent)


def test_what_does_not_fit_is_one_line(small) -> None:
    topology = parse_topology("gpu:A100-40x8")
    tight = dataclasses.replace(
        topology, chip=dataclasses.replace(topology.chip, usable_hbm_bytes=1e6)
    )
    plan = estimate(small.run(), tight)
    assert not plan.fits
    assert "\n" not in plan.refusal
    part, size = next(iter(plan.memory.by_part().items()))
    assert f"most of it {part} ({size / 2**30:.1f} GiB)" in plan.refusal
    assert "gpu:A100-40x8" in plan.refusal


def test_batches_that_do_not_divide(small) -> None:
    with pytest.raises(UserError, match="'speech' is not a multiple of the 16") as error:
        estimate(small.run(batch=24), parse_topology("gpu:H100x8x2"))
    assert "set it to 32" in str(error.value)
    with pytest.raises(UserError, match="mesh_shape"):
        estimate(small.run(mesh=(3, 1, 1)), parse_topology("gpu:H100x8"))
