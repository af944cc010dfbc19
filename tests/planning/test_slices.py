"""What two slices say to each other in a training step: sums of gradients, and nothing larger."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.tpu_backend, pytest.mark.slow]

PROGRAM = """
import json, math
import jax, jax.numpy as jnp
import flax.linen as nn
from jax.experimental import topologies
from maestro_jax.batches import StreamConfig
from maestro_jax.layers.partitioned import Dense, constrain
from maestro_jax.planning.collectives import find_collectives
from maestro_jax.objectives.base import Objective
from maestro_jax.training.step import jit_train_step
from maestro_jax.training.state import sharded_state
from maestro_jax.training.optimizers import AdamConfig
from maestro_jax.training.partitioning import Partitioning, replicated
from maestro_jax.training.run import TrainRun
from maestro_jax.training.curriculum_controller import initial_controls

class Layers(nn.Module):
    @nn.compact
    def __call__(self, audio):
        x = constrain(audio.astype(jnp.bfloat16), "batch", "act_embed")
        for index in range(2):
            x = nn.relu(Dense(1024, ("embed", "mlp"), dtype=jnp.bfloat16, name=f"up_{{index}}")(x))
            x = constrain(x, "batch", "act_mlp")
            x = Dense(256, ("mlp", "embed"), dtype=jnp.bfloat16, name=f"down_{{index}}")(x)
            x = constrain(x, "batch", "act_embed")
        return x

class Loudness(Objective):
    loss_weights = {{"speech": {{"loudness": 1.0}}}}
    def init(self, model, rng, batch):
        return model.init(rng, batch["speech"]["audio"])["params"]
    def loss_terms(self, model, params, ema_params, batch, **options):
        y = model.apply({{"params": params}}, batch["speech"]["audio"])
        return {{"loudness": (jnp.mean(y.astype(jnp.float32) ** 2), jnp.ones(()))}}, {{}}

devices = topologies.get_topology_desc("v5e:2x2", platform="tpu", num_slices=2).devices
run = TrainRun(
    model=Layers(), objective=Loudness(), optimizer=AdamConfig(), steps=1,
    streams={{"speech": StreamConfig(mixture="m", batch_size=512, audio_samples=256)}},
    partitioning=Partitioning(mesh_shape={mesh}, slices={slices}),
)
mesh = run.partitioning.mesh(devices)
state = sharded_state(run, mesh)
controls = jax.eval_shape(lambda: initial_controls(run.objective))
with run.partitioning.activate(mesh):
    step = jit_train_step(run, mesh, state.shardings)
    compiled = step.lower(state.abstract, run.batch_shapes(), controls).compile()
found = find_collectives(compiled.as_text(), dict(mesh.shape), slices=2)
held = sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * 4
    for leaf in jax.tree.leaves(state.abstract.params)
)
print(json.dumps({{
    "held": held,
    "across": [[c.kind, list(c.axes), c.payload * c.times] for c in found if c.crosses_slices],
    "within": [[c.kind, list(c.axes), c.payload * c.times] for c in found if not c.crosses_slices],
}}))
"""


def compiled_for_two_slices(with_tpu_compiler, mesh, slices):
    printed = with_tpu_compiler(PROGRAM.format(mesh=mesh, slices=slices))
    return json.loads(printed.splitlines()[-1])


def test_gradients_alone_cross_between_slices(with_tpu_compiler) -> None:
    """Two slices of four chips: fsdp within, data across."""
    found = compiled_for_two_slices(with_tpu_compiler, (2, 4, 1), (-1, 1, 1))
    assert found["across"]
    # The gradient of what a device holds is summed over data; norms and losses are a few numbers.
    large = [each for each in found["across"] if each[2] > 4096]
    assert large
    assert {tuple(axes) for _, axes, _ in large} == {("data",)}
    assert {kind for kind, _, _ in large} <= {"all-reduce", "reduce-scatter", "all-gather"}
    # Gradients of kernels may be summed in bfloat16, in which they were computed.
    assert 0.45 * found["held"] < sum(size for *_, size in large) < 1.1 * found["held"]
    gathered = [each for each in found["within"] if each[0] == "all-gather" and each[2] > 4096]
    assert {tuple(axes) for _, axes, _ in gathered} == {("fsdp",)}


def test_what_fsdp_sends_crosses_where_it_was_laid_across(with_tpu_compiler) -> None:
    found = compiled_for_two_slices(with_tpu_compiler, (1, 8, 1), (1, -1, 1))
    assert found["across"]
    assert {tuple(axes) for _, axes, _ in found["across"]} == {("fsdp",)}
    # A part of what is gathered travels within a slice first.
    large = {kind for kind, _, size in found["across"] + found["within"] if size > 4096}
    assert "all-gather" in large
