"""Diagnostics of a run: what tells whether pretraining is healthy, at step 0, every so often, and
at the end.

A probe looks at held-out pairs (`objectives.probe`), always the same ones; gradient norms are those
of the current batch. Scalars join the metrics; arrays go to ``diagnostics/<step>.npz``, of which
reports are made. Nothing here changes what is trained.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from maestro_jax.errors import UserError
from maestro_jax.objectives.probe import Probe
from maestro_jax.training.partitioning import replicated

log = logging.getLogger(__name__)

DIRECTORY = "diagnostics"
RUN_FILE = "run.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiagnosticsConfig:
    """When to look at a run, and at what.

    Attributes:
        every: Steps between two looks; there is also one before the first step and one after the
            last. 0: none at all.
        gradients_every: Steps between two measurements of the gradient of each loss term, each of
            which costs a backward pass a term; a multiple of `every`. There is one after the last
            step, too, but none before the first. None: as often as `every`; 0: none.
        examples: Held-out pairs to look at; rounded up to what the devices can share.
        mixture: Where they come from; None: the mixture of the run's paired stream.
        split: Of that mixture.
        histograms: Whether TensorBoard gets histograms.
    """

    every: int = 0
    gradients_every: int | None = None
    examples: int = 32
    mixture: str | None = None
    split: str = "validation"
    histograms: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
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
        """Whether to look after so many steps of a run's steps."""
        return bool(self.every) and (step % self.every == 0 or step == steps)

    def gradients_due(self, step: int, steps: int) -> bool:
        """Whether to measure gradients after so many steps of a run's steps."""
        every = self.every if self.gradients_every is None else self.gradients_every
        return bool(every) and step > 0 and (step % every == 0 or step == steps)


class Diagnostics:
    """Looks at the held-out pairs of a run.

    Args:
        run: The run.
        mesh: Its devices.
        directory: The model directory.
        params_shardings: Where parameters lie.
        held_out: A paired stream, the same on every process; None: there is nothing to probe.

    Attributes:
        samples: Of the last look, by name, those of which TensorBoard may make a histogram.
    """

    def __init__(
        self,
        run: Any,
        mesh: Mesh,
        directory: epath.Path,
        params_shardings: Any,
        held_out: Mapping[str, np.ndarray] | None,
    ) -> None:
        """Move the held-out pairs to the devices."""
        self.samples: dict[str, np.ndarray] = {}
        self._run = run
        self._directory = directory / DIRECTORY
        self._held_out = held_out
        self._probe: Any = None
        if held_out is None:
            return
        # The utterance of median length shows most: neither a word nor a paragraph.
        lengths = held_out["audio_length"]
        heard = np.flatnonzero(lengths)
        by_length = heard[np.argsort(lengths[heard], kind="stable")]
        self._row = int(by_length[len(by_length) // 2]) if len(heard) else 0
        index, parts = run.partitioning.data_shard(mesh)
        mine = {name: np.array_split(array, parts)[index] for name, array in held_out.items()}
        self._batch = run.partitioning.shard_batch(mesh, mine)
        self._probe = jax.jit(
            lambda params, batch: run.objective.probe(run.model, params, batch, self._row),
            in_shardings=(params_shardings, run.partitioning.batch_sharding(mesh)),
            out_shardings=replicated(mesh),
        )

    def begin(self, start: int, description: Mapping[str, Any]) -> None:
        """Forget what an earlier process saw after the step from which training continues.

        Only process 0 may call it.

        Args:
            start: That step.
            description: What a reader of the numbers should know of the run.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for path in self._directory.glob("*.npz"):
            if path.stem.isdecimal() and int(path.stem) > start:
                path.unlink()
        (self._directory / RUN_FILE).write_text(json.dumps(dict(description), indent=2))

    def look(self, step: int, params: Any, norms: Mapping[str, float]) -> dict[str, float]:
        """Probe the held-out pairs.

        Every process must call it at the same steps; process 0 writes the arrays.

        Args:
            step: The updates done.
            params: The parameters to probe, on the mesh.
            norms: Of the gradients of the terms, as far as they were measured.

        Returns:
            Scalars by name.
        """
        began = time.monotonic()
        values = {f"grad_norm/{name}": float(norm) for name, norm in norms.items()}
        if self._probe is not None:
            values |= self._look(step, jax.device_get(self._probe(params, self._batch)))
        return {**values, "diagnostics_seconds": time.monotonic() - began}

    def _look(self, step: int, probe: Probe) -> dict[str, float]:
        """Write the arrays of a probe, and give its scalars."""
        arrays = self._arrays(probe)
        if jax.process_index() == 0:
            content = io.BytesIO()
            np.savez_compressed(content, **arrays)
            (self._directory / f"{step:08d}.npz").write_bytes(content.getvalue())
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
            values["probe/code_perplexity"] = float(np.mean([perplexity(book) for book in counts]))
            samples["probe/codes"] = np.repeat(np.arange(counts.shape[1]), counts.sum(axis=0))
        if self._run.diagnostics.histograms:
            self.samples = {name: array for name, array in samples.items() if array.size}
        return values

    def _arrays(self, probe: Probe) -> dict[str, Any]:
        """What is kept of a probe: nothing of it is padded."""
        assert self._held_out is not None
        row, model = self._row, self._run.model
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


def perplexity(counts: np.ndarray) -> float:
    """The exponential of the entropy of what was counted: how many codes are as good as in use."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-np.sum(shares * np.log(shares))))


def describe(run: Any, mesh: Mesh, parameters: int) -> dict[str, Any]:
    """What a reader of a run's numbers should know of it, for JSON.

    Args:
        run: The run.
        mesh: Its devices.
        parameters: How many there are.
    """
    model, config = run.model, run.diagnostics
    weights = getattr(run.objective, "weights", {})
    paired = run.streams.get("paired")
    return {
        "model": type(model).__name__,
        "parameters": parameters,
        "objective": type(run.objective).__name__,
        "weights": {
            name: weight if isinstance(weight, int | float) else str(weight)
            for name, weight in weights.items()
        },
        "streams": {name: dataclasses.asdict(run.streams[name]) for name in run.used_streams},
        "steps": run.steps,
        "seed": run.seed,
        "ema_decay": run.ema_decay,
        "mesh": dict(mesh.shape),
        "device": jax.devices()[0].device_kind,
        "frame_seconds": getattr(model, "frame_seconds", None),
        "mel_frame_seconds": _mel_frame_seconds(model),
        "held_out": {
            "mixture": config.mixture or (paired.mixture if paired else None),
            "split": config.split,
        },
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def _mel_frame_seconds(model: Any) -> float:
    frontend = getattr(model, "frontend", None)
    return 0.01 if frontend is None else frontend.hop / frontend.sample_rate
