"""Parameter groups with learning rates, schedules and weight decay of their own, or frozen.

Fine-tuning combines a pretrained encoder with a decoder from scratch. mSLAM (arXiv 2202.01374)
gives the encoder a peak learning rate of 3e-4 after 5000 updates and the decoder one of 1e-3 after
1500; USM (arXiv 2303.01037) gives each an optimizer of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maestro_jax.errors import UserError, near_misses
from maestro_jax.training import parameter_trees

# The parameters that no group matches.
BASE = "base"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Configures a group of parameters; what is None is as in the optimizer's configuration.

    Attributes:
        name: Name of the group in metrics: ``learning_rate/<name>``, ``grad_norm/<name>``.
        patterns: One or more regular expressions of whole parameter names, such as
            ``("decoder/.*",)``. Each must match something. A parameter belongs to the first group
            that matches its name.
        learning_rate: Peak learning rate.
        warmup_steps: Number of updates in which the learning rate rises to the peak, counted from
            the end of the freeze.
        schedule_name: What follows the warm-up; ``inverse_sqrt`` is counted like the warm-up.
        decay_steps: With ``cosine``, the update at which the learning rate reaches its end, counted
            from the first update of the run.
        weight_decay: Decoupled weight decay, times the learning rate of the group.
        frozen: Whether the group is never trained: no gradient is computed and no moments are kept.
        frozen_steps: Number of updates during which the group is frozen. Then its optimizer starts
            afresh, with moments of zero. Until then its gradients are not part of the clipping.
    """

    name: str
    patterns: str | tuple[str, ...]
    learning_rate: float | None = None
    warmup_steps: int | None = None
    schedule_name: Literal["inverse_sqrt", "cosine", "constant"] | None = None
    decay_steps: int | None = None
    weight_decay: float | None = None
    frozen: bool = False
    frozen_steps: int = 0

    def __post_init__(self) -> None:
        """Checks names and patterns."""
        patterns = (self.patterns,) if isinstance(self.patterns, str) else tuple(self.patterns)
        object.__setattr__(self, "patterns", patterns)
        if not re.fullmatch(r"\w+", self.name) or self.name == BASE:
            raise UserError(
                f"A parameter group may not be named {self.name!r}: take letters, digits and "
                f"underscores, and leave {BASE!r} to the parameters of no group."
            )
        if not patterns:
            raise UserError(f"The parameter group {self.name!r} has no patterns; give it one.")
        for pattern in patterns:
            check_pattern(pattern, f"of the parameter group {self.name!r}")
        if self.frozen_steps < 0:
            raise UserError(
                f"frozen_steps of the parameter group {self.name!r} is {self.frozen_steps}; "
                "it must not be negative."
            )

    def matches(self, name: str) -> bool:
        """Returns whether a pattern matches the whole name."""
        return any(re.fullmatch(pattern, name) for pattern in self.patterns)


def check_pattern(pattern: str, where: str) -> None:
    """Checks that a pattern is a regular expression; `where` is what messages call its place."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{pattern!r} {where} is not a regular expression: {error}.") from error


def check_match(pattern: str, names: Sequence[str], where: str) -> None:
    """Checks that a pattern matches a whole parameter name; names the near misses."""
    if not any(re.fullmatch(pattern, name) for name in names):
        modules = {name.split("/")[0] + "/.*" for name in names}
        hint = near_misses(pattern, [*modules, *names])
        example = f" names look like {names[0]!r}." if names else " there are none."
        raise UserError(f"{pattern!r} {where} matches no parameter;{hint or example}")


def assign(params: Any, groups: Sequence[ParameterGroup]) -> dict[str, str]:
    """Assigns each parameter to a group.

    Args:
        params: Tree of parameters, boxed or not; only names are read.
        groups: The groups; a parameter belongs to the first that matches its name.

    Returns:
        A mapping from parameter names to names of groups, ``base`` for parameters of none.

    Raises:
        UserError: A pattern matches nothing, or a group is left with nothing.
    """
    names = [name for name, _ in parameter_trees.named_leaves(parameter_trees.unbox(params))]
    owners = {
        name: next((group.name for group in groups if group.matches(name)), BASE) for name in names
    }
    for group in groups:
        for pattern in group.patterns:
            check_match(pattern, names, f"of the parameter group {group.name!r}")
        if group.name not in owners.values():
            first_matches = {owners[name] for name in names if group.matches(name)}
            raise UserError(
                f"The parameter group {group.name!r} is empty: all that it matches is in "
                f"{', '.join(sorted(first_matches))}; the first group that matches counts, so put "
                "it further to the front."
            )
    return owners


def split(tree: Any, owners: Mapping[str, str], without: Sequence[str] = ()) -> dict[str, Any]:
    """Splits a tree by group.

    Args:
        tree: A tree with the names of the parameters, boxed or not.
        owners: The group of each name.
        without: Groups that are left out.

    Returns:
        For each group that owns something, the tree with None in place of what it does not own.
    """

    def of(group: str) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, node: (
                node if owners[parameter_trees.parameter_name(path)] == group else None
            ),
            tree,
            is_leaf=parameter_trees.is_box,
        )

    present = dict.fromkeys(owners.values())
    return {group: of(group) for group in present if group not in without}


class GroupedState(NamedTuple):
    """Holds the state of ``grouped``.

    Attributes:
        count: Scalar int32, the number of updates done.
        groups: State of the transformation of each group.
    """

    count: jax.Array  # type: ignore[assignment]  # As optax names it; a tuple has a method so.
    groups: dict[str, Any]


def grouped(
    owners: Mapping[str, str],
    transformations: Mapping[str, optax.GradientTransformation],
    frozen_steps: Mapping[str, int],
    clip: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Combines a transformation per group under common clipping.

    Unlike ``optax.transforms.partition`` this preserves the boxes of parameters, whose logical axis
    names lay the moments out over a mesh.

    Args:
        owners: Group of each parameter.
        transformations: Transformation of each group; parameters of a group without one never
            change.
        frozen_steps: Number of updates during which each group is frozen.
        clip: Stateless transformation of the gradients of all groups that are not frozen.
    """
    frozen = [group for group in owners.values() if group not in transformations]

    def init(params: Any) -> GroupedState:
        parts = split(params, owners, frozen)
        return GroupedState(
            count=jnp.zeros((), jnp.int32),
            groups={group: transformations[group].init(part) for group, part in parts.items()},
        )

    def update(updates: Any, state: GroupedState, params: Any = None) -> tuple[Any, GroupedState]:
        # Of the groups that are frozen for some steps alone; decided on the device, so that a thaw
        # needs no other program.
        is_trained = {
            group: state.count >= steps for group, steps in frozen_steps.items() if steps > 0
        }

        def choose(group: str, new: Any, old: Any) -> Any:
            if group not in is_trained:
                return new
            return jax.tree.map(lambda n, o: jnp.where(is_trained[group], n, o), new, old)

        parts = split(updates, owners, frozen)
        zeros = {group: jax.tree.map(jnp.zeros_like, part) for group, part in parts.items()}
        parts = {group: choose(group, part, zeros[group]) for group, part in parts.items()}
        # By the norm over all groups together, in which frozen ones count 0.
        parts, _ = clip.update(parts, clip.init(parts))
        values = split(params, owners, frozen)
        results: dict[str, Any] = {}
        states: dict[str, Any] = {}
        for group, part in parts.items():
            before = state.groups[group]
            # Computed for frozen groups too, and discarded: neither parameters nor moments change.
            result, after = transformations[group].update(part, before, values[group])
            results |= parameter_trees.named_leaves(choose(group, result, zeros[group]))
            states[group] = choose(group, after, before)
        merged = parameter_trees.map_named(
            lambda name, leaf: results[name] if name in results else jnp.zeros_like(leaf), updates
        )
        return merged, GroupedState(count=state.count + 1, groups=states)

    return optax.GradientTransformation(init, update)
