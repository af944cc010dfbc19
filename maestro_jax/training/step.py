"""One training step: a pure function of the state and a batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from maestro_jax.batches import SAMPLE_RATE, SEQUENCE_LIMITS
from maestro_jax.training import parameter_trees
from maestro_jax.training.accumulation import Accumulation, accumulated_loss, micro_batches
from maestro_jax.training.optimizers import Optimizer, update_ema
from maestro_jax.training.state import TrainState

Metrics = dict[str, tuple[jax.Array, jax.Array]]


def train_step(
    state: TrainState,
    batch: Any,
    controls: Any = None,
    *,
    model: Any,
    objective: Any,
    optimizer: Optimizer,
    ema_decay: float | None,
    seed: int,
    accumulate: int = 1,
    param_shardings: Any = None,
) -> tuple[TrainState, Metrics]:
    """Take one gradient step.

    A step whose loss or gradient is not finite changes nothing but the step number; the metric
    ``skipped_steps`` counts it.

    Args:
        state: The state before the step.
        batch: ``{stream: {feature: array}}``, global arrays.
        controls: What was decided between steps, for the objective; None: nothing.
        model: The model.
        objective: The objective, which turns model, parameters and batch to a loss and metrics.
        optimizer: The optimizer's configuration.
        ema_decay: The decay of the average of the parameters; None: the state has none.
        seed: The seed of the run; the randomness of a step is a function of (seed, step).
        accumulate: The batch is taken in so many parts, which saves memory; the loss and the
            gradient are those of the whole batch. Each part has randomness of its own.
        param_shardings: Of the parameters; where gradients are summed up, with `accumulate`.

    Returns:
        The state after the step, and ``{name: (total, count)}`` of float32 scalars.
    """
    rng = jax.random.fold_in(jax.random.key(seed), state.step)

    if accumulate > 1:
        named = [parameter_trees.named_leaves(t) for t in optimizer.by_group(state.params).values()]
        loss, metrics, gradients = accumulated_loss(
            objective,
            state.params,
            batch_in_parts(objective, model, state, batch, controls, rng, accumulate),
            step=state.step,
            controls=controls,
            trained={name for leaves in named for name, _ in leaves},
            shardings=param_shardings,
        )
    else:

        def loss_of(params: Any) -> tuple[jax.Array, Metrics]:
            return objective.loss(
                model,
                params,
                state.ema_params,
                batch,
                rng=rng,
                step=state.step,
                controls=controls,
                train=True,
            )

        (loss, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    # What is frozen for good is left out, and its gradient is thereby not even computed.
    by_group = optimizer.by_group(gradients)
    gradient_norm = optax.tree.norm(by_group)
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)

    updates, opt_state = optimizer.build(state.params).update(
        gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    average = state.ema_params
    if ema_decay is not None:
        average = update_ema(average, params, state.step, ema_decay)

    def keep_if_finite(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    new_state = TrainState(
        step=state.step + 1,
        params=keep_if_finite(params, state.params),
        opt_state=keep_if_finite(opt_state, state.opt_state),
        ema_params=keep_if_finite(average, state.ema_params),
    )
    one = jnp.ones((), jnp.float32)
    if len(by_group) > 1:
        metrics |= {
            f"grad_norm/{group}": (optax.tree.norm(part), one) for group, part in by_group.items()
        }
    metrics = {
        **stream_sizes(batch),
        "loss": (loss.astype(jnp.float32), one),
        **metrics,
        "grad_norm": (gradient_norm, one),
        "param_norm": (optax.tree.norm(new_state.params), one),
        "learning_rate": (optimizer.schedule(state.step), one),
        **{
            f"learning_rate/{group}": (rate, one)
            for group, rate in optimizer.group_schedules(state.step).items()
        },
    }
    # One value that is not finite must not spoil the average over many steps.
    metrics = {name: _only_finite(total, count) for name, (total, count) in metrics.items()}
    metrics["skipped_steps"] = (1.0 - finite.astype(jnp.float32), one)
    return new_state, metrics


def batch_in_parts(
    objective: Any,
    model: Any,
    state: TrainState,
    batch: Any,
    controls: Any,
    rng: jax.Array,
    count: int,
) -> Accumulation:
    """The terms of a batch, to be computed part by part.

    Args:
        objective: The objective.
        model: The model.
        state: The state; its step and averaged parameters are used.
        batch: ``{stream: {feature: array}}``, global arrays.
        controls: What was decided between steps.
        rng: The random key of the step.
        count: The number of parts.
    """

    def terms(params: Any, averages: Any, part: Any, key: jax.Array) -> Any:
        return objective.terms(
            model,
            params,
            averages,
            part,
            rng=key,
            step=state.step,
            controls=controls,
            train=True,
        )

    return Accumulation(
        terms=terms,
        averages=state.ema_params,
        parts=micro_batches(batch, count),
        count=count,
        rng=rng,
    )


def stream_sizes(batch: Any) -> Metrics:
    """How much there is of each stream.

    Args:
        batch: `{stream: {feature: array}}`, with a `<feature>_length` `[batch]`, 0 for what
            is absent.

    Returns:
        `<stream>/examples`, and as far as a stream has them `<stream>/audio_seconds` and
        `<stream>/tokens` (of texts and translations): the amount, with a count of 1 for the step.
        And `<stream>/audio_padding` and `<stream>/token_padding`: the padded amount, with a count
        of the real one; 1 is no waste at all.
    """
    one = jnp.ones((), jnp.float32)
    sizes: Metrics = {}
    for stream, features in batch.items():
        lengths = {
            name: features[f"{name}_length"].astype(jnp.float32)
            for name in SEQUENCE_LIMITS
            if f"{name}_length" in features
        }
        if not lengths:
            continue
        there = sum(lengths.values()) > 0
        sizes[f"{stream}/examples"] = (jnp.sum(there.astype(jnp.float32)), one)
        texts = [length for name, length in lengths.items() if name != "audio"]
        if "audio" in lengths:
            sizes[f"{stream}/audio_seconds"] = (jnp.sum(lengths["audio"]) / SAMPLE_RATE, one)
        if texts:
            sizes[f"{stream}/tokens"] = (jnp.sum(sum(texts)), one)
        for kind, names in (("audio", {"audio"}), ("token", SEQUENCE_LIMITS.keys() - {"audio"})):
            padded = [name for name in names if name in features and name in lengths]
            if padded:
                sizes[f"{stream}/{kind}_padding"] = (
                    jnp.asarray(sum(features[name].size for name in padded), jnp.float32),
                    jnp.sum(sum(lengths[name] for name in padded)),
                )
    return sizes


def _only_finite(total: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    total = jnp.asarray(total, jnp.float32)
    count = jnp.asarray(count, jnp.float32)
    finite = jnp.isfinite(total) & jnp.isfinite(count)
    return jnp.where(finite, total, 0.0), jnp.where(finite, count, 0.0)


def batch_text(batch: Any) -> str:
    """The shapes of a batch for a reader: `speech 8 x 240000; paired 4 x 160000, 64`.

    Args:
        batch: `{stream: {feature: array}}`.
    """
    parts = []
    for stream, features in batch.items():
        shapes = [features[name].shape for name in SEQUENCE_LIMITS if name in features]
        lengths = ", ".join(str(length) for _, length in shapes)
        parts.append(f"{stream} {shapes[0][0]} x {lengths}" if shapes else stream)
    return "; ".join(parts)
