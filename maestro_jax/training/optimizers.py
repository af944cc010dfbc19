"""Optimizers, learning-rate schedules and the moving average of the parameters."""

from __future__ import annotations

import abc
import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maestro_jax.errors import UserError, near_misses
from maestro_jax.field_types import check_fields
from maestro_jax.training import parameter_groups, parameter_trees
from maestro_jax.training.parameter_groups import BASE, ParameterGroup

SCHEDULES = ("inverse_sqrt", "cosine", "constant")
MU_DTYPES = ("float32", "bfloat16")
FROZEN = r"(.*/)?frozen_\w+(/.*)?"
"""Names of parameters, or of what holds them, that are never trained: without gradient or decay."""


class Optimizer(Protocol):
    """Declares what the training step requires of an optimizer's configuration."""

    def build(self, params: Any) -> optax.GradientTransformation:
        """Builds the transformation of gradients to updates, for parameters of these names."""
        ...

    def schedule(self, step: jax.typing.ArrayLike) -> jax.Array:
        """Returns the learning rate of the update that follows `step` updates."""
        ...

    def group_schedules(self, step: jax.typing.ArrayLike) -> Mapping[str, jax.Array]:
        """Returns the learning rates of the groups that have their own."""
        ...

    def by_group(self, tree: Any) -> Mapping[str, Any]:
        """Splits a tree like that of the parameters by group, without what is never trained."""
        ...

    def schedule_ends(self) -> Mapping[str, int]:
        """Returns the update at which each schedule that ends does so, by group."""
        ...

    def ending_at(self, ends: Mapping[str, jax.Array]) -> Optimizer:
        """Returns the configuration whose schedules end at the updates of an array each."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(abc.ABC):
    """Holds what all optimizers have: learning-rate schedule, weight decay, clipping, groups.

    Attributes:
        learning_rate: Peak learning rate.
        warmup_steps: Number of updates in which the learning rate rises linearly to the peak.
        schedule_name: ``inverse_sqrt``, ``cosine`` or ``constant``: what follows the warm-up.
        decay_steps: With ``cosine``, the update at which the learning rate reaches its end.
        end_fraction: With ``cosine``, the end as a fraction of the peak.
        weight_decay: Decoupled weight decay, times the learning rate.
        weight_decay_exclude: Regular expressions of whole parameter names without weight decay.
        clip_norm: Maximal global norm of the gradient of all trained parameters, to which it is
            scaled down; None for no clipping.
        mu_dtype: Dtype of first moments, such as ``"bfloat16"``; None for float32.
        groups: Parameters with a learning rate, schedule or weight decay of their own, or frozen.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 1000
    schedule_name: Literal["inverse_sqrt", "cosine", "constant"] = "inverse_sqrt"
    decay_steps: int | None = None
    end_fraction: float = 0.0
    weight_decay: float = 0.0
    weight_decay_exclude: tuple[str, ...] = (r"(.*/)?bias", r"(.*/)?scale")
    clip_norm: float | None = 1.0
    mu_dtype: str | None = None
    groups: tuple[ParameterGroup, ...] = ()

    def __post_init__(self) -> None:
        """Checks the values."""
        if isinstance(self.decay_steps, jax.Array):
            return  # Made by `ending_at` of what has been checked, within a step.
        check_fields(self)
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
        if self.mu_dtype not in (None, *MU_DTYPES):
            raise UserError(
                f"mu_dtype is {self.mu_dtype!r}; choose one of {', '.join(MU_DTYPES)}, or None."
                f"{near_misses(str(self.mu_dtype), MU_DTYPES)}"
            )
        for pattern in self.weight_decay_exclude:
            parameter_groups.check_pattern(pattern, "of weight_decay_exclude")
        # gin hands over lists; a configuration must be hashable.
        object.__setattr__(self, "groups", tuple(self.groups))
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise UserError(f"Two parameter groups have one name ({', '.join(names)}); rename one.")
        for group in self.groups:
            self._of_group(group)

    def schedule(self, step: jax.typing.ArrayLike) -> jax.Array:
        """Returns the learning rate of the update that follows ``step`` updates.

        With n = step + 1, w = max(warmup_steps, 1) and peak learning rate p:

        * inverse_sqrt: ``p min(n / w, sqrt(w / n))``
        * constant: ``p min(n / w, 1)``
        * cosine: ``p n / w`` for n <= w, then
          ``p (e + (1 - e) (1 + cos(pi min((n - w) / (decay_steps - w), 1))) / 2)``
          with e the end fraction.
        """
        # Counted from 1: the first update has a learning rate above 0.
        n = jnp.asarray(step, jnp.float32) + 1.0
        w = float(max(self.warmup_steps, 1))
        rising = jnp.minimum(n / w, 1.0)
        if self.schedule_name == "inverse_sqrt":
            # Both are 1 at n = w, where the first stops being the smaller one.
            factor = jnp.minimum(n / w, jnp.sqrt(w / n))
        elif self.schedule_name == "cosine":
            assert self.decay_steps is not None
            progress = jnp.clip((n - w) / (self.decay_steps - w), 0.0, 1.0)
            cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            # The progress is 0 while the learning rate rises, and the cosine 1.
            factor = rising * (self.end_fraction + (1.0 - self.end_fraction) * cosine)
        else:
            factor = rising
        return self.learning_rate * factor

    def group_schedules(self, step: jax.typing.ArrayLike) -> dict[str, jax.Array]:
        """Returns the learning rate of each group in the update that follows ``step`` updates.

        With f the steps for which a group is frozen, that of ``schedule`` at ``step - f``; before
        that, and for a group that is frozen for good, 0.
        """
        rates = {}
        for group in self.groups:
            since = jnp.asarray(step, jnp.int32) - group.frozen_steps
            rate = self._of_group(group).schedule(jnp.maximum(since, 0))
            rates[group.name] = jnp.where((since < 0) | group.frozen, 0.0, rate)
        return rates

    def schedule_ends(self) -> dict[str, int]:
        """Returns the update at which each cosine ends, by group; ``base`` for that of no group."""
        configs = {BASE: self, **{group.name: self._of_group(group) for group in self.groups}}
        frozen = {group.name: group.frozen_steps for group in self.groups}
        return {
            name: config.decay_steps + frozen.get(name, 0)
            for name, config in configs.items()
            if config.schedule_name == "cosine" and config.decay_steps is not None
        }

    def ending_at(self, ends: Mapping[str, jax.Array]) -> Self:
        """Returns the configuration whose cosines end at updates that are inputs of a step.

        A run that becomes longer or shorter then finds its program in the compilation cache.

        Args:
            ends: Scalar int32 for each group of `schedule_ends`.
        """
        if not ends:
            return self
        # Copied and not replaced: arrays cannot be checked as the numbers were.
        config = copy.copy(self)
        groups = tuple(map(copy.copy, self.groups))
        for group in groups:
            if group.name in ends:
                object.__setattr__(group, "decay_steps", ends[group.name])
        object.__setattr__(config, "groups", groups)
        if BASE in ends:
            object.__setattr__(config, "decay_steps", ends[BASE])
        return config

    def by_group(self, tree: Any) -> dict[str, Any]:
        """Splits a tree with the names of the parameters by group, without what is frozen for good.

        Args:
            tree: Such as the gradients.

        Returns:
            From the names of the groups, and ``base`` for what is in none, to the tree with None
            in place of what the group does not own.
        """
        return parameter_groups.split(
            tree, parameter_groups.assign(tree, self.groups), self._frozen_groups
        )

    def build(self, params: Any) -> optax.GradientTransformation:
        """Builds the gradient transformation.

        Args:
            params: The tree of parameters, boxed or not; only names are read.

        Raises:
            UserError: A pattern of a group matches no parameter, or a group is empty.
        """
        # First of all, on the gradient as it is: moments are those of clipped gradients.
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        if not self.groups:
            return optax.chain(*clip, *self._unclipped())
        configs = {BASE: self, **{group.name: self._of_group(group) for group in self.groups}}
        return parameter_groups.grouped(
            parameter_groups.assign(params, self.groups),
            {
                name: optax.chain(*config._unclipped())
                for name, config in configs.items()
                if name not in self._frozen_groups
            },
            {group.name: group.frozen_steps for group in self.groups},
            optax.chain(*clip),
        )

    @property
    def _frozen_groups(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.groups if group.frozen)

    def _of_group(self, group: ParameterGroup) -> Self:
        """Returns the configuration of one group, whose steps count from the end of its freeze."""
        own = {
            field: getattr(group, field)
            for field in ("learning_rate", "warmup_steps", "schedule_name", "weight_decay")
            if getattr(group, field) is not None
        }
        decay_steps = self.decay_steps if group.decay_steps is None else group.decay_steps
        if decay_steps is not None:
            own["decay_steps"] = decay_steps - group.frozen_steps
        try:
            return dataclasses.replace(self, groups=(), **own)
        except UserError as error:
            thaws = f" (counted from the end of its freeze at {group.frozen_steps})" * (
                group.frozen_steps > 0
            )
            raise UserError(f"The parameter group {group.name!r}{thaws}: {error}") from error

    def _unclipped(self) -> list[optax.GradientTransformation]:
        # Decoupled (Loshchilov and Hutter 2019): the decay is added behind the moments and before
        # the learning rate.
        transformations = self._scaled()
        if self.weight_decay:
            exclude = (*self.weight_decay_exclude, FROZEN)
            transformations.append(_decayed_weights(self.weight_decay, exclude))
        transformations.append(optax.scale_by_learning_rate(self.schedule))
        return transformations

    @abc.abstractmethod
    def _scaled(self) -> list[optax.GradientTransformation]:
        """Turns gradients into updates, before weight decay and learning rate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamConfig(OptimizerConfig):
    """Adam; with ``weight_decay``, which is decoupled, AdamW.

    The defaults of the moments are those of the Transformer (Vaswani et al. 2017), which the
    Conformer papers use.

    Attributes:
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        eps: Added to the root of the second moment.
    """

    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-9

    def _scaled(self) -> list[optax.GradientTransformation]:
        return [optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps, mu_dtype=self.mu_dtype)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdafactorConfig(OptimizerConfig):
    """Adafactor (Shazeer and Stern 2018, arXiv 1804.04235): second moments by rows and columns.

    Of a kernel of m x n the second moments take m + n numbers. Without ``b1`` there are no first
    moments, and the state is about the parameters alone. An update has a root mean square of 1
    at most, so that a learning rate means what it means to Adam.

    Attributes:
        decay_rate: Exponent of the decay of second moments: after t updates
            ``1 - t ** -decay_rate``.
        b1: Decay of the first moment, which takes the room of the parameters; None: none is kept.
        clip_rms: The update of an array is scaled down to this root mean square at most; None:
            never.
        parameter_scale: Updates are relative to the root mean square of the array, as in the paper,
            which has a learning rate of 0.01. Off by default: learning rates are Adam's.
        smallest_factored: Moments of an array are factored if two of its axes have this size.
        eps: Added to the square of the gradient.
    """

    decay_rate: float = 0.8
    b1: float | None = None
    clip_rms: float | None = 1.0
    parameter_scale: bool = False
    smallest_factored: int = 128
    eps: float = 1e-30

    def __post_init__(self) -> None:
        """Checks the values."""
        super().__post_init__()
        if not 0.0 < self.decay_rate <= 1.0 or not (self.b1 is None or 0.0 <= self.b1 < 1.0):
            raise UserError(
                f"AdafactorConfig has decay_rate={self.decay_rate} and b1={self.b1}; decay_rate "
                "must lie above 0 and up to 1, b1 be None or at least 0 and below 1."
            )
        if self.smallest_factored < 1 or (self.clip_rms is not None and self.clip_rms <= 0):
            raise UserError(
                f"AdafactorConfig has smallest_factored={self.smallest_factored} and "
                f"clip_rms={self.clip_rms}; both must be above 0, or clip_rms None."
            )

    def _scaled(self) -> list[optax.GradientTransformation]:
        steps = [
            scale_by_factored_rms(
                decay_rate=self.decay_rate, smallest=self.smallest_factored, eps=self.eps
            )
        ]
        if self.clip_rms is not None:
            steps.append(optax.clip_by_block_rms(self.clip_rms))
        if self.parameter_scale:
            steps.append(optax.scale_by_param_block_rms())
        if self.b1 is not None:
            steps.append(optax.ema(self.b1, debias=False, accumulator_dtype=self.mu_dtype))
        return steps


def scale_by_factored_rms(
    *, decay_rate: float, smallest: int, eps: float
) -> optax.GradientTransformation:
    """Wraps `optax.scale_by_factored_rms` so that its state keeps the boxes of boxed parameters.

    Where a parameter has two large axes, its second moments are kept as means over one of them and
    as means over the other (Shazeer and Stern 2018, algorithm 4). An array of means has the logical
    axes that remain, so that a mesh lays it out like the parameter.

    Args:
        decay_rate: Exponent of the decay: after t updates it is `1 - t ** -decay_rate`.
        smallest: Smallest size of an axis that is averaged over; a parameter with fewer than two
            such axes has a moment for each of its values.
        eps: Added to the square of the gradient.
    """
    plain = optax.scale_by_factored_rms(
        decay_rate=decay_rate, min_dim_size_to_factor=smallest, epsilon=eps
    )

    def init(params: Any) -> Any:
        state = plain.init(parameter_trees.unbox(params))

        def boxed(field: str) -> Any:
            return jax.tree.map(
                lambda param, value: _boxed_like(param, value, field, smallest),
                params,
                getattr(state, field),
                is_leaf=parameter_trees.is_box,
            )

        return state._replace(**{field: boxed(field) for field in ("v_row", "v_col", "v")})

    return optax.GradientTransformation(init, plain.update)


def factored_axes(shape: tuple[int, ...], smallest: int) -> tuple[int, int] | None:
    """Returns the axes that `v_col` and `v_row` are means over, the largest last, or None.

    Args:
        shape: Shape of the parameter.
        smallest: Smallest size of both axes.
    """
    if len(shape) < 2:
        return None
    # As optax chooses them: the two largest axes.
    *_, second, largest = (int(axis) for axis in np.argsort(shape))
    return None if shape[second] < smallest else (second, largest)


def _boxed_like(param: Any, value: jax.Array, field: str, smallest: int) -> Any:
    """Boxes the statistics of a parameter like the parameter, if they have logical axes."""
    names = tuple(getattr(param, "names", ())) if parameter_trees.is_box(param) else ()
    if not names:
        return value
    shape = parameter_trees.unbox(param).shape
    axes = factored_axes(shape, smallest)
    if (axes is None) != (field == "v"):
        # A placeholder for statistics that are not kept.
        return value
    if axes is not None:
        averaged_axis = axes[1] if field == "v_row" else axes[0]
        names = names[:averaged_axis] + names[averaged_axis + 1 :]
    return param.replace(value=value, names=names)


def _decayed_weights(decay: float, exclude: tuple[str, ...]) -> optax.GradientTransformation:
    """Adds ``decay * parameter`` to the updates of all parameters that are not excluded."""

    def add(updates: Any, params: Any) -> Any:
        def one(name: str, update: jax.Array, value: jax.Array) -> jax.Array:
            if any(re.fullmatch(pattern, name) for pattern in exclude):
                return update
            return update + decay * value.astype(update.dtype)

        names = parameter_trees.map_named(lambda name, _: name, updates)
        return jax.tree.map(one, names, updates, params)

    return optax.stateless(add)


def ema_decay_at(step: jax.typing.ArrayLike, decay: float) -> jax.Array:
    """Returns the decay of the moving average after ``step`` updates.

    ``min(decay, (1 + step) / (10 + step))``: early averages forget the initial values quickly.
    """
    n = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1.0 + n) / (10.0 + n))


def update_ema(average: Any, params: Any, step: jax.typing.ArrayLike, decay: float) -> Any:
    """Updates the moving average of the parameters.

    ``average <- d average + (1 - d) parameter`` in float32, with d of ``ema_decay_at(step)``.

    Args:
        average: Tree of float32 arrays.
        params: Tree of the parameters after the update.
        step: The number of updates done before this one.
        decay: The decay that is approached.
    """
    d = ema_decay_at(step, decay)
    # As a difference and not as d a + (1 - d) p: an average that equals its parameter stays equal,
    # without rounding. Float32 also for parameters of bfloat16, where adding 1e-4 of a difference
    # would change nothing.
    return jax.tree.map(lambda a, p: a + (1.0 - d) * (p.astype(jnp.float32) - a), average, params)
