"""What a checkpoint remembers of a run besides arrays."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maestro_jax.errors import UserError

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
    """

    step: int = 0
    seed: int = 0
    elapsed_seconds: float = 0.0
    streams: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    callbacks: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    vocabulary: Mapping[str, Any] | None = None
    rollbacks: Sequence[Mapping[str, Any]] = ()
    batch_parts: int = 0

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
        )

    def check_compatible(self, run: TrainRun, model_dir: Any) -> None:
        """Checks that a run can continue from the record with the batches that come next.

        A stream that changed is a warning: training can go on with other examples.

        Args:
            run: The run.
            model_dir: The model directory, for messages.

        Raises:
            UserError: The run has another seed.
        """
        if self.seed != run.seed:
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
