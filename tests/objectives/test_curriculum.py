"""Phases, schedules and gates, by their definitions."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from maestro_jax.objectives.curriculum import (
    ALL_STREAMS,
    Curriculum,
    Gate,
    Phase,
    Schedule,
    paper_curriculum,
    weight_at,
)


def test_streams_begin_with_their_phase_and_stay():
    curriculum = Curriculum(
        phases=(
            Phase(name="speech", start_step=0, streams=("speech",)),
            Phase(name="text", start_step=5, streams=("text",)),
            Phase(name="paired", start_step=9, streams=("paired",)),
        )
    )
    assert [curriculum.streams(step) for step in (0, 4, 5, 8, 9, 100)] == [
        ("speech",),
        ("speech",),
        ("speech", "text"),
        ("speech", "text"),
        # The order of a batch, not that of the phases.
        ("speech", "paired", "text"),
        ("speech", "paired", "text"),
    ]


def test_without_settings_everything_begins_at_once():
    assert Curriculum().streams(0) == ALL_STREAMS == paper_curriculum().streams(0)


def test_a_schedule_is_linear_between_its_points():
    schedule = Schedule(points=((10, 0.0), (20, 1.0), (40, 0.5)))
    steps = np.arange(60)
    found = jax.vmap(schedule.at)(steps)
    np.testing.assert_allclose(found, np.interp(steps, [10, 20, 40], [0.0, 1.0, 0.5]), rtol=1e-6)


def test_a_schedule_may_be_constant_between_its_points():
    schedule = Schedule(points=((10, 0.2), (20, 1.0)), shape="constant")
    assert [float(schedule.at(step)) for step in (0, 9, 10, 19, 20, 99)] == pytest.approx(
        [0.2, 0.2, 0.2, 0.2, 1.0, 1.0]
    )


def test_a_number_is_a_weight():
    assert weight_at(0.3, 17) == 0.3


@pytest.mark.parametrize(
    ("gate", "shut", "open_"),
    [
        (Gate(metric="m", below=1.0), (1.0, 2.0, None, float("nan")), (0.5, -3.0)),
        (Gate(metric="m", above=1.0), (1.0, 0.0, None), (1.5,)),
        (Gate(metric="m", above=1.0, below=2.0), (1.0, 2.0, 5.0), (1.5,)),
    ],
)
def test_gates(gate, shut, open_):
    assert not any(gate.is_open(value) for value in shut)
    assert all(gate.is_open(value) for value in open_)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule(points=()), "Schedule.points"),
        (lambda: Schedule(points=((5, 1.0), (3, 0.0))), "ascending"),
        (lambda: Schedule(points=((0, 1.0),), shape="cubic"), "'cubic'"),
        (lambda: Gate(metric="loss"), "set below or above"),
        (lambda: Phase(name="p", start_step=0, streams=("txt",)), "'txt'"),
        (
            lambda: Phase(name="p", start_step=0, streams=(), gates=(Gate(metric="m", below=1),)),
            "begins at step 0",
        ),
        (lambda: Curriculum(phases=()), "first must begin at 0"),
        (lambda: Curriculum(phases=(Phase(name="p", start_step=2, streams=()),)), "begin at 0"),
        (
            lambda: Curriculum(
                phases=(
                    Phase(name="p", start_step=0, streams=("text",)),
                    Phase(name="q", start_step=2, streams=("text",)),
                )
            ),
            "two phases",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
