"""Gradient accumulation over microbatches that gives the gradient of the whole batch.

Losses are sums of means, each a total over a count, and a mean over a batch is no mean of the means
of its parts where they have unequal counts. So the counts of the whole batch come first, and then
the gradients of the totals are added up, each by what a unit of it is worth. The counts depend on
lengths, masks and alignments alone; what does not enter them is not computed for them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from maestro_jax.layers.partitioned import constrain, shards
from maestro_jax.losses.reduction import Weighted
from maestro_jax.objectives.base import Objective, PerStep, per_step
from maestro_jax.training import parameter_trees

Metrics = dict[str, Weighted]
Terms = dict[str, Weighted]


def micro_batches(batch: Any, count: int) -> Any:
    """Splits a batch into microbatches, each with the same share of every stream.

    Every device keeps its rows: the first of them are in the first microbatch.

    Args:
        batch: A tree of arrays `[rows, ...]`, split over devices by the rules for `batch`.
        count: Number of microbatches; count times devices divides the rows.

    Returns:
        A tree of arrays `[count, rows / count, ...]`, split over devices along the second axis.
    """
    devices = shards("batch")

    def split(array: jax.Array) -> jax.Array:
        rows, *rest = array.shape
        # [rows] -> [devices, count, rows / (devices * count)] -> [count, devices, ...]: swapping
        # the first two axes moves no row to another device.
        by_device = array.reshape(devices, count, rows // (devices * count), *rest)
        microbatches = jnp.swapaxes(by_device, 0, 1).reshape(count, rows // count, *rest)
        return constrain(microbatches, None, "batch", *(None for _ in rest))

    return jax.tree.map(split, batch)


@dataclasses.dataclass(frozen=True)
class MicrobatchedTerms:
    """Computes the loss terms of a batch, microbatch by microbatch.

    Attributes:
        terms: Function of parameters, their averages, a microbatch and a random key that returns
            the terms and metrics of the microbatch (`Objective.loss_terms`).
        averages: Averages of the parameters, or None.
        microbatches: Result of `micro_batches`.
        count: Number of microbatches.
        rng: Random key of the step; each microbatch has a key of its own.
    """

    terms: Callable[[Any, Any, Any, jax.Array], tuple[Terms, Metrics]]
    averages: Any
    microbatches: Any
    count: int
    rng: jax.Array

    def counts(self, params: Any) -> dict[str, jax.Array]:
        """Computes the count of each term over the whole batch, a float32 scalar per term."""

        def of_microbatch(
            inside: MicrobatchedTerms, index: jax.Array, microbatch: Any
        ) -> dict[str, jax.Array]:
            terms, _ = inside._terms(params, index, microbatch)
            return {name: jnp.asarray(count, jnp.float32) for name, (_, count) in terms.items()}

        def body(carry: None, each: tuple[jax.Array, Any]) -> tuple[None, dict[str, jax.Array]]:
            # As in `gradient`.
            averages, each = jax.lax.optimization_barrier((self.averages, each))
            inside = dataclasses.replace(self, averages=averages)
            return carry, _without_dead_code(functools.partial(of_microbatch, inside), *each)

        _, by_microbatch = jax.lax.scan(body, None, (jnp.arange(self.count), self.microbatches))
        # Over the microbatches, [count].
        return {name: jnp.sum(counts) for name, counts in by_microbatch.items()}

    def gradient(
        self,
        params: Any,
        loss_scales: Mapping[str, jax.Array],
        *,
        trained: Collection[str] | None = None,
        shardings: Any = None,
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], Metrics]:
        """Computes the gradient of the sum of all totals, each times its scale.

        Args:
            params: Tree of parameters.
            loss_scales: Derivative of the loss with respect to the total of each term, a scalar.
            trained: Names of the parameters whose gradient is computed; None for all.
            shardings: Shardings of `params`, in which the sum is laid out; None for any.

        Returns:
            Gradients in float32 by the name of the parameter, the totals by term, and the metrics
            of the batch.
        """
        leaves_to_train = {
            name: leaf
            for name, leaf in parameter_trees.named_leaves(params)
            if trained is None or name in trained
        }
        sharding_by_name = (
            {} if shardings is None else dict(parameter_trees.named_leaves(shardings))
        )

        def constrained(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
            return {
                name: jax.lax.with_sharding_constraint(leaf, sharding_by_name[name])
                if name in sharding_by_name
                else leaf
                for name, leaf in sums.items()
            }

        def body(sums: dict[str, jax.Array], each: tuple[jax.Array, Any]) -> tuple[Any, Any]:
            # What is split over devices is gathered in the loop, layer by layer. Outside of it, to
            # where the compiler would move it, all layers were whole on every device.
            values, averages, each = jax.lax.optimization_barrier((params, self.averages, each))
            inside = dataclasses.replace(self, averages=averages)
            leaves = dict(parameter_trees.named_leaves(values))

            def weighted(leaves_to_train: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
                terms, metrics = inside._terms(with_values(values, leaves_to_train), *each)
                totals = {name: jnp.asarray(t, jnp.float32) for name, (t, _) in terms.items()}
                scaled = sum(
                    (loss_scales[name] * total for name, total in totals.items()), jnp.zeros(())
                )
                return scaled, (totals, metrics)

            gradients, outputs = jax.grad(weighted, has_aux=True)(
                {name: leaves[name] for name in sums}
            )
            sums = {name: sums[name] + leaf.astype(jnp.float32) for name, leaf in gradients.items()}
            return constrained(sums), outputs

        # In float32 also for gradients of bfloat16, whose sum would drop the last microbatches.
        zeros = {name: jnp.zeros(leaf.shape, jnp.float32) for name, leaf in leaves_to_train.items()}
        sums, (totals, metrics) = jax.lax.scan(
            body, constrained(zeros), (jnp.arange(self.count), self.microbatches)
        )
        return sums, jax.tree.map(jnp.sum, totals), _of_the_batch(metrics)

    def _terms(self, params: Any, index: jax.Array, microbatch: Any) -> tuple[Terms, Metrics]:
        microbatch = jax.tree.map(
            lambda array: constrain(array, "batch", *(None for _ in array.shape[1:])), microbatch
        )
        return self.terms(params, self.averages, microbatch, jax.random.fold_in(self.rng, index))


def with_values(params: Any, values: Mapping[str, jax.Array]) -> Any:
    """Replaces some parameters of a tree by name."""
    return parameter_trees.map_named(lambda name, leaf: values.get(name, leaf), params)


def accumulated_loss(
    objective: Objective,
    params: Any,
    terms: MicrobatchedTerms,
    *,
    step: jax.Array,
    controls: Any,
    trained: Collection[str] | None = None,
    shardings: Any = None,
) -> tuple[jax.Array, Metrics, Any]:
    """Computes loss, metrics and gradient of a batch in microbatches.

    Args:
        objective: Objective, which combines the terms (`Objective.weighted_loss`).
        params: Tree of parameters.
        terms: Loss terms of the batch.
        step: Training step.
        controls: What was decided between steps, for the objective.
        trained: Names of the parameters that are trained; None for all.
        shardings: Shardings of `params`, in which the gradients are laid out; None for any.

    Returns:
        The loss, all metrics, and a tree of gradients in float32, 0 for what is not trained.
    """
    counts = terms.counts(params)

    def loss(totals: Mapping[str, jax.Array], params: Any) -> tuple[jax.Array, Metrics]:
        weighted = {name: (totals[name], counts[name]) for name in totals}
        return objective.weighted_loss(weighted, params, step=step, controls=controls)

    # The loss is linear in the totals, so that its slopes at 0 are its slopes everywhere: for a sum
    # of means, weight over count.
    loss_scales = jax.grad(lambda totals: loss(totals, params)[0])(
        {name: jnp.zeros(()) for name in counts}
    )
    sums, totals, metrics = terms.gradient(
        params, loss_scales, trained=trained, shardings=shardings
    )
    # The parameters of a learned weighting have a part in the loss that passes through no term.
    (value, more), direct = jax.value_and_grad(lambda p: loss(totals, p), has_aux=True)(params)
    gradients = parameter_trees.map_named(
        lambda name, leaf: (
            sums[name] + leaf.astype(jnp.float32)
            if name in sums
            else jnp.zeros(leaf.shape, jnp.float32)
        ),
        direct,
    )
    return value, metrics | more, gradients


def _of_the_batch(metrics: Metrics) -> Metrics:
    """Sums metrics over microbatches; amounts per step are counted once."""
    return {
        name: per_step(jnp.sum(metric.total))
        if isinstance(metric, PerStep)
        else (jnp.sum(metric[0]), jnp.sum(metric[1]))
        for name, metric in metrics.items()
    }


def _without_dead_code(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function without the computations that its result does not depend on.

    The compiler would drop them as well, but only after they were lowered.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    needed, _ = partial_eval.dce_jaxpr(
        closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True
    )
    outputs = jax.core.eval_jaxpr(needed, closed.consts, *jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)
