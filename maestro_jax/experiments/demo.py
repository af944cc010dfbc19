"""The whole workflow on MiniVox: corpus, pretraining, fine-tuning, evaluation, a transcript.

Every stage writes its result to the output directory. When the demo is started again, finished
stages are skipped and an interrupted one is continued.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np

from maestro_jax.evaluation.run_evaluation import RunScores, evaluate_run
from maestro_jax.experiments.stages import Announcer, Recipe, Stage
from maestro_jax.inference.transcriber import Transcriber
from maestro_jax.reports.html_report import draw_curves, draw_probe
from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)

LOW_RESOURCE = ("sl",)


RECIPE = Recipe(
    stages=(
        Stage(
            name="pretrain",
            file="runs/demo_pretrain.gin",
            directory="pretrained",
            doing="pretraining with MAESTRO on all five streams",
        ),
        Stage(
            name="finetune_asr",
            file="runs/demo_finetune_asr.gin",
            directory="recognition",
            doing="fine-tuning for speech recognition",
            init_from="pretrain",
        ),
        Stage(
            name="finetune_st",
            file="runs/demo_finetune_st.gin",
            directory="translation",
            doing="fine-tuning for speech translation into English",
            init_from="finetune_asr",
        ),
    ),
)
"""The stages of the demo."""


def run_demo(
    output_dir: str | Path, data_dir: str | Path | None = None, *, recipe: Recipe | None = None
) -> None:
    """Builds MiniVox, pretrains, fine-tunes for recognition and translation, and evaluates.

    Args:
        output_dir: Directory of models, tables and figures.
        data_dir: Root of the prepared data; by default `data` in the output directory.
        recipe: Another corpus or other lengths than those of the demo.
    """
    began = time.monotonic()
    recipe = recipe or RECIPE
    output = Path(output_dir).expanduser().absolute()
    data = Path(data_dir) if data_dir else output / "data"
    output.mkdir(parents=True, exist_ok=True)
    announce = Announcer(len(recipe.stages) + 3)

    announce("synthesising MiniVox: sentences, voices, rooms and noise")
    from maestro_jax.minivox import dataset

    dataset.prepare(recipe.config, data)

    runs: dict[str, TrainRun] = {}
    directories: dict[str, Path] = {}
    figures: list[Path] = []
    for stage in recipe.stages:
        announce(stage.doing)
        run, model_dir = recipe.train(stage.name, output, data)
        runs[stage.name], directories[stage.name] = run, model_dir
        figures.append(draw_curves(model_dir))
        if stage.name == "pretrain":
            figures += draw_probe(model_dir)

    announce("evaluating on speakers and sentences that were not trained on")
    asr_run, recognizer = runs["finetune_asr"], directories["finetune_asr"]
    st_run, translator = runs["finetune_st"], directories["finetune_st"]
    asr = Transcriber.from_checkpoint(recognizer, asr_run)
    st = Transcriber.from_checkpoint(translator, st_run)
    recognition = _evaluate(asr_run, recognizer, data, asr)
    translation = _evaluate(st_run, translator, data, st)

    announce("transcribing one held-out file")
    file, reference, english = _held_out_file(st_run, output, data)
    from maestro_jax.audio.reading import read_audio

    samples = read_audio(file)
    transcript = asr.transcribe([samples])[0]
    translated = st.transcribe([samples])[0]

    print(f"\n{recognition.text()}\n{translation.text()}")
    print("Figures:")
    for path in figures:
        print(f"  {path}")
    print(f"Report of pretraining: {directories['pretrain'] / 'report.html'}")
    print(f"\nFile:                  {file}")
    print(f"Reference:             {reference}")
    print(f"Hypothesis:            {transcript.text}")
    print(f"Reference translation: {english}")
    print(f"Translation:           {translated.text}")
    print(
        f"\nDone in {(time.monotonic() - began) / 60:.1f} minutes. To transcribe a file yourself:"
    )
    print(f"  maestro transcribe {recognizer} {file}")


def _evaluate(run: TrainRun, model_dir: Path, data: Path, transcriber: Transcriber) -> RunScores:
    """Scores one model on its test sets."""
    return evaluate_run(
        run,
        model_dir=model_dir,
        data_dir=data,
        low_resource=LOW_RESOURCE,
        transcriber=transcriber,
    )


def _held_out_file(run: TrainRun, output: Path, data: Path) -> tuple[Path, str, str]:
    """Writes a test utterance as a wav file; returns path, transcript and English translation."""
    import soundfile

    from maestro_jax.data.evaluation_batches import evaluation_batches

    stream = run.streams["st"]
    batches = evaluation_batches(stream.mixture, "test", 1, stream.audio_samples, data)
    features, metadata = next(iter(batches))
    path = output / "held_out.wav"
    samples = features["audio"][0, : int(features["audio_length"][0])]
    soundfile.write(path, np.asarray(samples, np.int16), 16_000)
    return path, metadata[0]["text"], metadata[0]["translation"]
