"""The whole workflow on MiniVox: corpus, pretraining, fine-tuning, evaluation, a transcript.

Both fine-tuned models are evaluated by greedy search, and by beam search with an n-gram language
model of the texts that pretraining reads.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from maestro_jax.evaluation.run_evaluation import evaluate_run
from maestro_jax.experiments.stages import Experiment, Recipe, Stage
from maestro_jax.files import write_atomically
from maestro_jax.inference.search_config import SearchConfig
from maestro_jax.inference.transcriber import Transcriber
from maestro_jax.reports.html_report import draw_curves, draw_probe, write_report
from maestro_jax.training.run import TrainRun

LOW_RESOURCE = ("sl",)

LM_SEARCHES = {
    "finetune_asr": SearchConfig(beam_size=4, lm_order=8, lm_weight=0.5),
    # Translations come out too short without the bonus.
    "finetune_st": SearchConfig(beam_size=4, lm_order=8, lm_weight=0.3, length_bonus=0.5),
}
"""Search with a language model by stage, chosen on the validation set; the run gives its text."""

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
    lm_texts = _write_lm_texts(runs["pretrain"], experiment.output, experiment.data)
    tables: list[str] = []
    transcribers: dict[str, Transcriber] = {}
    for name, settings in LM_SEARCHES.items():
        search = dataclasses.replace(settings, lm_text=lm_texts[name])
        transcribers[name] = Transcriber.from_checkpoint(
            directories[name], runs[name], search=search
        )
        with_lm = f"Beam search ({search.beam_size}) with a language model of the training texts"
        for title, transcriber, used in (
            ("Greedy search", None, None),
            (with_lm, transcribers[name], search),
        ):
            scores = evaluate_run(
                runs[name],
                model_dir=directories[name],
                data_dir=experiment.data,
                low_resource=LOW_RESOURCE,
                transcriber=transcriber,
                search=used,
            )
            tables.append(f"{title}\n{scores.text()}")
        # The report that training wrote at its end has no scores yet.
        write_report(directories[name])

    experiment.announce("transcribing one held-out file")
    file, reference, english = _held_out_file(
        runs["finetune_st"], experiment.output, experiment.data
    )
    from maestro_jax.audio.reading import read_audio

    samples = read_audio(file)
    transcript = transcribers["finetune_asr"].transcribe([samples])[0]
    translated = transcribers["finetune_st"].transcribe([samples])[0]

    print()
    print("\n".join(tables))
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
    settings = LM_SEARCHES["finetune_asr"]
    print(
        f"  maestro transcribe {directories['finetune_asr']} {file} "
        f"--beam_size {settings.beam_size} --lm_text {lm_texts['finetune_asr']} "
        f"--lm_order {settings.lm_order} --lm_weight {settings.lm_weight}"
    )


def _write_lm_texts(pretraining: TrainRun, output: Path, data: Path) -> dict[str, Path]:
    """Writes the training texts that each fine-tuned model may write; returns files by stage."""
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.vocabulary_sampling import text_sources

    directory = output / "texts"
    directory.mkdir(exist_ok=True)
    files = {
        "finetune_asr": directory / "transcripts.txt",
        "finetune_st": directory / "english.txt",
    }
    names = [s.mixture for name, s in pretraining.streams.items() if name != "speech"]
    with data_scope(data):
        sources = text_sources(names)
        chosen = {
            "finetune_asr": [source for source in sources if source.field == "text"],
            "finetune_st": [source for source in sources if source.language == "en"],
        }
        for stage, path in files.items():
            texts = (text for source in chosen[stage] for text in source.read(source.sentences))
            write_atomically(path, "".join(f"{text}\n" for text in texts).encode())
    return files


def _held_out_file(run: TrainRun, output: Path, data: Path) -> tuple[Path, str, str]:
    """Writes a test utterance as a wav file; returns path, transcript and English translation."""
    import soundfile

    from maestro_jax.data.evaluation_examples import evaluation_examples

    example = next(evaluation_examples(run.streams["st"].mixture, "test", data))
    path = output / "held_out.wav"
    soundfile.write(path, np.asarray(example.features["audio"], np.int16), 16_000)
    return path, example.strings["text"], example.strings["translation"]
