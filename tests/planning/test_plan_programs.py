"""What the planner asks of the compiler, and what it makes of a refusal; without the compiler."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from maestro_jax.planning import plan as planning
from maestro_jax.planning import search as searching
from maestro_jax.planning.chips import parse_topology
from maestro_jax.planning.compiled import DoesNotFit, TileTooLarge, quick_options

TOPOLOGY = parse_topology("v5e:2x2")
QUICK = quick_options(TOPOLOGY.chip)


@pytest.fixture
def asked(monkeypatch):
    """The options of each program that the planner would have compiled."""
    found = []

    def program(lowered, topology, mesh, what, options):
        found.append(dict(options))
        return planning.ProgramPlan(memory=None, refusal="not compiled", compiler_options=options)

    for module in (planning, searching):
        monkeypatch.setattr(module, "compiler_devices", lambda topology: jax.devices()[:4])
    monkeypatch.setattr(planning, "lower_training", lambda *_, **__: None)
    monkeypatch.setattr(planning, "_program", program)
    return found


@pytest.mark.parametrize("exact", [False, True])
def test_exact_compiles_with_the_options_of_training(asked, small, exact: bool) -> None:
    planning.plan_run(small.run(batch=16), TOPOLOGY, exact=exact, decoding=False)
    assert asked == [{} if exact else QUICK]


@pytest.mark.parametrize("exact", [False, True])
def test_so_does_the_search(asked, small, exact: bool) -> None:
    run = small.run(batch=16)
    found = searching.search(run, TOPOLOGY, times=(1,), tensor=(1,), exact=exact)
    # Each is refused here, so all are asked for.
    assert asked == [{} if exact else QUICK] * len(found)


def refusing(monkeypatch, refusals):
    asked = []

    def compile_program(lowered, chip, what, options):
        asked.append(dict(options))
        raise refusals.pop(0)

    monkeypatch.setattr(planning, "compile_program", compile_program)
    said: list[str] = []
    monkeypatch.setattr(planning.log, "info", lambda text, *values: said.append(text % values))
    found = planning._program(None, TOPOLOGY, None, "the step", QUICK)
    return found, asked, said


def test_a_small_tile_that_cannot_be_had_is_said_and_compiled_again(monkeypatch) -> None:
    refusals = [
        TileTooLarge("small"),
        DoesNotFit("17 GiB", needed=17 * 2**30, capacity=1, largest=()),
    ]
    found, asked, said = refusing(monkeypatch, refusals)
    assert asked == [QUICK, {}]
    assert said == ["the step cannot be compiled with smaller tiles; compiling it as training does"]
    assert (found.refusal, found.needed, found.compiler_options) == ("17 GiB", 17 * 2**30, {})


def test_a_tile_of_training_that_is_too_large_ends_it(monkeypatch) -> None:
    found, asked, _ = refusing(monkeypatch, [TileTooLarge("small"), TileTooLarge("large")])
    assert asked == [QUICK, {}]
    assert (found.memory, found.refusal, found.needed) == (None, "large", None)
    assert not found.fits


def test_a_refusal_tells_how_it_was_compiled(monkeypatch) -> None:
    found, asked, said = refusing(
        monkeypatch, [DoesNotFit("17 GiB", needed=1, capacity=1, largest=())]
    )
    assert (asked, said, found.compiler_options) == ([QUICK], [], QUICK)
    assert dataclasses.asdict(found)["refusal"] == "17 GiB"
