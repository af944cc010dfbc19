"""The size of each loss term's gradient: for reports, and for weights that are learned from it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from maestro_jax.losses.reduction import mean
from maestro_jax.training.accumulation import Accumulation
from maestro_jax.training.state import TrainState
from maestro_jax.training.step import batch_in_parts


def term_gradient_norms(
    state: TrainState,
    batch: Any,
    controls: Any = None,
    *,
    model: Any,
    objective: Any,
    seed: int,
    accumulate: int = 1,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The norm of the gradient of each term's mean, before any weight, and the means.

    One forward pass, and one backward pass for each term: a loop over the terms, of which a single
    backward pass is compiled. With a batch in parts, both passes for each term.

    Args:
        state: The training state.
        batch: `{stream: {feature: array}}`.
        controls: As for the training step.
        model: The model.
        objective: One with a method `terms`, or whose metrics hold its terms as `loss/<term>`.
        seed: The seed of the run; dropout and masks are those of the step.
        accumulate: The parts that the step takes a batch in.

    Returns:
        Scalars by term: norms over all parameters, and means. A term whose stream has no examples
        has a norm and a mean of 0.
    """
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    if accumulate > 1:
        parts = batch_in_parts(objective, model, state, batch, controls, rng, accumulate)
        return _norms_in_parts(parts, state.params)

    def means(params: Any) -> dict[str, jax.Array]:
        given = (model, params, state.ema_params, batch)
        options = {"rng": rng, "step": state.step, "controls": controls, "train": True}
        if hasattr(objective, "terms"):
            terms, _ = objective.terms(*given, **options)
        else:
            _, metrics = objective.loss(*given, **options)
            terms = {
                name.removeprefix("loss/"): term
                for name, term in metrics.items()
                if name.startswith("loss/")
            }
        return {name: mean(term) for name, term in terms.items()}

    values, backward = jax.vjp(means, state.params)
    names = sorted(values)

    def norm(chosen: jax.Array) -> jax.Array:
        cotangents = {name: chosen[index] for index, name in enumerate(names)}
        return optax.tree.norm(backward(cotangents)[0])

    norms = jax.lax.map(norm, jnp.eye(len(names), dtype=jnp.float32))
    return {name: norms[index] for index, name in enumerate(names)}, values


def _norms_in_parts(
    parts: Accumulation, params: Any
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    counts = parts.counts(params)
    names = sorted(counts)

    def of_term(chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        slopes = {
            name: chosen[index] / jnp.maximum(counts[name], 1.0) for index, name in enumerate(names)
        }
        gradients, totals, _ = parts.gradient(params, slopes)
        value = sum((slopes[name] * totals[name] for name in names), jnp.zeros(()))
        return optax.tree.norm(gradients), value

    norms, values = jax.lax.map(of_term, jnp.eye(len(names), dtype=jnp.float32))
    return (
        {name: norms[index] for index, name in enumerate(names)},
        {name: values[index] for index, name in enumerate(names)},
    )
