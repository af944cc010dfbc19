"""The whole workflow on MiniVox: corpus, pretraining, fine-tuning, evaluation, a transcript."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maestro_jax.evaluation.run_evaluation import evaluate_run
from maestro_jax.experiments.stages import Experiment, Recipe, Stage
from maestro_jax.inference.transcriber import Transcriber
from maestro_jax.reports.html_report import draw_curves, draw_probe
from maestro_jax.training.run import TrainRun

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
    experiment = Experiment(recipe or RECIPE, output_dir, data_dir, further_parts=2)
    experiment.train()
    runs, directories = experiment.runs, experiment.directories
    figures = [*map(draw_curves, directories.values()), *draw_probe(directories["pretrain"])]

    experiment.announce("evaluating on speakers and sentences that were not trained on")
    asr = Transcriber.from_checkpoint(directories["finetune_asr"], runs["finetune_asr"])
    st = Transcriber.from_checkpoint(directories["finetune_st"], runs["finetune_st"])
    recognition, translation = (
        evaluate_run(
            runs[name],
            model_dir=directories[name],
            data_dir=experiment.data,
            low_resource=LOW_RESOURCE,
            transcriber=transcriber,
        )
        for name, transcriber in (("finetune_asr", asr), ("finetune_st", st))
    )

    experiment.announce("transcribing one held-out file")
    file, reference, english = _held_out_file(
        runs["finetune_st"], experiment.output, experiment.data
    )
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
    experiment.finish()
    print("To transcribe a file yourself:")
    print(f"  maestro transcribe {directories['finetune_asr']} {file}")


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
