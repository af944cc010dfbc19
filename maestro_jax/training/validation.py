"""Validation while training: losses and scores of a fixed sample of held-out examples.

The sample is drawn once, with a seed of its own, so that the numbers of all steps and of all runs
on the same data compare. It is decoded greedily with the averaged parameters; `maestro eval`
scores whole splits, with a beam and confidence intervals.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from maestro_jax.errors import UserError
from maestro_jax.scoring.metrics import (
    Kind,
    Metric,
    compute_statistics,
    metrics_of_kind,
    primary_metric,
)
from maestro_jax.text.languages import LanguageTable
from maestro_jax.text.normalizers import normalize
from maestro_jax.training.batch_feed import Sample, fixed_sample
from maestro_jax.training.callbacks import Callback, StepInfo
from maestro_jax.training.mesh_decoding import jitted_decoding
from maestro_jax.training.metrics import MetricWindow
from maestro_jax.training.partitioning import replicated

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer

log = logging.getLogger(__name__)

_KINDS: Mapping[str, Kind] = {"paired": "asr", "st": "st"}
"""Kind of task of each stream that is validated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Configures the validation of a run.

    Attributes:
        every: Number of steps between two validations; there is also one after the last step. 0 for
            none at all.
        examples: Number of examples of each stream (``paired``, ``st``), rounded up to whole
            batches; fewer if the split has fewer.
        split: Split of the streams' mixtures. A stream whose mixture lacks it is not validated.
        scores: Whether to decode the examples and to score the texts; False for losses alone.
    """

    every: int = 0
    examples: int = 256
    split: str = "validation"
    scores: bool = True

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, least in (("every", 0), ("examples", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"ValidationConfig.{name} is {value!r}; it must be a whole number of {least} "
                    "or more."
                )

    def due(self, step: int, steps: int) -> bool:
        """Returns whether to validate after a step of a run of `steps` steps."""
        return bool(self.every) and (step % self.every == 0 or step == steps)


class Validation(Callback):
    """Computes losses and scores of a fixed sample; the first score chooses the best checkpoint.

    Args:
        config: When to do so, and on what.
        samples: Sample of each stream; None to draw them from the run's mixtures.

    Attributes:
        primary_metric: Name of the metric that matters most, such as ``validation/wer``; None
            without a sample.
    """

    def __init__(
        self, config: ValidationConfig, samples: Mapping[str, Sample] | None = None
    ) -> None:
        self._config = config
        self._samples: Mapping[str, Sample] = samples or {}
        self._losses: dict[str, Callable[..., Any]] = {}
        self._decode: dict[str, Callable[..., Any]] = {}
        self.primary_metric: str | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Draws the sample."""
        run, config = trainer.run, self._config
        if not config.every:
            return
        streams = [stream for stream in _KINDS if stream in run.used_streams]
        if not self._samples and trainer.loads_data:
            drawn = {
                stream: fixed_sample(
                    run,
                    trainer.mesh,
                    trainer.model_dir,
                    trainer.data_dir,
                    stream=stream,
                    split=config.split,
                    examples=config.examples,
                )
                for stream in streams
            }
            self._samples = {name: sample for name, sample in drawn.items() if sample is not None}
        for stream, sample in self._samples.items():
            self._losses[stream] = self._jit_losses(trainer, stream)
            decoder = _decoder(trainer) if config.scores and sample.vocabulary else None
            if decoder is not None:
                self._decode[stream] = jitted_decoding(run, decoder=decoder)
        if self._samples:
            self.primary_metric = self._primary_metric()
            rows = {name: _rows(sample.batches) for name, sample in self._samples.items()}
            log.info(
                "validation every %d steps, rows per stream and process: %s", config.every, rows
            )

    def on_step(self, trainer: Trainer, info: StepInfo) -> None:
        """Validates, if it is time."""
        if not self._samples or not self._config.due(info.step, trainer.run.steps):
            return
        values: dict[str, float] = {}
        with trainer.paused():
            began = time.monotonic()
            for stream, sample in self._samples.items():
                for name, value in self._measure(trainer, stream, sample):
                    values[f"validation/{self._named(stream, name)}"] = value
            seconds = time.monotonic() - began
        trainer.log_metrics({**values, "validation_seconds": seconds})
        text = "  ".join(f"{n.removeprefix('validation/')} {v:.4g}" for n, v in values.items())
        log.info("validation of step %d: %s  (%.1f s)", info.step, text, seconds)

    def _named(self, stream: str, name: str) -> str:
        """Puts the stream before the name of a metric, unless there is only one."""
        return name if len(self._samples) == 1 else f"{stream}/{name}"

    def _primary_metric(self) -> str:
        """Returns the error rate or BLEU of the first stream that is scored, else its loss."""
        stream = next(iter(self._decode), next(iter(self._samples)))
        name = "loss"
        if stream in self._decode:
            # The language decides between words and characters, and matters to recognition alone.
            ids = self._samples[stream].batches[0]["language"]
            name = primary_metric(_KINDS[stream], self._samples[stream].languages.code(int(ids[0])))
        return f"validation/{self._named(stream, name)}"

    def _jit_losses(self, trainer: Trainer, stream: str) -> Callable[..., Any]:
        run, mesh = trainer.run, trainer.mesh

        def losses(state: Any, batch: Any, controls: Any) -> Any:
            average = state.ema_params
            # The parameters that are evaluated also make alignments and durations.
            loss, metrics = run.objective.loss(
                run.model,
                state.params if average is None else average,
                average,
                {stream: batch},
                # What is random without dropout (masks) is the same at every step.
                rng=jax.random.key(0),
                step=state.step,
                controls=controls,
                train=False,
            )
            lengths = [value for name, value in batch.items() if name.endswith("_length")]
            present = jnp.sum((sum(lengths) > 0).astype(jnp.float32))
            # Batches count by their examples: the last one may be padded.
            return {**metrics, "loss": (jnp.where(present > 0, loss, 0.0) * present, present)}

        return jax.jit(
            losses,
            in_shardings=(
                trainer.shardings,
                run.partitioning.batch_sharding(mesh),
                replicated(mesh),
            ),
            out_shardings=replicated(mesh),
        )

    def _measure(self, trainer: Trainer, stream: str, sample: Sample) -> list[tuple[str, float]]:
        """Returns the losses and scores of one stream."""
        run, mesh = trainer.run, trainer.mesh
        window = MetricWindow()
        references: list[Any] = []
        hypotheses: list[Any] = []
        for rows in sample.batches:
            batch = run.partitioning.shard_batch(mesh, dict(rows))
            window.add(self._losses[stream](trainer.state, batch, trainer.controls(trainer.step)))
            if stream in self._decode:
                decoded = self._decode[stream](
                    trainer.eval_params, **_decoder_inputs(run.model, stream, batch)
                )
                best = (decoded.tokens[:, 0], decoded.lengths[:, 0])  # [batch, labels], [batch]
                hypotheses.append(_to_host(best))
                references.append(_to_host(_references(stream, batch)))
        means, _ = window.compute()
        values = [(name, value) for name, value in means.items() if name.split("/")[0] == "loss"]
        if references and sample.vocabulary is not None:
            values += _scores(
                _KINDS[stream],
                _texts(references, sample.vocabulary),
                _texts(hypotheses, sample.vocabulary),
                _directions(references, sample.languages),
            )
        return values


def _decoder(trainer: Trainer) -> str | None:
    """Returns the decoder that the objective trains; None if the model has none."""
    decoders = trainer.run.objective.decoders
    has = getattr(trainer.run.model, "vocab_sizes", {})
    return next((name for name in decoders if name in has), None)


def _decoder_inputs(model: Any, stream: str, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
    names = ["audio", "audio_length"]
    if model.needs_language:
        names.append("language")
    if stream == "st":
        names.append("target_language")
    return {name: batch[name] for name in names}


def _references(stream: str, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
    """Returns tokens `[batch, labels]` and, `[batch]` each, lengths and ids of the languages."""
    text = "text" if stream == "paired" else "translation"
    target = batch["target_language" if stream == "st" else "language"]
    return batch[text], batch[f"{text}_length"], batch["language"], target


def _to_host(arrays: Any) -> Any:
    """Copies global arrays to the host, whole on every process."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(arrays, tiled=True)
    return jax.device_get(arrays)


def _texts(batches: Sequence[Sequence[np.ndarray]], vocabulary: Any) -> list[str]:
    """Decodes tokens `[batch, labels]` of lengths `[batch]`, the first arrays of each batch."""
    return [
        vocabulary.decode(row[:length].tolist())
        for tokens, lengths, *_ in batches
        for row, length in zip(tokens, lengths, strict=True)
    ]


def _directions(
    batches: Sequence[Sequence[np.ndarray]], languages: LanguageTable
) -> list[tuple[str, str] | None]:
    """Returns the source and target language of each row; None for rows without an example."""
    return [
        (languages.code(int(source)), languages.code(int(target))) if length else None
        for _, lengths, sources, targets in batches
        for length, source, target in zip(lengths, sources, targets, strict=True)
    ]


def _rows(batches: Sequence[Mapping[str, np.ndarray]]) -> int:
    return sum(len(next(iter(batch.values()))) for batch in batches)


def _scores(
    kind: Kind,
    references: Sequence[str],
    hypotheses: Sequence[str],
    directions: Sequence[tuple[str, str] | None],
) -> list[tuple[str, float]]:
    """Scores texts by all metrics of a kind of task, over all languages and language by language.

    Args:
        kind: Kind of task.
        references: Reference texts, [utterances].
        hypotheses: Decoded texts, [utterances].
        directions: Source and target language of each utterance; None for what is not scored.

    Returns:
        Names and values: ``<metric>`` over all utterances and, of the primary metric,
        ``<metric>/<direction>`` if there are several.
    """
    rows: dict[tuple[str, str], list[int]] = {}
    for index, direction in enumerate(directions):
        if direction is not None:
            rows.setdefault(direction, []).append(index)
    values: list[tuple[str, float]] = []
    for metric in metrics_of_kind(kind):
        sums: list[np.ndarray] = []
        for (source, target), indices in sorted(rows.items()):
            prepare = _preparation(metric, kind, source)
            statistics = compute_statistics(
                metric,
                [prepare(references[index]) for index in indices],
                [prepare(hypotheses[index]) for index in indices],
                target,
            )
            sums.append(statistics.sum(axis=0))
            if len(rows) > 1 and metric.name == primary_metric(kind, target):
                name = source if kind == "asr" else f"{source}-{target}"
                values.append((f"{metric.name}/{name}", float(metric.score(sums[-1]))))
        if sums:
            values.append((metric.name, float(metric.score(np.sum(sums, axis=0)))))
    return values


def _preparation(metric: Metric, kind: Kind, language: str) -> Callable[[str], str]:
    """Returns what is done to texts before they are compared, as in `maestro eval`."""
    if kind == "asr" and metric.normalized:
        return functools.partial(normalize, language=language)
    return functools.partial(unicodedata.normalize, "NFC")
