"""What a checkpoint remembers of a run besides arrays."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maestro_jax.errors import UserError
from maestro_jax.training.changes import Change, check_changes, describe, find_changes

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)

# Fields of a stream that decide which examples a step sees.
_ORDER_OF_EXAMPLES = ("batch_size", "mixture", "buckets")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """The JSON record of a checkpoint.

    Attributes:
        step: Number of steps done.
        seed: Seed of the run.
        elapsed_seconds: Seconds of training, over all restarts.
        streams: Configuration of each stream, with the number of examples that it has given. The
            position of a stream needs no more: the examples of a step are a function of
            (seed, step).
        callbacks: State of each callback by its name (`callbacks.Callback.state`).
        vocabulary: Fingerprint of the vocabulary (`model_vocabulary.fingerprint`); None if unknown.
        rollbacks: What the run has left out so far (`left_out.write_left_out`).
        batch_parts: Into how many parts a batch was divided (`elastic.batch_parts`); 0 if unknown.
        run: Description of the run (`changes.describe`); None in a record of an earlier version.
    """

    step: int = 0
    seed: int = 0
    elapsed_seconds: float = 0.0
    streams: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    callbacks: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    vocabulary: Mapping[str, Any] | None = None
    rollbacks: Sequence[Mapping[str, Any]] = ()
    batch_parts: int = 0
    run: Mapping[str, Any] | None = None

    @classmethod
    def of_run(
        cls,
        run: TrainRun,
        *,
        step: int,
        elapsed_seconds: float,
        callbacks: Mapping[str, Mapping[str, Any]],
        vocabulary: Mapping[str, Any] | None,
        rollbacks: Sequence[Mapping[str, Any]] = (),
        batch_parts: int = 0,
    ) -> TrainingRecord:
        """Describes a run after a step; the arguments are those of the class."""
        streams = {
            name: {
                **dataclasses.asdict(config),
                # With buckets, batches have different sizes, which nobody has counted.
                "examples": None if config.buckets else step * config.batch_size,
            }
            for name, config in run.streams.items()
        }
        return cls(
            step=step,
            seed=run.seed,
            elapsed_seconds=elapsed_seconds,
            streams=streams,
            callbacks=callbacks,
            vocabulary=vocabulary,
            rollbacks=rollbacks,
            batch_parts=batch_parts,
            run=describe(run),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the record as JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingRecord:
        """Reads a record, also one that an earlier version has written.

        Args:
            data: Result of `to_json`.
        """
        return cls(
            step=int(data["step"]),
            seed=int(data["seed"]),
            elapsed_seconds=float(data.get("elapsed_seconds", 0.0)),
            streams=data.get("streams", {}),
            callbacks=data["callbacks"] if "callbacks" in data else _callbacks_before(data),
            vocabulary=data.get("vocabulary"),
            rollbacks=data.get("rollbacks", ()),
            batch_parts=int(data.get("batch_parts", 0)),
            run=data.get("run"),
        )

    def changes(self, run: TrainRun) -> list[Change]:
        """Returns what a run changes, as far as the record knows."""
        return [] if self.run is None else find_changes(self.run, describe(run))

    def check_compatible(
        self, run: TrainRun, model_dir: Any, *, allow_changes: bool = False
    ) -> None:
        """Checks that a run continues what the record describes.

        A record of an earlier version knows the seed and the streams alone. A stream that changed
        is then a warning.

        Args:
            run: The run.
            model_dir: The model directory, for messages.
            allow_changes: Whether the user has asked for what changes the result.

        Raises:
            UserError: It changes the result, and the user has not asked for it.
        """
        if self.run is not None:
            check_changes(self.changes(run), model_dir, allowed=allow_changes)
            return
        log.info(
            "the checkpoints of %s were written by an earlier version, which did not record the "
            "run: what differs from it is not known",
            model_dir,
        )
        if self.seed != run.seed and not allow_changes:
            raise UserError(
                f"{model_dir} was started with seed {self.seed}, not {run.seed}; set seed to "
                f"{self.seed}, or choose another model directory."
            )
        for stream, config in run.streams.items():
            saved = self.streams.get(stream, {})
            # JSON has no tuples.
            current = json.loads(json.dumps(dataclasses.asdict(config)))
            if any(saved.get(name) != current[name] for name in _ORDER_OF_EXAMPLES):
                log.warning(
                    "the stream %r changed since the checkpoint: its examples continue at another "
                    "position",
                    stream,
                )


def _callbacks_before(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the states of callbacks from a record with a key for each of their values."""
    controller = data.get("steering") or {}
    return {
        "metric_logger": {"window": data.get("window")},
        "non_finite_guard": {
            "skipped_steps": data.get("skipped_steps", 0),
            "consecutive": data.get("skipped_in_a_row", 0),
        },
        "curriculum": {"opened": controller.get("opened", {})},
        "loss_balancer": {
            "weights": controller.get("weights", {}),
            "first_losses": controller.get("first_losses", {}),
        },
    }
