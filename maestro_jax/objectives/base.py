"""What a training run asks of an objective: an abstract class with a default for every hook.

A new objective defines `loss_weights` and `loss_terms`; docs/how_to/objective.md writes one step by
step. Everything else has a default that can be overridden.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.losses.reduction import Weighted, mean
from maestro_jax.objectives.curriculum import Curriculum, Weight, weight_at
from maestro_jax.objectives.weighting import Weighting

if TYPE_CHECKING:
    from maestro_jax.objectives.metrics import Probe

Batch = Mapping[str, Mapping[str, jax.Array]]
Metrics = dict[str, Weighted]
RANDOM_STREAMS = ("dropout", "masking", "specaugment", "gumbel")
Module = TypeVar("Module", bound=nn.Module)


class PerStep(NamedTuple):
    """A metric that is an amount per step, such as a number of examples; see `per_step`."""

    total: jax.Array
    denominator: jax.Array


@flax.struct.dataclass
class Controls:
    """The inputs of a step that are decided between steps, from metrics and not by the step alone.

    Attributes:
        curriculum_step: Scalar int32, the training step less the steps that a gate held.
        learned_weights: Scalar float32 per term, the factors that `GradientNormWeighting` has
            learned; empty without it.
        seed: Scalar int32, the seed of the run: as an input of the step, so that runs of other
            seeds find its program in the compilation cache. None for the seed that the program has.
        schedule_ends: Scalar int32 per parameter group whose learning rate ends at an update (see
            `OptimizerConfig.schedule_ends`), for runs of other lengths likewise; empty for those
            that the program has.
    """

    curriculum_step: jax.Array
    learned_weights: dict[str, jax.Array]
    seed: jax.Array | None = None
    schedule_ends: Mapping[str, jax.Array] = flax.struct.field(default_factory=dict)


class Objective(abc.ABC):
    """A scalar to minimise over a batch of streams: a weighted sum of terms.

    Attributes:
        curriculum: When each stream begins; None: all of them at the first step.
        weighting: Factors that are learned on top of `loss_weights`; None: none. Only
            `GradientNormWeighting` works without further code.
        decoders: The decoders that the objective trains, of `transducer`, `ctc` and `attention`;
            transcription and evaluation use the first unless told otherwise.
        max_text_frames: Static number of frames of a text that is resampled to frame rate; None
            for an objective that resamples none.
        probe_stream: The stream whose held-out examples `probe` wants; None: there is no probe.
        term_units: The unit of a term before its weight, such as `nats per label`. A report draws
            the terms of one unit in one panel.
    """

    curriculum: Curriculum | None = None
    weighting: Weighting | None = None
    max_text_frames: int | None = None
    probe_stream: str | None = None

    @property
    def decoders(self) -> tuple[str, ...]:
        """Returns the names of the decoders that the objective trains, the preferred one first."""
        return ("transducer",)

    @property
    def term_units(self) -> Mapping[str, str]:
        """Returns the units of the terms, `{term: unit}`; a term without one counts as `loss`."""
        return {}

    @property
    @abc.abstractmethod
    def loss_weights(self) -> Mapping[str, Mapping[str, Weight]]:
        """Returns the weights of the terms that each stream adds, `{stream: {term: weight}}`.

        Every stream that the objective can use is a key, and a batch may lack any of them. A weight
        is a number or a `Schedule` over the curriculum step.
        """

    @abc.abstractmethod
    def loss_terms(
        self,
        model: Any,
        params: Any,
        ema_params: Any,
        batch: Batch,
        *,
        rng: jax.Array,
        step: jax.Array | int,
        controls: Controls | None = None,
        train: bool = True,
    ) -> tuple[dict[str, Weighted], Metrics]:
        """Computes the terms of the loss, before any weight.

        Args:
            model: The Linen module; `bind` makes its methods callable.
            params: Its parameters, which are trained.
            ema_params: Their moving average, or None if the run keeps none. No gradient is taken
                of it.
            batch: `{stream: {feature: [batch, ...]}}`.
            rng: Random key of this step.
            step: Training step, a scalar.
            controls: Curriculum step and learned weights; None: the step itself, and none.
            train: Whether to use dropout and augmentation.

        Returns:
            Terms and metrics by name, each a scalar total and a scalar count. No gradient may
            reach a count, and the terms of parts of a batch must add up to those of the batch:
            totals to totals, counts to counts.
        """

    @property
    def streams(self) -> tuple[str, ...]:
        """Returns the names of the streams that the objective can use."""
        return tuple(self.loss_weights)

    @property
    def term_weights(self) -> dict[str, Weight]:
        """Returns the weights of the terms of all streams, `{term: weight}`."""
        return {name: w for terms in self.loss_weights.values() for name, w in terms.items()}

    def active_streams(self, step: int) -> tuple[str, ...]:
        """Returns the streams that have begun at a curriculum step.

        The others are left out of the batch, so that they cost nothing; a step is compiled anew
        where a stream begins.
        """
        if self.curriculum is None:
            return self.streams
        return tuple(name for name in self.curriculum.streams(step) if name in self.streams)

    def for_run(self, model: Any, audio_samples: Mapping[str, int]) -> Self:
        """Returns the objective with the settings filled in that depend on the run's batches.

        Args:
            model: The Linen module.
            audio_samples: Padded length of the longest audio of each stream, in samples.
        """
        del model, audio_samples
        return self

    def init(self, model: Any, rng: jax.Array, batch: Batch) -> Any:
        """Initialises all parameters of the model, so that any checkpoint of it fits.

        Args:
            model: The Linen module.
            rng: Random key.
            batch: `{stream: {feature: [batch, ...]}}`.

        Returns:
            The tree of parameters, boxed with their logical axis names.

        Raises:
            UserError: The model lacks what the objective needs.
        """
        return model.init({"params": rng}, batch)["params"]

    def weighted_loss(
        self,
        terms: Mapping[str, Weighted],
        params: Any,
        *,
        step: jax.Array | int,
        controls: Controls | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """Computes the loss from its terms: the sum of their means, each times its weights.

        For given counts and parameters the loss must be linear in the totals: a step that takes a
        batch in parts asks for the slopes before it knows the totals.

        Args:
            terms: Scalar total and count per term, as from `loss_terms`.
            params: The model's parameters.
            step: Training step.
            controls: Curriculum step and learned weights.

        Returns:
            The scalar loss, and the metrics of `loss_metrics`.
        """
        del params
        curriculum_step = step if controls is None else controls.curriculum_step
        factors: dict[str, jax.Array] = {}
        if self.weighting is not None and controls is not None:
            # Inputs of the compiled step, so that it need not be compiled again when they change.
            factors = {name: controls.learned_weights[name] for name in terms}
        weights = self.term_weights
        unknown = [name for name in terms if name not in weights]
        if unknown:
            raise UserError(
                f"{type(self).__name__}.loss_terms returns the term {unknown[0]!r}, for which "
                f"loss_weights has no weight; it has {', '.join(weights) or 'none'}."
            )
        total = jnp.zeros(())
        for name, term in terms.items():
            # A term without examples has a mean of 0: it adds neither loss nor gradient.
            total += weight_at(weights[name], curriculum_step) * factors.get(name, 1.0) * mean(term)
        return total, loss_metrics(terms, total, factors)

    def loss(
        self,
        model: Any,
        params: Any,
        ema_params: Any,
        batch: Batch,
        *,
        rng: jax.Array,
        step: jax.Array | int,
        controls: Controls | None = None,
        train: bool = True,
    ) -> tuple[jax.Array, Metrics]:
        """Computes the loss of one batch; the arguments are those of `loss_terms`.

        Returns:
            The scalar loss, and all metrics.
        """
        terms, metrics = self.loss_terms(
            model, params, ema_params, batch, rng=rng, step=step, controls=controls, train=train
        )
        loss, weighted_metrics = self.weighted_loss(terms, params, step=step, controls=controls)
        return loss, metrics | weighted_metrics

    def probe(self, model: Any, params: Any, examples: Mapping[str, jax.Array], row: int) -> Probe:
        """Computes metrics and pictures of held-out examples, without dropout or augmentation.

        Args:
            model: The Linen module.
            params: Its parameters.
            examples: `{feature: [batch, ...]}` of the stream `probe_stream`.
            row: The example that is shown in full.
        """
        raise NotImplementedError(f"{type(self).__name__} has no probe")


def bind(model: Module, params: Any, rng: jax.Array | None = None) -> Module:
    """Returns the model with parameters, so that its methods can be called on arrays.

    Every call draws random numbers of its own. As with `flax.linen.Module.bind`, the result cannot
    be carried into the body of a loop or another transformation of JAX; bind anew there.

    Args:
        model: A Linen module.
        params: Its parameters.
        rng: Random key for `RANDOM_STREAMS`; None where nothing random is asked for.
    """
    rngs = None
    if rng is not None:
        # A key of its own for each stream of random numbers: masks do not change where dropout is
        # switched off.
        keys = jax.random.split(rng, len(RANDOM_STREAMS))
        rngs = {name: keys[index] for index, name in enumerate(RANDOM_STREAMS)}
    return model.bind({"params": params}, rngs=rngs)


def frozen(params: Any) -> Any:
    """Returns parameters that no gradient reaches."""
    return jax.tree.map(jax.lax.stop_gradient, params)


def loss_metrics(
    terms: Mapping[str, Weighted], loss: jax.Array, factors: Mapping[str, jax.Array]
) -> Metrics:
    """Returns the metrics of a weighted loss.

    Args:
        terms: Scalar total and count per term.
        loss: The scalar that is minimised.
        factors: Learned factors per term; empty without any.

    Returns:
        `loss`, `loss/<term>` for the mean of each term, and `weight/<term>` for each factor.
    """
    one = jnp.ones(())
    return {
        **{f"loss/{name}": term for name, term in terms.items()},
        **{f"weight/{name}": (factor, one) for name, factor in factors.items()},
        "loss": (loss, one),
    }


def per_step(total: jax.Array) -> PerStep:
    """Returns a metric that is an amount per step and not a mean.

    A step that takes its batch in parts adds up the totals of the parts, over a count of 1.

    Args:
        total: Scalar, the amount in the batch.
    """
    return PerStep(jnp.asarray(total, jnp.float32), jnp.ones(()))


def num_present(lengths: jax.Array) -> PerStep:
    """Returns the number of examples of a stream, those of its lengths `[batch]` that are not 0."""
    return per_step(jnp.sum(lengths > 0))
