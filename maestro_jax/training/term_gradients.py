"""The size of each loss term's gradient: for reports, and for weights that are learned from it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from maestro_jax.losses.reduction import mean
from maestro_jax.training.state import TrainState


def term_gradient_norms(
    state: TrainState, batch: Any, controls: Any = None, *, model: Any, objective: Any, seed: int
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The norm of the gradient of each term's mean, before any weight, and the means.

    One forward pass, and one backward pass for each term: a loop over the terms, of which a single
    backward pass is compiled.

    Args:
        state: The training state.
        batch: `{stream: {feature: array}}`.
        controls: As for the training step.
        model: The model.
        objective: One with a method `terms`, or whose metrics hold its terms as `loss/<term>`.
        seed: The seed of the run; dropout and masks are those of the step.

    Returns:
        Scalars by term: norms over all parameters, and means. A term whose stream has no examples
        has a norm and a mean of 0.
    """
    rng = jax.random.fold_in(jax.random.key(seed), state.step)

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
