"""The configuration of a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax

from maestro_jax.batches import StreamConfig, batch_shapes, check_streams
from maestro_jax.errors import UserError, near_misses
from maestro_jax.field_types import check_fields
from maestro_jax.objectives.base import Objective
from maestro_jax.objectives.forward import audio_samples
from maestro_jax.training import parameter_groups
from maestro_jax.training.callbacks import Callback
from maestro_jax.training.diagnostics import DiagnosticsConfig
from maestro_jax.training.health import HealthConfig
from maestro_jax.training.left_out import LeftOut
from maestro_jax.training.optimizers import Optimizer
from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.state import TrainState, abstract_state
from maestro_jax.training.trackers import Tracker
from maestro_jax.training.validation import ValidationConfig
from maestro_jax.training.watchdog import WatchdogConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRun:
    """Configures a training run, complete but for the directories.

    Attributes:
        model: Linen module.
        objective: Losses to compute from each stream.
        optimizer: Configuration of the optimizer: learning rate, schedule and so on.
        streams: Configuration of each stream of a batch.
        languages: Codes of the languages that the run's ids begin with, in order; by default those
            of `maestro_jax.text.languages.LANGUAGES`. The languages of tasks need not be named.
        steps: Number of training steps.
        seed: Seed of the run; everything random is a function of the seed and the step.
        accumulate: Number of microbatches in which the batch of a step is processed, each with the
            same share of every stream. It divides all batch sizes. Memory for activations falls;
            loss and gradient stay those of the whole batch.
        partitioning: Device mesh, and rules for laying arrays out on it.
        elastic: Whether mesh and microbatches are fitted to the devices that there are, so that a
            run continues on fewer with the same batches and the same memory for each.
        log_every: Number of steps between two log points.
        checkpoint_every: Number of steps between two checkpoints.
        keep_checkpoints: Number of newest checkpoints to keep; the best one is kept besides.
        keep_checkpoint_every: Keep also checkpoints whose step is a multiple of it; None for no
            more.
        local_checkpoint_dir: Directory on a fast disk for checkpoints between those of the model
            directory; it may be lost with the machine. None for none.
        local_checkpoint_every: Number of steps between checkpoints there.
        max_checkpoint_failures: Number of failed attempts in a row to save a checkpoint that ends
            the run. The pauses between them grow from 10 seconds to 10 minutes.
        best_metric: Metric by which the best checkpoint is chosen, as ``validation/loss``; None for
            the first score of the validation: ``validation/wer`` or ``validation/bleu``.
        best_mode: Whether its smallest (``min``) or largest (``max``) value is the best; None for
            what its name tells.
        ema_decay: Decay of the moving average of the parameters; None to keep no average, so that
            alignments and durations come from the trained weights.
        init_from: Checkpoint whose parameters a new run begins with, as far as name and shape fit:
            a model directory for its newest checkpoint, ``MODEL_DIR/best`` for its best one.
        init_which: Whether to begin with the average (``ema``) or the last values (``params``) of
            its parameters.
        init_include: Regular expressions of whole parameter names in the checkpoint: only these
            are restored, as in ``("speech_encoder/.*", "shared_encoder/.*")``.
        init_exclude: Regular expressions of parameter names that are not restored although they may
            fit, as in ``("decoder/.*",)`` for another vocabulary of the same size.
        console_metrics: Metrics on the console, in order; None for the loss and its terms.
        tensorboard: Whether to write TensorBoard files.
        trackers: Further trackers of metrics (`trackers.Tracker`).
        callbacks: Further callbacks (`callbacks.Callback`).
        profile_steps: First and last step of a profile, which is written to ``profile/``.
        max_skipped_steps: Number of consecutive steps with a loss or gradient that is not finite,
            or with a loss spike, after which the run rolls back (`health`).
        health: What counts as a loss spike, and how the run rolls back.
        leave_out_batches: First and last number of each range of batches that the run leaves out;
            batch *n* is the one that step *n* would take otherwise.
        check_replicas_every: Number of steps between two comparisons of what devices hold replicas
            of (`replica_check`); 0 for none.
        diagnostics: Probes of held-out pairs that tell whether pretraining is healthy.
        validation: Losses and scores of held-out examples.
        watchdog: Limits after which a run that hangs is ended.
    """

    model: nn.Module
    objective: Objective
    optimizer: Optimizer
    streams: Mapping[str, StreamConfig]
    steps: int
    languages: tuple[str, ...] = ()
    seed: int = 0
    accumulate: int = 1
    partitioning: Partitioning = Partitioning()
    elastic: bool = False
    log_every: int = 20
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    keep_checkpoint_every: int | None = None
    local_checkpoint_dir: str | None = None
    local_checkpoint_every: int | None = None
    max_checkpoint_failures: int = 10
    best_metric: str | None = None
    best_mode: Literal["min", "max"] | None = None
    ema_decay: float | None = 0.9999
    init_from: str | None = None
    init_which: Literal["ema", "params"] = "ema"
    init_include: tuple[str, ...] = (".*",)
    init_exclude: tuple[str, ...] = ()
    console_metrics: tuple[str, ...] | None = None
    tensorboard: bool = True
    trackers: tuple[Tracker, ...] = ()
    callbacks: tuple[Callback, ...] = ()
    profile_steps: tuple[int, int] | None = None
    max_skipped_steps: int = 100
    health: HealthConfig = HealthConfig()
    leave_out_batches: tuple[tuple[int, int], ...] = ()
    check_replicas_every: int = 100
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()
    validation: ValidationConfig = ValidationConfig()
    watchdog: WatchdogConfig = WatchdogConfig()

    def __post_init__(self) -> None:
        """Checks what can be checked before any device is touched."""
        check_fields(self)
        for name in (
            "steps",
            "accumulate",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "keep_checkpoint_every",
            "local_checkpoint_every",
            "max_checkpoint_failures",
            "max_skipped_steps",
        ):
            value = getattr(self, name)
            if value is None and name in ("keep_checkpoint_every", "local_checkpoint_every"):
                continue
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is {value!r}; it must be a whole number of 1 or more.")
        if self.check_replicas_every < 0:
            raise UserError(
                f"check_replicas_every is {self.check_replicas_every}; it must be 0 or more."
            )
        if (self.local_checkpoint_dir is None) != (self.local_checkpoint_every is None):
            raise UserError(
                "local_checkpoint_dir and local_checkpoint_every belong together; set both or none."
            )
        if not 0 <= self.seed < 2**31:
            raise UserError(f"seed is {self.seed}; it must lie in 0 ... 2**31 - 1.")
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise UserError(
                f"ema_decay is {self.ema_decay}; it must be at least 0 and below 1, or None."
            )
        if self.init_which not in ("ema", "params"):
            raise UserError(
                f"init_which is {self.init_which!r}; choose 'ema' or 'params'."
                f"{near_misses(self.init_which, ('ema', 'params'))}"
            )
        if self.best_mode not in (None, "min", "max"):
            raise UserError(f"best_mode is {self.best_mode!r}; choose 'min' or 'max', or None.")
        for name, base in (("trackers", Tracker), ("callbacks", Callback)):
            # gin hands over lists.
            object.__setattr__(self, name, tuple(getattr(self, name)))
            for each in getattr(self, name):
                if not isinstance(each, base):
                    raise UserError(
                        f"TrainRun.{name} has {each!r}, which is no {base.__name__}; derive its "
                        f"class from maestro_jax.training.{name}.{base.__name__}, and write "
                        "@my_module.MyClass() with parentheses in gin."
                    )
        for name in ("init_include", "init_exclude"):
            for pattern in getattr(self, name):
                parameter_groups.check_pattern(pattern, f"of {name}")
        if self.profile_steps is not None:
            first, last = self.profile_steps
            if not 1 <= first <= last <= self.steps:
                raise UserError(
                    f"profile_steps is {tuple(self.profile_steps)}; give the first and the last "
                    f"step, within 1 ... {self.steps}."
                )
        # gin hands over lists.
        ranges = LeftOut(tuple(self.leave_out_batches)).ranges
        object.__setattr__(self, "leave_out_batches", ranges)
        check_streams(self.streams)
        samples = audio_samples(self.batch_shapes())
        object.__setattr__(self, "objective", self.objective.for_run(self.model, samples))
        self._check_accumulate()
        if not self.used_streams:
            raise UserError(
                f"The objective {type(self.objective).__name__} learns from "
                f"{', '.join(self.objective.streams)}, but the run has only the streams "
                f"{', '.join(self.streams)}; add one of the former to streams."
            )

    def _check_accumulate(self) -> None:
        for stream, sizes in self.batch_sizes.items():
            for size in sizes:
                if size % self.accumulate:
                    raise UserError(
                        f"The batch size {size} of the stream {stream!r} is not a multiple of "
                        f"accumulate = {self.accumulate}; set it to "
                        f"{-(-size // self.accumulate) * self.accumulate}, or change accumulate."
                    )

    @property
    def used_streams(self) -> tuple[str, ...]:
        """Returns the streams of the run that the objective can use."""
        return tuple(stream for stream in self.streams if stream in self.objective.streams)

    @property
    def batch_sizes(self) -> dict[str, tuple[int, ...]]:
        """Returns the global batch sizes of each stream, one per bucket."""
        return {
            stream: tuple(shape.batch_size for shape in config.shapes())
            for stream, config in self.streams.items()
        }

    def batch_shapes(self) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
        """Returns global batch shapes, ``{stream: {feature: shape}}``; the longest of buckets."""
        return batch_shapes(self.streams)

    def abstract_state(self) -> TrainState:
        """Computes shapes, dtypes and logical axes of the training state; nothing is allocated."""
        return abstract_state(
            self.model,
            self.objective,
            self.optimizer,
            self.batch_shapes(),
            ema=self.ema_decay is not None,
        )
