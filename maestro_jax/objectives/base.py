"""What a training step asks of an objective, and how objectives call a model's parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted
from maestro_jax.objectives.curriculum import Weight

Batch = Mapping[str, Mapping[str, jax.Array]]
Metrics = dict[str, Weighted]
RANDOM_STREAMS = ("dropout", "masking", "specaugment", "gumbel")
# To draw keys one by one costs the compiler for TPUs half a second each.
_CALLS_AT_ONCE = 64


@flax.struct.dataclass
class Controls:
    """What is decided between steps, and therefore is not a function of the step alone.

    Attributes:
        clock: Scalar int32, the curriculum step: the training step less the steps that a gate held.
        weights: Scalar float32 by term, the weights that `GradientNormWeighting` has learned; empty
            without it.
    """

    clock: jax.Array
    weights: dict[str, jax.Array]


class Objective(Protocol):
    """A scalar to minimise over a batch of streams."""

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that the objective knows how to use; a batch may lack any of them."""

    def active_streams(self, step: int) -> tuple[str, ...]:
        """The streams that a curriculum step is given; the others are left out of its batch."""

    def weights_of(self, stream: str) -> Mapping[str, Weight]:
        """The terms that one of `streams` adds to the loss, and their weights."""

    def init(self, model: nn.Module, rng: jax.Array, batch: Batch) -> Any:
        """Parameters, boxed with their logical axis names."""

    def loss(
        self,
        model: nn.Module,
        params: Any,
        ema_params: Any,
        batch: Batch,
        *,
        rng: jax.Array,
        step: jax.Array | int,
        controls: Controls | None = None,
        train: bool = True,
    ) -> tuple[jax.Array, Metrics]:
        """The loss of one batch.

        Args:
            model: The module.
            params: Its parameters, which are trained.
            ema_params: Their moving average; no gradient is taken of it.
            batch: `{stream: {feature: array}}`.
            rng: Random key of this step.
            step: Training step.
            controls: The curriculum step and learned weights; None: the step itself, and none.
            train: Whether to use dropout and augmentation.

        Returns:
            The scalar loss, and metrics by name, each a total and a count.
        """

    def terms(
        self,
        model: nn.Module,
        params: Any,
        ema_params: Any,
        batch: Batch,
        *,
        rng: jax.Array,
        step: jax.Array | int,
        controls: Controls | None = None,
        train: bool = True,
    ) -> tuple[dict[str, Weighted], Metrics]:
        """What the loss is made of, before any weight, and all metrics that `combine` does not add.

        The arguments are those of `loss`. No gradient may reach a count, and the terms of a part of
        a batch must add up to those of the batch: totals to totals, counts to counts.
        """

    def combine(
        self,
        terms: Mapping[str, Weighted],
        params: Any,
        *,
        step: jax.Array | int,
        controls: Controls | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss from its terms, and the metrics of that.

        For given counts and parameters the loss must be linear in the totals: a step that takes a
        batch in parts asks for the slopes before it knows the totals.
        """


class LossOfTerms:
    """`loss` for objectives that have `terms` and `combine`."""

    def loss(
        self: Objective,
        model: nn.Module,
        params: Any,
        ema_params: Any,
        batch: Batch,
        *,
        rng: jax.Array,
        step: jax.Array | int,
        controls: Controls | None = None,
        train: bool = True,
    ) -> tuple[jax.Array, Metrics]:
        """The weighted sum of the means of all terms; see `Objective.loss`."""
        terms, metrics = self.terms(
            model, params, ema_params, batch, rng=rng, step=step, controls=controls, train=train
        )
        total, more = self.combine(terms, params, step=step, controls=controls)
        return total, metrics | more


PER_STEP = ("examples", "overflow_frames", "without_path", "without_ctc_path")
"""Last parts of the names of metrics that are amounts a step, whose count is 1 for any batch."""


def init_all_parameters(model: nn.Module, rng: jax.Array, batch: Batch) -> Any:
    """Parameters of the whole model, whatever part of it an objective trains."""
    return model.init({"params": rng}, batch)["params"]


@dataclasses.dataclass
class Parts:
    """A model with its parameters and its randomness, callable by the name of a part.

    Attributes:
        model: The module.
        params: Its parameters.
        rng: Random key; every call draws keys of its own from it, in the order of calls.
        train: Whether parts that know dropout use it.
    """

    model: nn.Module
    params: Any
    rng: jax.Array
    train: bool
    _calls: int = 0
    _keys: jax.Array | None = None

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the model."""
        block, place = divmod(self._calls, _CALLS_AT_ONCE)
        if place == 0:
            shape = (_CALLS_AT_ONCE, len(RANDOM_STREAMS))
            self._keys = jax.random.split(jax.random.fold_in(self.rng, block), shape)
        assert self._keys is not None
        self._calls += 1
        rngs = {name: self._keys[place, index] for index, name in enumerate(RANDOM_STREAMS)}
        return self.model.apply({"params": self.params}, *args, rngs=rngs, method=method, **kwargs)

    @property
    def deterministic(self) -> bool:
        """Whether dropout is off."""
        return not self.train


def frozen(params: Any) -> Any:
    """Parameters that no gradient reaches."""
    return jax.tree.map(jax.lax.stop_gradient, params)


def present(lengths: jax.Array) -> Weighted:
    """How many examples of a stream are there, as a metric that is summed."""
    return jnp.sum((lengths > 0).astype(jnp.float32)), jnp.asarray(1.0)
