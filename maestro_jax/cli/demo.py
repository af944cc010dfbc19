"""The whole way, from nothing to text: corpus, pretraining, fine-tuning, evaluation, a transcript.

Every stage leaves its result in the output directory and is skipped, or continued where it stood,
when the demo is started again.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maestro_jax.cli import gin_config, run_record
from maestro_jax.evaluation.pictures import draw_curves, draw_inspection
from maestro_jax.evaluation.run_evaluation import Report, evaluate_run
from maestro_jax.evaluation.transcriber import Transcriber
from maestro_jax.training.loop import train
from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)

LOW_RESOURCE = ("sl",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the demo trains on, and for how long.

    Attributes:
        config: Which MiniVox.
        data_gin: A data file read after those of the runs; None for their own.
        bindings: Macros changed in every run that reads them.
        steps: Training steps by run, where they differ from its file's.
    """

    config: str = "small"
    data_gin: str | None = None
    bindings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)


def run_demo(
    output_dir: str | Path, data_dir: str | Path | None = None, *, recipe: Recipe | None = None
) -> None:
    """Build MiniVox, pretrain, fine-tune for recognition and translation, evaluate, transcribe.

    Args:
        output_dir: Models, tables and pictures go here.
        data_dir: The root of the prepared data; by default `data` in the output directory.
        recipe: Another corpus or other lengths than the demo's.
    """
    began = time.monotonic()
    recipe = recipe or Recipe()
    output = Path(output_dir).expanduser().absolute()
    data = Path(data_dir) if data_dir else output / "data"
    output.mkdir(parents=True, exist_ok=True)

    _announce(1, "speaking MiniVox: sentences, voices, rooms and noise")
    from maestro_jax.tasks import minivox

    minivox.prepare(recipe.config, data)

    _announce(2, "pretraining with MAESTRO on all five streams")
    pretrained = output / "pretrained"
    run = _train(recipe, "pretrain", pretrained, data)
    pictures = [draw_curves(pretrained)]
    pictures += draw_inspection(
        Transcriber.from_checkpoint(pretrained, run), pretrained, data_dir=data
    )

    _announce(3, "fine-tuning for speech recognition")
    recognizer = output / "recognition"
    asr_run = _train(recipe, "finetune_asr", recognizer, data, init_from=pretrained)
    pictures.append(draw_curves(recognizer))

    _announce(4, "fine-tuning for speech translation into English")
    translator = output / "translation"
    st_run = _train(recipe, "finetune_st", translator, data, init_from=recognizer)
    pictures.append(draw_curves(translator))

    _announce(5, "evaluating on speakers and sentences that were not trained on")
    asr = Transcriber.from_checkpoint(recognizer, asr_run)
    st = Transcriber.from_checkpoint(translator, st_run)
    recognition = _evaluate(asr_run, recognizer, data, asr)
    translation = _evaluate(st_run, translator, data, st)

    _announce(6, "transcribing one held-out file")
    file, reference, english = _held_out_file(st_run, output, data)
    from maestro_jax.data.audio import read_audio

    samples = read_audio(file)
    heard = asr.transcribe([samples])[0]
    translated = st.transcribe([samples])[0]

    print(f"\n{recognition.text()}\n{translation.text()}")
    print("Pictures:")
    for path in pictures:
        print(f"  {path}")
    print(f"\nFile:                  {file}")
    print(f"Reference:             {reference}")
    print(f"Hypothesis:            {heard.text}")
    print(f"Reference translation: {english}")
    print(f"Translation:           {translated.text}")
    print(f"\nDone in {(time.monotonic() - began) / 60:.1f} minutes. Try it yourself:")
    print(f"  maestro transcribe {recognizer} {file}")


def _announce(stage: int, what: str) -> None:
    print(f"\n[{stage}/6] {what}", flush=True)


def _train(
    recipe: Recipe, name: str, model_dir: Path, data: Path, *, init_from: Path | None = None
) -> TrainRun:
    """One training run with its record, continued if it was interrupted."""
    files = [f"runs/demo_{name}.gin"]
    if recipe.data_gin is not None:
        files.append(recipe.data_gin)
    macros = gin_config.macros(files)
    bindings = {macro: value for macro, value in recipe.bindings.items() if macro in macros}
    if name in recipe.steps:
        bindings["STEPS"] = str(recipe.steps[name])
    if init_from is not None:
        bindings["INIT_FROM"] = repr(str(init_from))
    run = gin_config.parse_and_build(files, bindings)
    texts = {
        "config.gin": gin_config.config_text(),
        "operative_config.gin": gin_config.operative_config_text(),
    }
    run_record.write(model_dir, texts, run_record.command_line())
    train(run, model_dir=model_dir, data_dir=data)
    return run


def _evaluate(run: TrainRun, model_dir: Path, data: Path, transcriber: Transcriber) -> Report:
    """Scores of one model on its test sets."""
    return evaluate_run(
        run,
        model_dir=model_dir,
        data_dir=data,
        low_resource=LOW_RESOURCE,
        transcriber=transcriber,
    )


def _held_out_file(run: TrainRun, output: Path, data: Path) -> tuple[Path, str, str]:
    """A test utterance as a wav file, its transcript and its English translation."""
    import soundfile

    from maestro_jax.data.loader import evaluation_batches

    stream = run.streams["st"]
    batches = evaluation_batches(stream.mixture, "test", 1, stream.audio_samples, data)
    features, metadata = next(iter(batches))
    path = output / "held_out.wav"
    samples = features["audio"][0, : int(features["audio_length"][0])]
    soundfile.write(path, np.asarray(samples, np.int16), 16_000)
    return path, metadata[0]["text"], metadata[0]["translation"]
