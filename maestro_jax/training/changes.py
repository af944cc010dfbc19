"""What a restart changes: the run as its checkpoints describe it, beside the run that is started.

A checkpoint holds the description of its run (`describe`), a flat mapping from places such as
``optimizer.learning_rate`` to values. What only concerns devices, logging and the length of the run
may differ. What changes the mathematics is refused, unless it is asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maestro_jax.errors import UserError
from maestro_jax.tables import table

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)

Description = Mapping[str, Any]
"""The class of each configuration and the values of its fields, by their places in the run."""

# Fields of the run that decide parameters and batches. The others concern devices, logging, checks
# and the length of the run; what is read from `init_from` was read when the run began; and ids of
# languages and vocabularies are compared by themselves.
_DECIDING = {
    "accumulate",
    "ema_decay",
    "leave_out_batches",
    "model",
    "objective",
    "optimizer",
    "seed",
    "streams",
}
# Fields of parts of the model that choose how the same numbers are computed.
_IMPLEMENTATIONS = {"attention_implementation", "remat", "scan"}
# How many changes a message names; the table has all.
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Change:
    """Tells what differs at one place.

    Attributes:
        place: Such as ``optimizer.learning_rate``.
        name: The name by which gin binds it, as ``AdamConfig.learning_rate``; parts of models have
            their place behind it.
        before: What the checkpoint says.
        now: What the run says.
        is_harmless: Whether parameters and batches are the same all the same.
    """

    place: str
    name: str
    before: Any
    now: Any
    is_harmless: bool

    def __str__(self) -> str:
        """Formats it for a message."""
        return f"{self.name} {_shown(self.before)} -> {_shown(self.now)}"


def describe(run: TrainRun) -> dict[str, Any]:
    """Describes a run for its checkpoints.

    Args:
        run: The run.

    Returns:
        JSON values by place: the name of the class for a configuration, which has its fields below
        its place, and the value for a field. Streams that the objective does not use are left out.
    """
    found: dict[str, Any] = {}
    streams = {name: run.streams[name] for name in run.used_streams}
    for field in dataclasses.fields(run):
        value = streams if field.name == "streams" else getattr(run, field.name)
        _describe(value, field.name, found)
    return found


def find_changes(before: Description, now: Description) -> list[Change]:
    """Compares two descriptions.

    Fields that one of them lacks belong to another version of their class; they are left out.

    Args:
        before: What a checkpoint holds.
        now: That of the run.

    Returns:
        What differs, in the order of the run. Of a configuration of another class, the class alone.
    """
    found: list[Change] = []
    replaced: list[str] = []
    for place, value in now.items():
        if place not in before or before[place] == value:
            continue
        if any(place.startswith(f"{other}.") for other in replaced):
            continue
        replaced.append(place)
        found.append(
            Change(place, _gin_name(place, now), before[place], value, _is_harmless(place, now))
        )
    return found


def changes_table(found: Sequence[Change]) -> str:
    """Formats what a restart changes, with at least one change."""
    rows = [
        {
            "setting": change.name,
            "so far": _shown(change.before),
            "now": _shown(change.now),
            "": "" if change.is_harmless else "changes the result",
        }
        for change in found
    ]
    return table(rows)


def check_changes(found: Sequence[Change], model_dir: Any, *, allowed: bool) -> None:
    """Refuses what changes the mathematics.

    Args:
        found: The changes.
        model_dir: The model directory, for messages.
        allowed: Whether the user has asked for them.

    Raises:
        UserError: The mathematics change, and nobody has asked for it.
    """
    serious = [change for change in found if not change.is_harmless]
    named = ", ".join(map(str, serious[:_NAMED]))
    if len(serious) > _NAMED:
        named += f" and {len(serious) - _NAMED} more"
    if serious and not allowed:
        raise UserError(
            f"{model_dir} was trained otherwise so far ({named}): set it back, choose another "
            "model directory, or give --allow_changes to go on all the same."
        )
    if serious:
        log.warning("going on with these changes, as --allow_changes asks")


def _describe(value: Any, place: str, found: dict[str, Any]) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found[place] = type(value).__name__
        for field in dataclasses.fields(value):
            # Linen modules know their parent, and the name that it gave them.
            if field.name not in ("parent", "name") or not hasattr(value, "scope"):
                _describe(getattr(value, field.name), f"{place}.{field.name}", found)
    elif isinstance(value, Mapping):
        found[place] = [str(key) for key in value]
        for key, each in value.items():
            _describe(each, f"{place}.{key}", found)
    elif isinstance(value, (tuple, list)) and any(map(dataclasses.is_dataclass, value)):
        found[place] = [type(each).__name__ for each in value]
        for index, each in enumerate(value):
            _describe(each, f"{place}.{index}", found)
    else:
        found[place] = _json(value)


def _json(value: Any) -> Any:
    """Returns a value as JSON has it, the same in every process."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [_json(each) for each in value]
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        array = np.asarray(value)
        digest = hashlib.sha256(array.tobytes()).hexdigest()[:12]
        return f"{array.dtype}{list(array.shape)} {digest}"
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__qualname__
    return type(value).__name__


def _is_harmless(place: str, now: Description) -> bool:
    first, _, rest = place.partition(".")
    parent, _, field = place.rpartition(".")
    if first == "accumulate":
        # Negatives from the batch are those of the microbatch.
        return now.get("objective.matching.negatives") != "batch"
    if first not in _DECIDING:
        return True
    if first == "model":
        return field in _IMPLEMENTATIONS
    # Only the cosine has an end.
    return field == "decay_steps" and now.get(f"{parent}.schedule_name") not in (None, "cosine")


def _gin_name(place: str, now: Description) -> str:
    parts = place.split(".")
    if len(parts) == 1:
        return f"TrainRun.{place}"
    if parts[0] == "streams" and len(parts) == 3:
        return f"{parts[1]}/StreamConfig.{parts[2]}"
    parent = ".".join(parts[:-1])
    owner = now.get(parent)
    if not isinstance(owner, str):
        return place
    name = f"{owner}.{parts[-1]}"
    return name if len(parts) == 2 else f"{name} ({parent})"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
