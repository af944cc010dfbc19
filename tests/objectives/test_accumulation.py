"""A step that takes its batch in parts has the loss and the gradient of the whole batch."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.objectives.speech_recognition import SpeechRecognition
from maestro_jax.objectives.weighting import PARAMETERS, UncertaintyWeighting
from maestro_jax.training import parameter_trees
from maestro_jax.training.accumulation import MicrobatchedTerms, accumulated_loss, micro_batches
from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.state import create_state
from maestro_jax.training.step import microbatched_terms, term_gradient_norms, train_step

PARTS = 4
RECOGNITION = SpeechRecognition(augment=False)


@pytest.fixture(scope="module")
def sure(tiny):
    """A model without dropout and a batch whose parts have unequal counts of labels and frames."""
    model = tiny.maestro(dropout=0.0)
    batch = tiny.batch()["paired"]
    batch["text_length"] = np.asarray([6, 1, 5, 2, 6, 0, 3, 1], np.int32)
    batch["audio_length"][5] = 0
    return model, tiny.params_of(model), {"paired": batch}


def run_step(tiny, model, params, batch, accumulate, partitioning=None):
    def step(state, batch):
        return train_step(
            state,
            batch,
            model=model,
            objective=RECOGNITION,
            optimizer=tiny.optimizer,
            ema_decay=0.99,
            seed=0,
            accumulate=accumulate,
        )

    state = create_state(params, tiny.optimizer)
    if partitioning is None:
        jitted = jax.jit(step)
        new, metrics = jitted(state, batch)
        return tiny.gradients(new), jax.device_get(metrics)
    mesh = partitioning.mesh()
    abstract = jax.eval_shape(
        lambda: create_state(
            model.init({"params": jax.random.key(0)}, {})["params"], tiny.optimizer
        )
    )
    shardings = partitioning.state_shardings(mesh, abstract)
    with partitioning.activate(mesh):
        state = jax.device_put(state, shardings)
        batch = partitioning.shard_batch(mesh, batch)
        jitted = jax.jit(step)
        new, metrics = jitted(state, batch)
    return tiny.gradients(new), jax.device_get(metrics)


@pytest.fixture(scope="module")
def whole(tiny, sure):
    return run_step(tiny, *sure, 1)


def assert_same(found, expected):
    gradients, metrics = found
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in expected[0].values()))
    for name, leaf in expected[0].items():
        assert np.linalg.norm(gradients[name] - leaf) < 1e-5 * norm, name
    assert set(metrics) == set(expected[1])
    for name, pair in expected[1].items():
        np.testing.assert_allclose(metrics[name], pair, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.extended
def test_the_gradient_of_means_over_unequal_parts_is_exact(tiny, sure, whole):
    assert_same(run_step(tiny, *sure, PARTS), whole)
    # The parts are unequal: the mean of their means would be another loss.
    labels = sure[2]["paired"]["text_length"].reshape(PARTS, -1).sum(axis=1)
    assert len(set(labels)) > 1


@pytest.mark.extended
def test_also_on_a_mesh(tiny, sure, whole):
    assert_same(run_step(tiny, *sure, 2, Partitioning(mesh_shape=(2, 2, 2))), whole)


@pytest.mark.slow
def test_pretraining_is_the_sum_of_its_parts(tiny):
    """All terms with dropout, masks and a learned weighting, against one gradient of the sum."""
    model = tiny.model
    objective = tiny.objective(
        dict.fromkeys(tiny.weights, 0.5), weighting=UncertaintyWeighting(), align_with_ema=False
    )
    params = {
        **tiny.params_of(model),
        PARAMETERS: {
            "log_variance": {
                term: jnp.float32(0.1 * index) for index, term in enumerate(objective.term_weights)
            }
        },
    }
    batch = tiny.batch()
    batch["paired"]["text_length"][:3] = 1
    state = create_state(params, tiny.optimizer).replace(step=jnp.int32(7))
    rng = jax.random.key(5)

    @jax.jit
    def in_parts(state, batch):
        parts = microbatched_terms(objective, model, state, batch, None, rng, 2)
        return accumulated_loss(objective, state.params, parts, step=state.step, controls=None)

    @jax.jit
    def at_once(state, batch):
        def loss(params):
            sums, streams = {}, {}
            for index in range(2):
                part = jax.tree.map(lambda x: x[4 * index : 4 * index + 4], batch)  # noqa: B023
                terms, metrics = objective.loss_terms(
                    model,
                    params,
                    state.ema_params,
                    part,
                    rng=jax.random.fold_in(rng, index),
                    step=state.step,
                )
                for found, into in ((terms, sums), (metrics, streams)):
                    for name, pair in found.items():
                        old = into.get(name, (0.0, 0.0))
                        into[name] = (old[0] + pair[0], old[1] + pair[1])
            value, more = objective.weighted_loss(sums, params, step=state.step)
            return value, streams | more

        return jax.value_and_grad(loss, has_aux=True)(state.params)

    value, metrics, gradients = in_parts(state, batch)
    (expected, expected_metrics), expected_gradients = at_once(state, batch)
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert metrics["paired/examples"] == (8.0, 1.0)
    assert set(metrics) == set(expected_metrics)
    for name in ("loss/contrastive", "loss/mt", "paired/cosine"):
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-5)
    norm = float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(expected_gradients))))
    for name, leaf in parameter_trees.named_leaves(expected_gradients):
        found = dict(parameter_trees.named_leaves(gradients))[name]
        assert np.linalg.norm(found - leaf) < 1e-5 * norm, name
        assert found.dtype == jnp.float32
    weighting = gradients[PARAMETERS]["log_variance"]
    assert all(float(leaf) != 0.0 for leaf in weighting.values())


def test_parts_have_randomness_of_their_own(tiny):
    """Two parts with the same rows get other masks."""
    batch = {"speech": tiny.batch()["speech"]}
    batch = jax.tree.map(lambda x: np.concatenate([x[:4], x[:4]]), batch)
    seen = []

    def terms(params, averages, part, key):
        seen.append(key)
        return {"term": (jax.random.uniform(key) + jnp.sum(part["speech"]["audio"]), 1.0)}, {
            "drawn": (jax.random.uniform(key), jnp.ones(()))
        }

    parts = MicrobatchedTerms(
        terms=terms,
        averages=None,
        microbatches=micro_batches(batch, 2),
        count=2,
        rng=jax.random.key(0),
    )
    _, _, metrics = parts.gradient({"w": jnp.ones(())}, {"term": 1.0})
    each = [jax.random.uniform(jax.random.fold_in(jax.random.key(0), n)) for n in range(2)]
    assert metrics["drawn"][0] == pytest.approx(float(sum(each)))
    assert each[0] != each[1]


def test_counting_runs_no_network(tiny, sure):
    """Counts of labels follow from lengths: their program multiplies no matrices."""
    model, params, batch = sure
    state = create_state(params, tiny.optimizer)

    def counts(params, batch):
        parts = microbatched_terms(RECOGNITION, model, state, batch, None, jax.random.key(0), 2)
        return parts.counts(params)

    program = jax.make_jaxpr(counts)(params, batch)
    assert "dot_general" not in str(program)
    assert counts(params, batch)["transducer"] == batch["paired"]["text_length"].sum()


def test_rows_stay_on_their_devices():
    partitioning = Partitioning(mesh_shape=(2, 4, 1))
    mesh = partitioning.mesh()
    batch = partitioning.shard_batch(mesh, {"x": np.arange(32, dtype=np.int32)})
    with partitioning.activate(mesh):
        split = jax.jit(lambda batch: micro_batches(batch, 2))
        found = split(batch)["x"]
        text = split.lower(batch).compile().as_text()
    np.testing.assert_array_equal(
        found, np.arange(32).reshape(8, 2, 2).swapaxes(0, 1).reshape(2, 16)
    )
    assert not re.search(r"all-to-all|all-gather|collective-permute|all-reduce", text)
    rows = {shard.device: set(np.ravel(shard.data)) for shard in batch["x"].addressable_shards}
    for shard in found.addressable_shards:
        assert set(np.ravel(shard.data)) == rows[shard.device]


def test_norms_of_terms_are_those_of_the_whole_batch(tiny, sure):
    model, params, batch = sure
    objective = dataclasses.replace(RECOGNITION, transducer_weight=0.3)
    state = create_state(params, tiny.optimizer)
    found = [
        jax.jit(
            lambda state, batch, n=n: term_gradient_norms(
                state, batch, model=model, objective=objective, seed=0, accumulate=n
            ),
        )(state, batch)
        for n in (1, 2)
    ]
    for one, other in zip(*found, strict=True):
        assert set(one) == set(other) == {"transducer"}
        assert one["transducer"] == pytest.approx(float(other["transducer"]), rel=1e-5)
