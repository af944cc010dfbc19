"""The gradient of a batch that is too large for one pass: in parts, and yet that of the whole.

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
from maestro_jax.objectives.base import PER_STEP
from maestro_jax.training import parameter_trees

Metrics = dict[str, Weighted]
Terms = dict[str, Weighted]


def micro_batches(batch: Any, count: int) -> Any:
    """A batch in parts, each with the same share of every stream.

    Every device keeps its rows: of the rows of one device, the first so many are in the first part.

    Args:
        batch: A tree of arrays `[rows, ...]`, split over devices by the rules for `batch`.
        count: The number of parts; with the number of devices, it divides the rows.

    Returns:
        A tree of arrays `[count, rows / count, ...]`, split over devices along the second axis.
    """
    devices = shards("batch")

    def split(array: jax.Array) -> jax.Array:
        rows, *rest = array.shape
        apart = array.reshape(devices, count, rows // (devices * count), *rest)
        parts = jnp.swapaxes(apart, 0, 1).reshape(count, rows // count, *rest)
        return constrain(parts, None, "batch", *(None for _ in rest))

    return jax.tree.map(split, batch)


@dataclasses.dataclass(frozen=True)
class Accumulation:
    """The terms of a batch, part by part.

    Attributes:
        terms: From parameters, their averages, a part of the batch and a random key to the terms
            and metrics of the part (`Objective.terms`).
        averages: The averages of the parameters, or None.
        parts: What `micro_batches` made.
        count: The number of parts.
        rng: The random key of the step; each part has a key of its own.
    """

    terms: Callable[[Any, Any, Any, jax.Array], tuple[Terms, Metrics]]
    averages: Any
    parts: Any
    count: int
    rng: jax.Array

    def counts(self, params: Any) -> dict[str, jax.Array]:
        """The count of each term over the whole batch, a float32 scalar each."""

        def of_part(inside: Accumulation, index: jax.Array, part: Any) -> dict[str, jax.Array]:
            terms, _ = inside._terms(params, index, part)
            return {name: jnp.asarray(count, jnp.float32) for name, (_, count) in terms.items()}

        def body(carry: None, each: tuple[jax.Array, Any]) -> tuple[None, dict[str, jax.Array]]:
            averages, each = jax.lax.optimization_barrier((self.averages, each))
            inside = dataclasses.replace(self, averages=averages)
            return carry, _only_what_is_needed(functools.partial(of_part, inside), *each)

        _, found = jax.lax.scan(body, None, (jnp.arange(self.count), self.parts))
        return {name: jnp.sum(counts) for name, counts in found.items()}

    def gradient(
        self,
        params: Any,
        slopes: Mapping[str, jax.Array],
        *,
        trained: Collection[str] | None = None,
        shardings: Any = None,
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], Metrics]:
        """The gradient of the sum of all totals, each times its slope.

        Args:
            params: The tree of parameters.
            slopes: A scalar for each term.
            trained: Names of the parameters whose gradient is wanted; None: all.
            shardings: Those of `params`, as a tree, in which the sum is laid out; None: no wish.

        Returns:
            Gradients in float32 by the name of the parameter, the totals by term, and the metrics
            of the batch.
        """
        chosen = {
            name: leaf
            for name, leaf in parameter_trees.named_leaves(params)
            if trained is None or name in trained
        }
        places = {} if shardings is None else dict(parameter_trees.named_leaves(shardings))

        def laid_out(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
            return {
                name: jax.lax.with_sharding_constraint(leaf, places[name])
                if name in places
                else leaf
                for name, leaf in sums.items()
            }

        def body(sums: dict[str, jax.Array], each: tuple[jax.Array, Any]) -> tuple[Any, Any]:
            # What is split over devices is gathered in the loop, layer by layer. Outside of it, to
            # where the compiler would move it, all layers were whole on every device.
            values, averages, each = jax.lax.optimization_barrier((params, self.averages, each))
            inside = dataclasses.replace(self, averages=averages)
            leaves = dict(parameter_trees.named_leaves(values))

            def weighted(chosen: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
                terms, metrics = inside._terms(with_values(values, chosen), *each)
                totals = {name: jnp.asarray(t, jnp.float32) for name, (t, _) in terms.items()}
                worth = sum((slopes[name] * total for name, total in totals.items()), jnp.zeros(()))
                return worth, (totals, metrics)

            found, aside = jax.grad(weighted, has_aux=True)({name: leaves[name] for name in sums})
            sums = {name: sums[name] + leaf.astype(jnp.float32) for name, leaf in found.items()}
            return laid_out(sums), aside

        zeros = {name: jnp.zeros(leaf.shape, jnp.float32) for name, leaf in chosen.items()}
        sums, (totals, metrics) = jax.lax.scan(
            body, laid_out(zeros), (jnp.arange(self.count), self.parts)
        )
        return sums, jax.tree.map(jnp.sum, totals), _of_the_batch(metrics)

    def _terms(self, params: Any, index: jax.Array, part: Any) -> tuple[Terms, Metrics]:
        part = jax.tree.map(
            lambda array: constrain(array, "batch", *(None for _ in array.shape[1:])), part
        )
        return self.terms(params, self.averages, part, jax.random.fold_in(self.rng, index))


def with_values(params: Any, values: Mapping[str, jax.Array]) -> Any:
    """The tree of parameters with some of them, by name, replaced."""
    return parameter_trees.map_named(lambda name, leaf: values.get(name, leaf), params)


def accumulated_loss(
    objective: Any,
    params: Any,
    accumulation: Accumulation,
    *,
    step: jax.Array,
    controls: Any,
    trained: Collection[str] | None = None,
    shardings: Any = None,
) -> tuple[jax.Array, Metrics, Any]:
    """Loss, metrics and gradient of a batch that is taken in parts.

    Args:
        objective: It combines the terms (`Objective.combine`).
        params: The tree of parameters.
        accumulation: The terms of the batch.
        step: The training step.
        controls: What was decided between steps, for the objective.
        trained: Names of the parameters that are trained; None: all.
        shardings: Where the gradients belong: the shardings of `params`; None: no wish.

    Returns:
        The loss, all metrics, and a tree of gradients in float32, 0 for what is not trained.
    """
    counts = accumulation.counts(params)

    def loss(totals: Mapping[str, jax.Array], params: Any) -> tuple[jax.Array, Metrics]:
        terms = {name: (totals[name], counts[name]) for name in totals}
        return objective.combine(terms, params, step=step, controls=controls)

    slopes = jax.grad(lambda totals: loss(totals, params)[0])(
        {name: jnp.zeros(()) for name in counts}
    )
    sums, totals, metrics = accumulation.gradient(
        params, slopes, trained=trained, shardings=shardings
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
    """The sums of metrics over parts; amounts a step are counted once."""
    summed = {name: (jnp.sum(total), jnp.sum(count)) for name, (total, count) in metrics.items()}
    one = jnp.ones((), jnp.float32)
    return {
        name: (total, one if name.rpartition("/")[2] in PER_STEP else count)
        for name, (total, count) in summed.items()
    }


def _only_what_is_needed(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function, and leave out what its result does not depend on.

    The compiler would drop it as well, but only after it was lowered for it.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    needed, _ = partial_eval.dce_jaxpr(
        closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True
    )
    found = jax.core.eval_jaxpr(needed, closed.consts, *jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shapes), found)
