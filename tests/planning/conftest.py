"""Programs that need a JAX of their own, and a run whose work can be written down."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
import textwrap
import types
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from maestro_jax.batches import StreamConfig
from maestro_jax.layers.partitioned import Dense, constrain
from maestro_jax.objectives.base import Objective
from maestro_jax.training.optimizers import AdamConfig
from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.run import TrainRun

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_python(program: str, **environment: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


@pytest.fixture
def on_eight_devices():
    """Runs a program on eight devices of the CPU, and returns what it printed."""
    return lambda program: run_python(program, XLA_FLAGS="--xla_force_host_platform_device_count=8")


@pytest.fixture
def with_tpu_compiler():
    """Runs a program that may compile for TPUs, and returns what it printed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    return lambda program: run_python(
        program, XLA_FLAGS="", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1"
    )


INPUTS, HIDDEN = 256, 1024


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, audio):
        x = constrain(audio.astype(jnp.bfloat16) / 32768, "batch", "act_embed")
        x = Dense(HIDDEN, ("embed", "mlp"), dtype=jnp.bfloat16, name="up")(x)
        x = constrain(nn.relu(x), "batch", "act_mlp")
        x = Dense(INPUTS, ("mlp", "embed"), dtype=jnp.bfloat16, name="down")(x)
        return constrain(x, "batch", "act_embed")


class Loudness(Objective):
    """Streams `speech` from the first step, `paired` from the hundredth."""

    loss_weights: ClassVar = {name: {name: 1.0} for name in ("speech", "paired")}

    def active_streams(self, step):
        return self.streams if step >= 100 else ("speech",)

    def init(self, model, rng, batch):
        return model.init(rng, next(iter(batch.values()))["audio"])["params"]

    def loss_terms(self, model, params, ema_params, batch, *, rng, step, controls=None, train=True):
        terms = {}
        for name, stream in batch.items():
            predicted = model.apply({"params": params}, stream["audio"]).astype(jnp.float32)
            total = jnp.sum(jnp.square(predicted - 1.0))
            terms[name] = (total, jnp.asarray(predicted.size, jnp.float32))
        return terms, {}


def small_run(mesh=(-1, 1, 1), batch=64, paired=False, steps=400, accumulate=1) -> TrainRun:
    streams = {"speech": StreamConfig(mixture="none", batch_size=batch, audio_samples=INPUTS)}
    if paired:
        streams["paired"] = StreamConfig(
            mixture="none", batch_size=batch // 2, audio_samples=INPUTS, text_tokens=4
        )
    return TrainRun(
        model=TwoLayers(),
        objective=Loudness(),
        optimizer=AdamConfig(warmup_steps=1),
        streams=streams,
        steps=steps,
        accumulate=accumulate,
        partitioning=Partitioning(mesh_shape=mesh),
    )


def batch_of(run, sharding):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        run.batch_shapes(),
    )


@pytest.fixture(scope="session")
def small() -> types.SimpleNamespace:
    """A run of two matrices: its sizes, and how to build it."""
    return types.SimpleNamespace(
        INPUTS=INPUTS, HIDDEN=HIDDEN, run=small_run, batch_of=batch_of, matrix=INPUTS * HIDDEN
    )
