"""Writes the gin files of a quickstart's stages, which `maestro train` runs as they are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maestro_jax.experiments.quickstart.rules import ALIGNED, AUGMENTED, Recipe, ema_decay

if TYPE_CHECKING:
    from maestro_jax.data.bucketing import FoundBucket

SAMPLE_RATE = 16_000

PRETRAINING_ALONE = (
    "(text_encoder|duration_model|resampler|refiner|quantizer)/.*"
    "|shared_encoder/code_head/.*|speech_encoder/contrastive_projection/.*"
)
"""The parameters that no loss of fine-tuning reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """The shapes of the batches of one stream.

    Attributes:
        tasks: Its tasks.
        shapes: Shapes of its batches, the longest last.
        characters_per_token: See `maestro_jax.batches.Buckets`.
    """

    tasks: tuple[str, ...]
    shapes: tuple[FoundBucket, ...]
    characters_per_token: float = 1.0

    @property
    def mixture(self) -> str:
        """Returns the name of its task, or of the mixture of several."""
        return self.tasks[0] if len(self.tasks) == 1 else "quickstart_mixture"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What the gin file of a stage is made of, besides the recipe.

    Attributes:
        name: Name of the stage: `pretrain`, `recognise` or `translate`.
        streams: Its streams.
        steps: Number of steps.
        planned: Number of steps before it was corrected, which warm-up and averages keep to, so
            that the program stays the same; 0 if it never was.
        late_start: First step of text and translation in pretraining; 0 for all from the start.
        init_from: Model directory that it begins from; None for none.
        vocab_size: Number of pieces of the vocabulary.
        command: The command that runs the file.
        has_validation: Whether there is a validation set.
    """

    name: str
    streams: Mapping[str, StreamPlan]
    steps: int
    planned: int = 0
    late_start: int = 0
    init_from: Path | None = None
    vocab_size: int
    command: str
    has_validation: bool = True


_TITLES = {
    "pretrain": "Pretraining with MAESTRO on all speech and text.",
    "recognise": "Fine-tuning for speech recognition.",
    "translate": "Fine-tuning for speech translation.",
}
_OBJECTIVES = {
    "pretrain": "objectives/maestro.gin",
    "recognise": "objectives/speech_recognition_ctc.gin",
    "translate": "objectives/speech_translation.gin",
}


def gin_text(stage: StagePlan, recipe: Recipe) -> str:
    """Returns the gin file of a stage."""
    tuned = stage.name != "pretrain"
    modules = {"maestro_jax": ["augmentation_config", "batches"]}
    modules["maestro_jax.training"] = ["optimizers"] + ["parameter_groups"] * tuned
    if stage.name == "pretrain":
        modules["maestro_jax.objectives"] = ["maestro as maestro_objective"]
    elif stage.name == "recognise":
        modules["maestro_jax.objectives"] = ["speech_recognition"]
        if recipe.hybrid:
            modules["maestro_jax.objectives"].append("curriculum")
    imports = [f"from {name} import {one}" for name, each in modules.items() for one in each]
    lines = [
        f"# {_TITLES[stage.name]}",
        "#",
        "# Written by `maestro quickstart`, which keeps a file that has been edited. It is run by",
        f"# {stage.command}",
        "",
        "from __gin__ import dynamic_registration",
        "",
        *imports,
        "",
        f'include "runs/{"finetune" if tuned else "pretrain"}.gin"',
        f'include "{recipe.size.file}"',
        f'include "{_OBJECTIVES[stage.name]}"',
        "",
        *_macros(stage, recipe),
        "",
        *_streams(stage, recipe),
        *_settings(stage, recipe),
    ]
    return "\n".join(lines) + "\n"


def _macros(stage: StagePlan, recipe: Recipe) -> list[str]:
    steps = stage.steps
    planned = stage.planned or steps
    share = 20 if stage.name == "pretrain" else 10
    warmup = min(warmup_steps(planned, share), max(steps // 2, 1))
    learning_rate = recipe.size.learning_rate
    if stage.name == "pretrain":
        # It stays at its peak.
        learning_rate = round(learning_rate * 2 / 3, 6)
    macros: dict[str, object] = {
        "STEPS": steps,
        "VOCAB_SIZE": stage.vocab_size,
        **recipe.size.macros,
        "DROPOUT": recipe.dropout,
        "LEARNING_RATE": learning_rate,
        "WARMUP_STEPS": warmup,
        "EMA_DECAY": ema_decay(planned),
        "LOG_EVERY": min(max(steps // 40, 10), 100),
        "CHECKPOINT_EVERY": min(max(steps // 10, 20), 500),
        "DIAGNOSTICS_EVERY": 0,
    }
    if recipe.source_languages:
        macros["SOURCE_LANGUAGES"] = "%LANGUAGES"
    if stage.name == "pretrain":
        if stage.late_start:
            macros |= {
                "TEXT_START_STEP": stage.late_start,
                "TRANSLATION_START_STEP": stage.late_start,
            }
    else:
        source = None if stage.init_from is None else str(stage.init_from)
        every = max(steps // 6, 20) if stage.has_validation else 0
        macros |= {
            "INIT_FROM": repr(source),
            "DECODER_LEARNING_RATE": "%LEARNING_RATE",
            "DECODER_WARMUP": "%WARMUP_STEPS",
            "EVAL_EVERY": every,
            "EVAL_EXAMPLES": 96,
        }
    if stage.name == "recognise":
        macros["TRANSDUCER_WEIGHT"] = "@curriculum.Schedule()" if recipe.hybrid else 0.0
    return [f"{name} = {value}" for name, value in macros.items()]


def warmup_steps(steps: int, share: int) -> int:
    """Returns the number of steps in which the learning rate rises: one in `share` of them."""
    return min(max(steps // share, min(steps // 4, 40), 1), 1500)


def _streams(stage: StagePlan, recipe: Recipe) -> list[str]:
    names = ", ".join(f'"{name}": @{name}/batches.StreamConfig()' for name in stage.streams)
    lines = [f"STREAMS = {{{names}}}", ""]
    for name, stream in stage.streams.items():
        *shorter, longest = stream.shapes
        scope = f"{name}/batches.StreamConfig"
        if len(stream.tasks) > 1:
            lines += [
                f"{name}/batches.Mixture:",
                f'  name = "quickstart_all_{name}"',
                f"  tasks = {stream.tasks!r}",
                "",
            ]
        mixture = f'"{stream.tasks[0]}"' if len(stream.tasks) == 1 else f"@{name}/batches.Mixture()"
        lines += [f"{scope}:", f"  mixture = {mixture}", f"  batch_size = {longest.batch_size}"]
        lines += [f"  {field} = {value}" for field, value in _limits(name, longest).items()]
        if shorter:
            lines.append(f"  buckets = @{name}/batches.Buckets()")
        if "audio_samples" in _limits(name, longest) and len(recipe.speeds) > 1:
            lines.append("  augmentation = @augmentation_config.AudioAugmentation()")
        lines.append("")
        if shorter:
            columns = {"batch_sizes": tuple(one.batch_size for one in shorter)}
            for field in _limits(name, longest):
                columns[field] = tuple(_limits(name, one)[field] for one in shorter)
            lines += [
                f"{name}/batches.Buckets:",
                *(f"  {field} = {values}" for field, values in columns.items()),
            ]
            if stream.characters_per_token != 1:
                lines.append(f"  characters_per_token = {stream.characters_per_token:g}")
            lines.append("")
    if len(recipe.speeds) > 1:
        lines += [f"augmentation_config.AudioAugmentation.speeds = {recipe.speeds}", ""]
    return lines


def _limits(stream: str, shape: FoundBucket) -> dict[str, int]:
    """Returns the lengths of a shape by the fields of `StreamConfig`."""
    by_text = {"text_tokens": shape.limit}
    if stream in ("speech", "paired", "st"):
        by_text = {"audio_samples": shape.limit}
        if stream == "paired":
            by_text["text_tokens"] = shape.text_tokens
    if stream in ("st", "mt"):
        by_text["translation_tokens"] = shape.translation_tokens
    return by_text


def _settings(stage: StagePlan, recipe: Recipe) -> list[str]:
    if stage.name == "pretrain":
        return [
            "# The number of steps can change without another program.",
            'optimizers.AdamConfig.schedule_name = "constant"',
            "",
            "# Little speech: pairs teach most, and untranscribed speech is the smaller part.",
            "maestro_objective.MaestroPretraining:",
            "  contrastive_weight = 0.1",
            "  masked_prediction_weight = 0.1",
            "  augment_paired = False",
        ]
    unused = PRETRAINING_ALONE
    if stage.name == "recognise" and not recipe.hybrid:
        unused = f"{unused}|decoder/.*"
    lines = [
        "# What only pretraining trains takes no time here, and stays as it is.",
        "unused/parameter_groups.ParameterGroup:",
        '  name = "unused"',
        f"  patterns = {unused!r}",
        "  frozen = True",
        "",
        "optimizers.AdamConfig.groups = (",
        *(
            f"    @{group}/parameter_groups.ParameterGroup(),"
            for group in ("unused", "decoder", "encoder")
        ),
        ")",
    ]
    if stage.name == "translate":
        return lines
    planned = stage.planned or stage.steps
    aligned = round(ALIGNED * planned)
    lines += [
        "",
        f"speech_recognition.SpeechRecognition.augment_start_step = {round(AUGMENTED * planned)}",
    ]
    if recipe.hybrid:
        points = ((aligned, 0.0), (aligned + aligned // 2 + 1, 1.0))
        lines += [
            "# CTC alone, until the encoder is aligned.",
            f"curriculum.Schedule.points = {points}",
        ]
    return lines


def single_shape(
    *, seconds: float = 0.0, batch: int, tokens: int = 0, translation_tokens: int = 0
) -> FoundBucket:
    """Returns the only shape of a stream.

    Args:
        seconds: Length of its audio; 0 for a stream of text.
        batch: Number of examples.
        tokens: Length of its texts.
        translation_tokens: Length of its translations.
    """
    from maestro_jax.data.bucketing import FoundBucket

    limit = round(seconds * SAMPLE_RATE) if seconds else tokens
    return FoundBucket(
        limit=limit,
        text_tokens=tokens,
        translation_tokens=translation_tokens,
        batch_size=max(batch, 1),
        share=1.0,
        padding=1.0,
    )


def tokens_of(characters: int, per_token: float) -> int:
    """Returns the length of texts in a batch, a multiple of 8."""
    return 8 * math.ceil((characters / per_token + 2) / 8)


def audio_of(shapes: Sequence[FoundBucket]) -> float:
    """Returns the mean seconds of audio of a batch, padding included."""
    total = sum(shape.share for shape in shapes)
    return sum(
        shape.share * shape.batch_size * shape.limit / SAMPLE_RATE for shape in shapes
    ) / max(total, 1e-9)
