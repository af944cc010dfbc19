"""Optimizers, learning-rate schedules and the moving average of the parameters."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import optax

from maestro_jax.errors import UserError, near_misses
from maestro_jax.training import parameter_trees

SCHEDULES = ("inverse_sqrt", "cosine", "constant")


class Optimizer(Protocol):
    """What the training step asks of an optimizer's configuration."""

    def build(self, params: Any) -> optax.GradientTransformation:
        """The transformation of gradients to updates, for parameters of these names."""
        ...

    def schedule(self, step: jax.typing.ArrayLike) -> jax.Array:
        """The learning rate of the update that follows so many updates."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Adam with decoupled weight decay (AdamW) and a learning rate that warms up.

    The defaults of the moments are those of the Transformer (Vaswani et al. 2017), which the
    Conformer papers took over.

    Attributes:
        learning_rate: The peak learning rate.
        warmup_steps: Updates in which the learning rate rises linearly to the peak.
        schedule_name: ``inverse_sqrt``, ``cosine`` or ``constant``: what follows the warm-up.
        decay_steps: With ``cosine``, the update at which the learning rate reaches its end.
        end_fraction: With ``cosine``, the end as a fraction of the peak.
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay, times the learning rate.
        weight_decay_exclude: Regular expressions of whole parameter names without weight decay.
        clip_norm: The gradient is scaled down to this global norm at most; None: never.
        multipliers: Pairs of a regular expression and a factor on the learning rate. The first
            expression that matches a whole parameter name counts, as in
            ``(("decoder.*", 3.0), ("speech_encoder/frontend.*", 0.0))``.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 1000
    schedule_name: Literal["inverse_sqrt", "cosine", "constant"] = "inverse_sqrt"
    decay_steps: int | None = None
    end_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-9
    weight_decay: float = 0.0
    weight_decay_exclude: tuple[str, ...] = (r"(.*/)?bias", r"(.*/)?scale")
    clip_norm: float | None = 1.0
    multipliers: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        if self.schedule_name not in SCHEDULES:
            raise UserError(
                f"The schedule {self.schedule_name!r} is unknown; there are "
                f"{', '.join(SCHEDULES)}.{near_misses(self.schedule_name, SCHEDULES)}"
            )
        if self.schedule_name == "cosine" and (self.decay_steps or 0) <= self.warmup_steps:
            raise UserError(
                f"The cosine schedule needs decay_steps > warmup_steps ({self.warmup_steps}), but "
                f"decay_steps is {self.decay_steps}; set it to the number of training steps."
            )
        if self.learning_rate < 0 or self.warmup_steps < 0:
            raise UserError(
                f"learning_rate {self.learning_rate} and warmup_steps {self.warmup_steps} "
                "must not be negative."
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(
                f"clip_norm {self.clip_norm} must be positive, or None for no clipping."
            )
        for pattern in (*self.weight_decay_exclude, *(pattern for pattern, _ in self.multipliers)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"{pattern!r} is not a regular expression: {error}; mend it in AdamConfig."
                ) from error

    def schedule(self, step: jax.typing.ArrayLike) -> jax.Array:
        """The learning rate of the update that follows ``step`` updates.

        With n = step + 1, w = max(warmup_steps, 1) and peak learning rate p:

        * inverse_sqrt: ``p min(n / w, sqrt(w / n))``
        * constant: ``p min(n / w, 1)``
        * cosine: ``p n / w`` for n <= w, then
          ``p (e + (1 - e) (1 + cos(pi min((n - w) / (decay_steps - w), 1))) / 2)``
          with e the end fraction.
        """
        n = jnp.asarray(step, jnp.float32) + 1.0
        w = float(max(self.warmup_steps, 1))
        rising = jnp.minimum(n / w, 1.0)
        if self.schedule_name == "inverse_sqrt":
            factor = jnp.minimum(n / w, jnp.sqrt(w / n))
        elif self.schedule_name == "cosine":
            assert self.decay_steps is not None
            progress = jnp.clip((n - w) / (self.decay_steps - w), 0.0, 1.0)
            cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            factor = rising * (self.end_fraction + (1.0 - self.end_fraction) * cosine)
        else:
            factor = rising
        return self.learning_rate * factor

    def build(self, params: Any) -> optax.GradientTransformation:
        """The gradient transformation.

        Args:
            params: The tree of parameters, boxed or not; only names are read.

        Raises:
            UserError: A pattern of ``multipliers`` matches no parameter.
        """
        names = [name for name, _ in parameter_trees.named_leaves(parameter_trees.unbox(params))]
        for pattern, _ in self.multipliers:
            if not any(re.fullmatch(pattern, name) for name in names):
                raise UserError(
                    f"The learning-rate multiplier {pattern!r} matches no parameter; names look "
                    f"like {names[0] if names else '(none)'!r}.{near_misses(pattern, names)}"
                )
        transformations = []
        if self.clip_norm is not None:
            transformations.append(optax.clip_by_global_norm(self.clip_norm))
        transformations.append(optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps))
        if self.weight_decay:
            transformations.append(_decayed_weights(self.weight_decay, self.weight_decay_exclude))
        if self.multipliers:
            transformations.append(_multiplied(self.multipliers))
        transformations.append(optax.scale_by_learning_rate(self.schedule))
        return optax.chain(*transformations)


def _decayed_weights(decay: float, exclude: tuple[str, ...]) -> optax.GradientTransformation:
    """Add ``decay * parameter`` to the updates of all parameters that are not excluded."""

    def add(updates: Any, params: Any) -> Any:
        def one(name: str, update: jax.Array, value: jax.Array) -> jax.Array:
            if any(re.fullmatch(pattern, name) for pattern in exclude):
                return update
            return update + decay * value.astype(update.dtype)

        names = parameter_trees.map_named(lambda name, _: name, updates)
        return jax.tree.map(one, names, updates, params)

    return optax.stateless(add)


def _multiplied(multipliers: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Multiply each update by the factor of the first pattern that matches its name."""

    def scale(name: str, update: jax.Array) -> jax.Array:
        for pattern, factor in multipliers:
            if re.fullmatch(pattern, name):
                return update * factor
        return update

    return optax.stateless(lambda updates, _: parameter_trees.map_named(scale, updates))


def ema_decay_at(step: jax.typing.ArrayLike, decay: float) -> jax.Array:
    """The decay of the moving average after ``step`` updates.

    ``min(decay, (1 + step) / (10 + step))``: early averages forget the initial values quickly.
    """
    n = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1.0 + n) / (10.0 + n))


def update_ema(average: Any, params: Any, step: jax.typing.ArrayLike, decay: float) -> Any:
    """The moving average with new parameters taken in.

    ``average <- d average + (1 - d) parameter`` in float32, with d of ``ema_decay_at(step)``.

    Args:
        average: Tree of float32 arrays.
        params: Tree of the parameters after the update.
        step: The number of updates done before this one.
        decay: The decay that is approached.
    """
    d = ema_decay_at(step, decay)
    return jax.tree.map(lambda a, p: a + (1.0 - d) * (p.astype(jnp.float32) - a), average, params)
