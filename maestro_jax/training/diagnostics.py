"""Diagnostics of a run: whether pretraining is healthy, at step 0, every N steps and at the end.

A probe of held-out pairs (`objectives.metrics`), always the same ones; gradient norms of the
current batch. Scalars join the metrics; arrays go to ``diagnostics/<step>.npz``, read by reports.
Nothing here changes what is trained.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from maestro_jax.errors import UserError
from maestro_jax.files import storage_failure, write_atomically
from maestro_jax.losses.contrastive import perplexity
from maestro_jax.objectives.metrics import Probe
from maestro_jax.training.batch_feed import held_out_pairs
from maestro_jax.training.callbacks import Callback, StepInfo
from maestro_jax.training.partitioning import replicated

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun
    from maestro_jax.training.trainer import Trainer

log = logging.getLogger(__name__)

DIRECTORY = "diagnostics"
RUN_FILE = "run.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiagnosticsConfig:
    """Configures the diagnostics of a run.

    Attributes:
        every: Number of steps between two probes; there is also one before the first step and one
            after the last. 0 for none at all.
        gradients_every: Number of steps between two measurements of the gradient of each loss term,
            each of which costs a backward pass per term; a multiple of `every`. There is also one
            after the last step, but none before the first. None for `every`; 0 for none.
        examples: Number of held-out pairs, rounded up to a multiple of the devices.
        mixture: Mixture of the held-out pairs; None for that of the run's paired stream.
        split: Split of that mixture.
        histograms: Whether trackers get histograms.
    """

    every: int = 0
    gradients_every: int | None = None
    examples: int = 32
    mixture: str | None = None
    split: str = "validation"
    histograms: bool = True

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, least in (("every", 0), ("examples", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"DiagnosticsConfig.{name} is {value!r}; it must be a whole number of {least} "
                    "or more."
                )
        gradients = self.gradients_every
        if gradients and (not self.every or gradients < 0 or gradients % self.every):
            raise UserError(
                f"DiagnosticsConfig.gradients_every is {gradients}; make it a multiple of every, "
                f"which is {self.every}, or 0 for no gradient norms."
            )

    def due(self, step: int, steps: int) -> bool:
        """Returns whether to probe after a step of a run of `steps` steps."""
        return bool(self.every) and (step % self.every == 0 or step == steps)

    def gradients_due(self, step: int, steps: int) -> bool:
        """Returns whether to measure gradients after a step of a run of `steps` steps."""
        every = self.every if self.gradients_every is None else self.gradients_every
        return bool(every) and step > 0 and (step % every == 0 or step == steps)


class Diagnostics(Callback):
    """Probes held-out pairs of a run, and measures gradients.

    Args:
        config: When to do so, and on what.
        held_out: A paired stream, the same on every process; None to load it.
    """

    def __init__(
        self, config: DiagnosticsConfig, held_out: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self._config = config
        self._held_out = held_out
        self._probe: Any = None

    def on_start(self, trainer: Trainer) -> None:
        """Moves the held-out pairs to the devices; probes them if training begins."""
        if not self._config.every:
            return
        self._directory = trainer.model_dir / DIRECTORY
        self._model = trainer.run.model
        if self._held_out is None and trainer.loads_data:
            self._held_out = held_out_pairs(
                trainer.run, trainer.mesh, trainer.model_dir, trainer.data_dir
            )
        if self._held_out is not None:
            self._prepare_probe(trainer, self._held_out)
        if jax.process_index() == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            # Steps after the one from which training continues will be done again.
            for path in self._directory.glob("*.npz"):
                if path.stem.isdecimal() and int(path.stem) > trainer.step:
                    path.unlink()
            description = json.dumps(trainer.metadata, indent=2)
            write_atomically(self._directory / RUN_FILE, description.encode())
        if trainer.step == 0:
            self._run(trainer, {})

    def on_step(self, trainer: Trainer, info: StepInfo) -> None:
        """Runs the diagnostics, if it is time."""
        steps = trainer.run.steps
        norms: Mapping[str, float] = {}
        seconds = 0.0
        if self._config.gradients_due(info.step, steps):
            began = time.monotonic()
            norms, _ = trainer.term_gradient_norms(info)
            seconds = time.monotonic() - began
        if self._config.due(info.step, steps):
            self._run(trainer, norms, seconds)

    def _prepare_probe(self, trainer: Trainer, held_out: Mapping[str, np.ndarray]) -> None:
        run, mesh = trainer.run, trainer.mesh
        # The utterance of median length shows most: neither a word nor a paragraph.
        lengths = held_out["audio_length"]
        present = np.flatnonzero(lengths)
        by_length = present[np.argsort(lengths[present], kind="stable")]
        self._row = int(by_length[len(by_length) // 2]) if len(present) else 0
        index, parts = run.partitioning.data_shard(mesh)
        local = {name: np.array_split(array, parts)[index] for name, array in held_out.items()}
        self._batch = run.partitioning.shard_batch(mesh, local)
        self._probe = jax.jit(
            lambda params, batch: run.objective.probe(run.model, params, batch, self._row),
            in_shardings=(trainer.shardings.params, run.partitioning.batch_sharding(mesh)),
            out_shardings=replicated(mesh),
        )

    def _run(self, trainer: Trainer, norms: Mapping[str, float], seconds: float = 0.0) -> None:
        """Probes the held-out pairs and logs scalars; process 0 writes the arrays.

        Args:
            trainer: The trainer.
            norms: Gradient norms of the terms, as far as they were measured.
            seconds: Seconds that measuring them took.
        """
        values = {f"grad_norm/{name}": float(norm) for name, norm in norms.items()}
        samples: dict[str, np.ndarray] = {}
        with trainer.paused():
            began = time.monotonic()
            if self._probe is not None:
                probe = jax.device_get(self._probe(trainer.eval_params, self._batch))
                scalars, samples = self._write(trainer.step, probe)
                values |= scalars
            seconds += time.monotonic() - began
        trainer.log_metrics({**values, "diagnostics_seconds": seconds})
        if self._config.histograms:
            for tracker in trainer.trackers:
                tracker.log_histograms(trainer.step, samples)
        log.info("diagnostics of step %d: %.1f s", trainer.step, seconds)

    def _write(self, step: int, probe: Probe) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Writes the arrays of a probe; returns its scalars, and samples for histograms."""
        arrays = self._arrays(probe)
        if jax.process_index() == 0:
            content = io.BytesIO()
            np.savez_compressed(content, **arrays)
            path = self._directory / f"{step:08d}.npz"
            try:
                write_atomically(path, content.getvalue())
            except Exception as error:
                # As the metrics: a figure of the report is not worth a run.
                if not isinstance(error, OSError) and storage_failure(error) is None:
                    raise
                log.warning("%s was not written: %s", path, error)
        values = {
            f"probe/{name}": float(total) / float(count)
            for name, (total, count) in probe.metrics.items()
            if count
        }
        samples = {
            "probe/durations_aligned": arrays["aligned"],
            "probe/durations_predicted": arrays["predicted"],
        }
        counts = probe.code_counts
        if counts.sum():
            values["probe/codes_used"] = float(np.mean(np.sum(counts > 0, axis=1)))
            frequencies = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            values["probe/code_perplexity"] = float(np.mean(perplexity(frequencies)))
            samples["probe/codes"] = np.repeat(np.arange(counts.shape[1]), counts.sum(axis=0))
        return values, {name: array for name, array in samples.items() if array.size}

    def _arrays(self, probe: Probe) -> dict[str, Any]:
        """Returns the arrays of a probe, without padding."""
        assert self._held_out is not None
        row, model = self._row, self._model
        labels = int(self._held_out["text_length"][row])
        frames = int(probe.frame_lengths[row])
        mel_frames = math.ceil(frames * model.frame_seconds / _mel_frame_seconds(model))
        return {
            "aligned": probe.aligned[probe.label_mask],
            "predicted": probe.predicted[probe.label_mask],
            "code_counts": probe.code_counts,
            "tokens": self._held_out["text"][row, :labels],
            "emission_frames": probe.emission_frames[:labels],
            "posterior": probe.posterior[:frames, :labels].astype(np.float16),
            "similarity": probe.similarity[:frames, :frames].astype(np.float16),
            "top_similarity": probe.top_similarity[:frames, :frames].astype(np.float16),
            "mel": probe.mel[:mel_frames].astype(np.float16),
        }


def run_metadata(run: TrainRun, mesh: Mesh, parameters: int) -> dict[str, Any]:
    """Describes a run for readers of its metrics, as JSON values.

    Args:
        run: The run.
        mesh: The device mesh.
        parameters: Number of parameters.
    """
    model, config = run.model, run.diagnostics
    weights, units = run.objective.term_weights, run.objective.term_units
    paired = run.streams.get("paired")
    return {
        "model": type(model).__name__,
        "parameters": parameters,
        "objective": type(run.objective).__name__,
        "weights": {
            name: weight if isinstance(weight, int | float) else str(weight)
            for name, weight in weights.items()
        },
        "term_units": {name: units.get(name, "loss") for name in weights},
        "streams": {
            name: dataclasses.asdict(stream) | {"mixture": str(stream.mixture)}
            for name, stream in run.streams.items()
            if name in run.used_streams
        },
        "steps": run.steps,
        "seed": run.seed,
        "ema_decay": run.ema_decay,
        "mesh": dict(mesh.shape),
        "device": jax.devices()[0].device_kind,
        "frame_seconds": getattr(model, "frame_seconds", None),
        "mel_frame_seconds": _mel_frame_seconds(model),
        "held_out": {
            "mixture": config.mixture or (str(paired.mixture) if paired else None),
            "split": config.split,
        },
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def _mel_frame_seconds(model: Any) -> float:
    frontend = getattr(model, "frontend", None)
    return 0.01 if frontend is None else frontend.hop / frontend.sample_rate
