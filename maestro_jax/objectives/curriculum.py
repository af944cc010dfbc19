"""The curriculum: which streams and which loss weights a step has, and what may hold a phase back.

Source: MAESTRO, section 3.2: speech alone for 500k steps, then paired speech for 15k, then unspoken
text. Everything here is a function of the *curriculum step*: the training step less the steps for
which a gate stopped this clock.
"""

from __future__ import annotations

import bisect
import dataclasses

import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError, near_misses

ALL_STREAMS = ("speech", "paired", "text", "mt", "st")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A loss weight that changes with the curriculum step.

    Attributes:
        points: Pairs of a curriculum step and a weight, in ascending order. Before the first and
            after the last the weight stands still.
        shape: `linear` between two points, or `constant` from each point up to the next.
    """

    points: tuple[tuple[int, float], ...]
    shape: str = "linear"

    def __post_init__(self) -> None:
        """Refuse points that make no schedule."""
        steps = [step for step, _ in self.points]
        if not steps or steps != sorted(set(steps)):
            raise UserError(
                f"Schedule.points is {self.points!r}; give pairs (step, weight) of ascending steps."
            )
        if self.shape not in ("linear", "constant"):
            raise UserError(f"Schedule.shape is {self.shape!r}; choose 'linear' or 'constant'.")

    def at(self, step: jax.Array | int) -> jax.Array:
        """The weight at a curriculum step."""
        steps = jnp.asarray([float(step) for step, _ in self.points])
        weights = jnp.asarray([float(weight) for _, weight in self.points])
        now = jnp.asarray(step, jnp.float32)
        if self.shape == "linear":
            return jnp.interp(now, steps, weights)
        index = jnp.searchsorted(steps, now, side="right") - 1
        return weights[jnp.maximum(index, 0)]


Weight = float | Schedule
"""A loss weight: a number, or a schedule of them."""


def weight_at(weight: Weight, step: jax.Array | int) -> jax.Array | float:
    """A weight at a curriculum step."""
    return weight.at(step) if isinstance(weight, Schedule) else weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """A condition on a logged metric without which a phase does not begin.

    It is judged on the average since the last log point, at the last log point before the phase
    would begin and at every later one.

    Attributes:
        metric: Its name, as in `metrics.jsonl`: `paired/alignment_entropy` (nats a label),
            `paired/zero_duration_share`, `paired/duration_error_frames`, `loss/transducer`.
        below: The metric must be below this; None: no such condition.
        above: The metric must be above this; None: no such condition.
    """

    metric: str
    below: float | None = None
    above: float | None = None

    def __post_init__(self) -> None:
        """Refuse a gate that is always open."""
        if self.below is None and self.above is None:
            raise UserError(f"The gate on {self.metric!r} needs a bound: set below or above.")

    def is_open(self, value: float | None) -> bool:
        """Whether a value lets the phase begin; what is not logged does not."""
        if value is None or value != value:
            return False
        return (self.below is None or value < self.below) and (
            self.above is None or value > self.above
        )

    def __str__(self) -> str:
        """The condition in words."""
        conditions = [f"below {self.below:g}"] if self.below is not None else []
        conditions += [f"above {self.above:g}"] if self.above is not None else []
        return f"{self.metric} {' and '.join(conditions)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of training that begins with more streams.

    Attributes:
        name: For messages.
        begins: The curriculum step at which it begins.
        streams: The streams that begin with it.
        gates: What must hold before it begins.
        longest_hold: Steps after which it begins although a gate is shut, with a warning; None:
            never.
    """

    name: str
    begins: int
    streams: tuple[str, ...]
    gates: tuple[Gate, ...] = ()
    longest_hold: int | None = None

    def __post_init__(self) -> None:
        """Refuse unknown streams, and a gate on the very first step."""
        unknown = [stream for stream in self.streams if stream not in ALL_STREAMS]
        if unknown:
            raise UserError(
                f"The phase {self.name!r} names the stream {unknown[0]!r}; the streams are "
                f"{', '.join(ALL_STREAMS)}.{near_misses(unknown[0], ALL_STREAMS)}"
            )
        if self.begins < 0:
            raise UserError(f"The phase {self.name!r} begins at {self.begins}; use 0 or more.")
        if self.gates and not self.begins:
            raise UserError(
                f"The phase {self.name!r} begins at step 0, where nothing has been logged that "
                "its gates could judge; let it begin later, or remove them."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Phases in order of their beginnings.

    Attributes:
        phases: One after the other; the first begins at step 0.
    """

    phases: tuple[Phase, ...] = (Phase(name="everything", begins=0, streams=ALL_STREAMS),)

    def __post_init__(self) -> None:
        """Refuse phases out of order, and a stream that begins twice."""
        begins = [phase.begins for phase in self.phases]
        if not begins or begins[0] != 0 or begins != sorted(begins):
            raise UserError(
                f"The phases begin at {begins}; the first must begin at 0, the others in order."
            )
        streams = [stream for phase in self.phases for stream in phase.streams]
        twice = [stream for stream in streams if streams.count(stream) > 1]
        if twice:
            raise UserError(f"The stream {twice[0]!r} begins in two phases; name it in one.")

    def streams(self, step: int) -> tuple[str, ...]:
        """The streams that have begun at a curriculum step, in the order of a batch."""
        begun = {
            stream for phase in self.phases[: self.index(step) + 1] for stream in phase.streams
        }
        return tuple(stream for stream in ALL_STREAMS if stream in begun)

    def index(self, step: int) -> int:
        """The place in `phases` of the last phase that has begun at a curriculum step."""
        return bisect.bisect_right([phase.begins for phase in self.phases], step) - 1


def in_order(paired_from: int = 0, text_from: int = 0, translation_from: int = 0) -> Curriculum:
    """The paper's order of streams, without gates.

    Args:
        paired_from: Step at which paired speech begins (500k in the paper).
        text_from: Step at which unspoken text begins (515k in the paper).
        translation_from: Step at which MT and ST begin.
    """
    begins = {
        "speech": 0,
        "paired": paired_from,
        "text": text_from,
        "mt": translation_from,
        "st": translation_from,
    }
    phases = []
    for step in sorted(set(begins.values())):
        streams = tuple(stream for stream, begin in begins.items() if begin == step)
        phases.append(Phase(name=" + ".join(streams), begins=step, streams=streams))
    return Curriculum(phases=tuple(phases))
