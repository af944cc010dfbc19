"""The curriculum: which streams and loss weights a step has, and what a phase waits for.

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
from maestro_jax.renamed_metrics import present_name

ALL_STREAMS = ("speech", "paired", "text", "mt", "st")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A loss weight that changes with the curriculum step.

    Attributes:
        points: Pairs of a curriculum step and a weight, in ascending order. Before the first and
            after the last the weight is constant.
        shape: `linear` between two points, or `constant` from each point up to the next.
    """

    points: tuple[tuple[int, float], ...]
    shape: str = "linear"

    def __post_init__(self) -> None:
        """Refuses points that make no schedule."""
        steps = [step for step, _ in self.points]
        if not steps or steps != sorted(set(steps)):
            raise UserError(
                f"Schedule.points is {self.points!r}; give pairs (step, weight) of ascending steps."
            )
        if self.shape not in ("linear", "constant"):
            raise UserError(f"Schedule.shape is {self.shape!r}; choose 'linear' or 'constant'.")

    def at(self, step: jax.Array | int) -> jax.Array:
        """Returns the weight at a curriculum step, a float32 scalar."""
        # Float32 holds whole steps exactly up to 2^24, 16 million.
        steps = jnp.asarray([float(step) for step, _ in self.points])
        weights = jnp.asarray([float(weight) for _, weight in self.points])
        now = jnp.asarray(step, jnp.float32)
        if self.shape == "linear":
            return jnp.interp(now, steps, weights)
        # The last point at or before the step; before the first point, the first.
        index = jnp.searchsorted(steps, now, side="right") - 1
        return weights[jnp.maximum(index, 0)]


Weight = float | Schedule
"""A loss weight: a number, or a schedule of them."""


def weight_at(weight: Weight, step: jax.Array | int) -> jax.Array | float:
    """Returns a weight at a curriculum step, a scalar."""
    return weight.at(step) if isinstance(weight, Schedule) else weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """A condition on a logged metric without which a phase does not begin.

    It is judged on the average since the last log point, at the last log point before the phase
    would begin and at every later one.

    Attributes:
        metric: Name of the metric, as in `metrics.jsonl`: `paired/alignment_entropy` (nats per
            label), `paired/zero_duration_fraction`, `loss/transducer`.
        below: The metric must be below this; None: no such condition.
        above: The metric must be above this; None: no such condition.
    """

    metric: str
    below: float | None = None
    above: float | None = None

    def __post_init__(self) -> None:
        """Refuses a gate without a bound; a metric may be given by an earlier name."""
        object.__setattr__(self, "metric", present_name(self.metric))
        if self.below is None and self.above is None:
            raise UserError(f"The gate on {self.metric!r} needs a bound: set below or above.")

    def is_open(self, value: float | None) -> bool:
        """Returns whether a value lets the phase begin; a metric that is not logged does not."""
        # A NaN is not equal to itself; it opens no gate.
        if value is None or value != value:
            return False
        return (self.below is None or value < self.below) and (
            self.above is None or value > self.above
        )

    def __str__(self) -> str:
        """Returns the condition as text, such as `loss/mt below 2`."""
        conditions = [f"below {self.below:g}"] if self.below is not None else []
        conditions += [f"above {self.above:g}"] if self.above is not None else []
        return f"{self.metric} {' and '.join(conditions)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of training that begins with more streams.

    Attributes:
        name: For messages.
        start_step: The curriculum step at which it begins.
        streams: The streams that begin with it.
        gates: What must hold before it begins.
        max_hold_steps: Steps after which it begins although a gate is shut, with a warning; None:
            never.
    """

    name: str
    start_step: int
    streams: tuple[str, ...]
    gates: tuple[Gate, ...] = ()
    max_hold_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuses unknown streams, and a gate on the very first step."""
        unknown = [stream for stream in self.streams if stream not in ALL_STREAMS]
        if unknown:
            raise UserError(
                f"The phase {self.name!r} names the stream {unknown[0]!r}; the streams are "
                f"{', '.join(ALL_STREAMS)}.{near_misses(unknown[0], ALL_STREAMS)}"
            )
        if self.start_step < 0:
            raise UserError(f"The phase {self.name!r} begins at {self.start_step}; use 0 or more.")
        if self.gates and not self.start_step:
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

    phases: tuple[Phase, ...] = (Phase(name="everything", start_step=0, streams=ALL_STREAMS),)

    def __post_init__(self) -> None:
        """Refuses phases out of order, and a stream that begins twice."""
        starts = [phase.start_step for phase in self.phases]
        if not starts or starts[0] != 0 or starts != sorted(starts):
            raise UserError(
                f"The phases begin at {starts}; the first must begin at 0, the others in order."
            )
        streams = [stream for phase in self.phases for stream in phase.streams]
        twice = [stream for stream in streams if streams.count(stream) > 1]
        if twice:
            raise UserError(f"The stream {twice[0]!r} begins in two phases; name it in one.")

    def streams(self, step: int) -> tuple[str, ...]:
        """Returns the streams that have begun at a curriculum step, in the order of a batch."""
        begun = {
            stream for phase in self.phases[: self.index(step) + 1] for stream in phase.streams
        }
        return tuple(stream for stream in ALL_STREAMS if stream in begun)

    def index(self, step: int) -> int:
        """Returns the index in `phases` of the last phase that has begun at a curriculum step."""
        return bisect.bisect_right([phase.start_step for phase in self.phases], step) - 1


def paper_curriculum(
    paired_start_step: int = 0, text_start_step: int = 0, translation_start_step: int = 0
) -> Curriculum:
    """Returns the paper's order of streams, without gates (MAESTRO, section 3.2).

    Args:
        paired_start_step: Step at which paired speech begins (500k in the paper).
        text_start_step: Step at which unspoken text begins (515k in the paper).
        translation_start_step: Step at which MT and ST begin.
    """
    starts = {
        "speech": 0,
        "paired": paired_start_step,
        "text": text_start_step,
        "mt": translation_start_step,
        "st": translation_start_step,
    }
    phases = []
    for step in sorted(set(starts.values())):
        streams = tuple(stream for stream, start in starts.items() if start == step)
        phases.append(Phase(name=" + ".join(streams), start_step=step, streams=streams))
    return Curriculum(phases=tuple(phases))
