"""A toy model and objective, small enough that a step compiles in a second."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.batches import StreamConfig, synthetic_batch
from maestro_jax.objectives.base import Objective
from maestro_jax.objectives.metrics import Probe
from maestro_jax.training.callbacks import Callback
from maestro_jax.training.optimizers import AdamConfig
from maestro_jax.training.run import TrainRun

VOCABULARY = 16
WIDTH = 8


class Toy(nn.Module):
    """Predicts every token from itself, through dropout."""

    vocab_size: int = VOCABULARY
    width: int = WIDTH
    hidden: int = 12

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        boxed = nn.with_logical_partitioning
        normal = nn.initializers.normal(0.3)
        table = self.param(
            "table", boxed(normal, ("vocab", "embed")), (self.vocab_size, self.width)
        )
        x = table[tokens]
        x = nn.with_logical_constraint(x, ("batch", "frames", "act_embed"))
        x = nn.Dense(
            self.hidden,
            kernel_init=boxed(normal, ("embed", "mlp")),
            bias_init=boxed(nn.initializers.zeros_init(), ("mlp",)),
            name="up",
        )(x)
        x = nn.with_logical_constraint(nn.gelu(x), ("batch", "frames", "act_mlp"))
        x = nn.Dropout(0.1)(x, deterministic=not train)
        return nn.Dense(
            self.vocab_size,
            kernel_init=boxed(normal, ("mlp", "embed")),
            name="out",
        )(x)


@dataclasses.dataclass(frozen=True)
class ToyObjective(Objective):
    """Mean cross-entropy over the tokens of the text stream, plus the distance to the average."""

    explode_at: int = -1

    @property
    def loss_weights(self):
        return {"text": {"text": 1.0, "drift": 0.01}, "mt": {"mt": 1.0}}

    def init(self, model: nn.Module, rng: jax.Array, batch: Any) -> Any:
        return model.init({"params": rng}, batch["text"]["text"], False)["params"]

    def loss_terms(self, model, params, ema_params, batch, *, rng, step, controls=None, train=True):
        text, length = batch["text"]["text"], batch["text"]["text_length"]
        logits = model.apply({"params": params}, text, train, rngs={"dropout": rng})
        valid = (jnp.arange(text.shape[1])[None] < length[:, None]).astype(jnp.float32)
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), text[..., None], -1)[..., 0]
        total, count = jnp.sum(nats * valid), jnp.sum(valid)
        drift = jax.tree.map(lambda p, e: jnp.sum((p - e) ** 2), params, ema_params)
        one = jnp.ones(())
        exploding = jnp.where(step == self.explode_at, jnp.nan, 1.0)
        return {
            "text": (exploding * total, count),
            "drift": (sum(jax.tree.leaves(drift)), one),
            "mt": (jnp.zeros(()), jnp.zeros(())),
        }, {}


PAIR_FRAMES, PAIR_LABELS = 6, 3


class ProbedToy(Toy):
    """Has what a report wants to know of a model."""

    frame_seconds = 0.04
    frontend = types.SimpleNamespace(hop=160, sample_rate=16_000)


class ProbedObjective(ToyObjective):
    """Its probe tells which parameters, which rows and which utterance it was given."""

    probe_stream = "paired"

    def probe(self, model, params, paired, row):
        one = jnp.ones(())
        table = params["table"]
        return Probe(
            metrics={
                # The mean differs by no more than the entries do, unlike their sum.
                "table": (jnp.sum(table), table.size * one),
                "heard": (jnp.sum(paired["audio_length"]), 8 * one),
                "never": (jnp.zeros(()), jnp.zeros(())),
            },
            label_mask=jnp.arange(PAIR_LABELS) < paired["text_length"][:, None],
            aligned=paired["text"],
            predicted=paired["text"] + 1,
            code_counts=jnp.asarray([[3, 0, 1]]),
            frame_lengths=paired["audio_length"] // 2,
            emission_frames=jnp.full((PAIR_LABELS,), row),
            posterior=jnp.ones((PAIR_FRAMES, PAIR_LABELS)),
            similarity=jnp.ones((PAIR_FRAMES, PAIR_FRAMES)),
            top_similarity=jnp.ones((PAIR_FRAMES, PAIR_FRAMES)),
            mel=jnp.ones((4 * PAIR_FRAMES, 5)),
        )


def held_out() -> dict[str, np.ndarray]:
    """Eight pairs, one of them absent."""
    lengths = np.asarray([12, 4, 8, 0, 12, 6, 10, 2], np.int32)
    return {
        "audio": np.zeros((8, 2 * PAIR_FRAMES), np.int16),
        "audio_length": lengths,
        "text": np.arange(8 * PAIR_LABELS, dtype=np.int32).reshape(8, PAIR_LABELS),
        "text_length": np.asarray([3, 1, 2, 0, 3, 2, 3, 1], np.int32),
        "language": np.zeros(8, np.int32),
    }


class OnLog(Callback):
    """Calls a function with the step and the metrics of each line of the log."""

    def __init__(self, function):
        self.function = function

    def on_log(self, trainer, step, metrics):
        self.function(step, metrics)


STREAMS = {"text": StreamConfig(mixture="toy", batch_size=8, text_tokens=6)}


def toy_batches(start_step: int):
    """Batches that are a function of the step alone."""
    step = start_step
    while True:
        yield synthetic_batch(STREAMS, seed=step, vocab_size=VOCABULARY)
        step += 1


def toy_run(**changes: Any) -> TrainRun:
    """A run of the toy; ``objective`` and so on may be replaced."""
    arguments: dict[str, Any] = {
        "model": Toy(),
        "objective": ToyObjective(),
        "optimizer": AdamConfig(learning_rate=1e-2, warmup_steps=2),
        "streams": STREAMS,
        "steps": 6,
        "log_every": 2,
        "checkpoint_every": 3,
        "ema_decay": 0.9,
        "tensorboard": False,
    }
    return TrainRun(**(arguments | changes))


def assert_trees_equal(left: Any, right: Any) -> None:
    """The same structure, and the same bits."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="session")
def toy():
    """The toy's parts: ``toy.run(...)``, ``toy.batches``, ``toy.Model``, ``toy.Objective``."""

    class Parts:
        Model, Objective, streams = Toy, ToyObjective, STREAMS
        ProbedModel, ProbedObjective = ProbedToy, ProbedObjective
        run, batches = staticmethod(toy_run), staticmethod(toy_batches)
        OnLog = OnLog
        held_out = staticmethod(held_out)
        assert_trees_equal = staticmethod(assert_trees_equal)

    return Parts
