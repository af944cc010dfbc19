"""Gates that stop the curriculum's clock, in words, in the record, and in a real run."""

from __future__ import annotations

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.objectives.curriculum import Curriculum, Gate, Phase
from maestro_jax.objectives.maestro import MaestroPretraining
from maestro_jax.objectives.weighting import GradientNormWeighting
from maestro_jax.training import parameter_trees
from maestro_jax.training.curriculum_controller import (
    CurriculumController,
    LossBalancer,
    step_controls,
)
from maestro_jax.training.state import create_state, initial_params
from maestro_jax.training.step import term_gradient_norms
from maestro_jax.training.trainer import train

ENTROPY = "paired/alignment_entropy"


def gated(max_hold_steps=None):
    """Speech, paired speech from 10, text from 20 and translation from 30, the last two gated."""
    return MaestroPretraining(
        curriculum=Curriculum(
            phases=(
                Phase(name="speech", start_step=0, streams=("speech",)),
                Phase(name="paired", start_step=10, streams=("paired",)),
                Phase(
                    name="text",
                    start_step=20,
                    streams=("text",),
                    gates=(Gate(metric=ENTROPY, below=1.0),),
                    max_hold_steps=max_hold_steps,
                ),
                Phase(
                    name="translation",
                    start_step=30,
                    streams=("mt", "st"),
                    gates=(Gate(metric="loss/aligned_masked_lm", below=2.0),),
                ),
            )
        )
    )


def clocks(controller, steps=60):
    return [controller.curriculum_step(step) for step in range(steps)]


def test_without_gates_the_clock_is_the_step():
    assert clocks(CurriculumController(MaestroPretraining(), 5)) == list(range(60))


def test_a_shut_gate_stops_the_clock_before_the_phase():
    controller = CurriculumController(gated(), 5)
    assert clocks(controller) == [*range(20), *[19] * 40]
    assert controller.active_streams(59) == ("speech", "paired")


def test_a_gate_that_is_open_in_time_holds_nothing():
    controller = CurriculumController(gated(), 5)
    controller.judge_gates(15, {ENTROPY: 0.5})
    controller.judge_gates(25, {"loss/aligned_masked_lm": 1.0})
    assert clocks(controller) == list(range(60))


def test_what_follows_is_put_off_as_well():
    controller = CurriculumController(gated(), 5)
    for step in (15, 20, 25):
        controller.judge_gates(step, {ENTROPY: 3.0})
    controller.judge_gates(30, {ENTROPY: 0.9})
    # The batch of the step after the log point is on its way: text begins with step 32, 12 late.
    assert clocks(controller)[:42] == [*range(20), *[19] * 12, *range(20, 30)]
    assert controller.active_streams(31) == ("speech", "paired")
    assert controller.active_streams(32) == ("speech", "paired", "text")
    # Translation is due at 30 + 12 and its gate has not been judged.
    assert clocks(controller)[42:] == [29] * 18
    controller.judge_gates(40, {"loss/aligned_masked_lm": 1.9})
    assert clocks(controller)[42:] == list(range(30, 48))


def test_a_gate_is_not_judged_before_its_time():
    controller = CurriculumController(gated(), 5)
    controller.judge_gates(10, {ENTROPY: 0.1})
    controller.judge_gates(15, {ENTROPY: 3.0})
    assert controller.curriculum_step(25) == 19


def test_it_says_what_holds_a_phase_back_and_since_when(caplog):
    caplog.set_level(logging.INFO)
    controller = CurriculumController(gated(), 5)
    controller.judge_gates(15, {ENTROPY: 3.0})
    assert caplog.messages[-1] == (
        "phase 'text' is held back at step 15: paired/alignment_entropy below 1 is required, "
        "and it is 3"
    )
    controller.judge_gates(20, {"paired/alignment_entrop": 3.0})
    assert "no such metric is logged" in caplog.messages[-1]
    controller.judge_gates(25, {ENTROPY: 0.5})
    assert caplog.messages[-1] == "phase 'text': gates open at step 25, held 7 steps"


def test_a_phase_may_begin_in_spite_of_its_gate(caplog):
    controller = CurriculumController(gated(max_hold_steps=10), 5)
    for step in (15, 20, 25):
        controller.judge_gates(step, {ENTROPY: 3.0})
    assert controller.curriculum_step(29) == 19
    controller.judge_gates(30, {ENTROPY: 3.0})
    assert controller.curriculum_step(32) == 20
    assert "although its gate is shut" in caplog.messages[-1]


def test_the_record_goes_through_json():
    controller = CurriculumController(gated(), 5)
    controller.judge_gates(20, {ENTROPY: 0.5})
    again = CurriculumController(gated(), 5)
    again.load(json.loads(json.dumps(controller.state())))
    assert clocks(again) == clocks(controller) != clocks(CurriculumController(gated(), 5))


def test_weights_from_gradient_norms_reach_the_controls_and_the_record():
    objective = MaestroPretraining(st_weight=2.0, weighting=GradientNormWeighting(every=4))
    curriculum = CurriculumController(objective, 5)
    balancer = LossBalancer(objective, curriculum)
    assert set(step_controls(curriculum, balancer, 0).learned_weights) == set(
        objective.term_weights
    )
    assert [step for step in range(1, 9) if balancer.is_due(step)] == [4, 8]
    # The weights that are set count: 5 and 2 against each other, not 5 and 1.
    balancer.update(4, {"mt": 5.0, "st": 1.0, "text": 0.0}, {"mt": 3.0, "st": 3.0, "text": 0.0})
    weights = step_controls(curriculum, balancer, 4).learned_weights
    assert weights["mt"] < 1.0 < weights["st"]
    # Both are moved towards 3.5 by a factor to the power of 0.1; their sum stays 2.
    moved = {"mt": (3.5 / 5.0) ** 0.1, "st": (3.5 / 2.0) ** 0.1}
    assert weights["mt"] == pytest.approx(moved["mt"] * 2 / sum(moved.values()))
    again = LossBalancer(objective, curriculum)
    again.load(json.loads(json.dumps(balancer.state())))
    assert step_controls(curriculum, again, 4) == step_controls(curriculum, balancer, 4)


@pytest.fixture
def toy_with_gate(toy):
    """A toy whose second stream begins at step 4, once the loss is below a bar."""

    @dataclasses.dataclass(frozen=True)
    class Gated(toy.Objective):
        bar: float = 0.0

        @property
        def curriculum(self):
            gate = Gate(metric="loss/text", below=self.bar)
            return Curriculum(
                phases=(
                    Phase(name="text", start_step=0, streams=("text",)),
                    Phase(name="mt", start_step=4, streams=("mt",), gates=(gate,)),
                )
            )

    return Gated


def test_a_run_is_held_and_goes_on_after_an_interruption_alike(toy, toy_with_gate, tmp_path):
    """The clock in the log, of a run in one go and of one that stopped in between."""
    losses = []

    def remember(step, values):
        losses.append(values["loss/text"])

    train(
        toy.run(objective=toy_with_gate(bar=-1.0), steps=12, log_every=2),
        tmp_path / "never",
        batches=toy.batches,
        callbacks=[toy.OnLog(remember)],
    )
    # A bar that the loss passes at the fourth log point of six.
    bar = 0.5 * (losses[2] + losses[3]) if losses[3] < min(losses[:3]) else None
    assert bar is not None, losses
    objective = toy_with_gate(bar=bar)

    def logged(directory):
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["curriculum_step"] for line in lines]

    whole = toy.run(objective=objective, steps=14, log_every=2, checkpoint_every=5)
    train(whole, tmp_path / "whole", batches=toy.batches)
    # Open at step 8, so that the update after 10 updates is the first of the phase.
    assert logged(tmp_path / "whole") == [2, 3, 3, 3, 4, 6, 8]
    for steps in (5, 8, 10, 14):
        train(dataclasses.replace(whole, steps=steps), tmp_path / "parts", batches=toy.batches)
    assert logged(tmp_path / "parts")[-3:] == [4, 6, 8]


@pytest.fixture
def two_terms(toy):
    """A toy with a term of small and a term of huge gradients, weighed by their norms."""

    @dataclasses.dataclass(frozen=True)
    class Weighed(toy.Objective):
        weighting: GradientNormWeighting = GradientNormWeighting(every=1, alpha=0.0, rate=1.0)

        @property
        def loss_weights(self):
            return {"text": {"small": 1.0, "huge": 1.0}}

        def loss_terms(self, *args, controls=None, **kwargs):
            loss, _ = toy.Objective().loss(*args, **kwargs)
            one = jnp.ones(())
            return {"small": (loss, one), "huge": (100.0 * loss, one)}, {}

    return Weighed()


def test_gradient_norms_weigh_the_terms_of_a_run(toy, two_terms, tmp_path):
    logged = {}
    train(
        toy.run(objective=two_terms, steps=3, log_every=1),
        tmp_path,
        batches=toy.batches,
        callbacks=[toy.OnLog(logged.__setitem__)],
    )
    assert (logged[1]["weight/small"], logged[1]["weight/huge"]) == (1.0, 1.0)
    # With a rate of 1 the first measurement makes both gradients equal, with a sum of 2.
    assert logged[2]["weight/huge"] == pytest.approx(2 / 101, rel=1e-4)
    assert logged[3]["weight/small"] == pytest.approx(200 / 101, rel=1e-4)


def test_norms_are_those_of_each_term_alone(toy, two_terms):
    run = toy.run()
    params = parameter_trees.unbox(
        initial_params(run.model, run.objective, run.batch_shapes(), seed=1)
    )
    state = create_state(params, run.optimizer)
    batch = next(toy.batches(0))
    norms, means = term_gradient_norms(
        state, batch, None, model=run.model, objective=two_terms, seed=7
    )
    rng = jax.random.fold_in(jax.random.key(7), 0)
    value, gradient = jax.value_and_grad(
        lambda p: toy.Objective().loss(run.model, p, params, batch, rng=rng, step=0)[0]
    )(params)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    assert means["small"] == pytest.approx(float(value))
    assert norms["small"] == pytest.approx(norm, rel=1e-5)
    assert norms["huge"] == pytest.approx(100 * norm, rel=1e-5)
