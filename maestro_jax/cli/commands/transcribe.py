"""`maestro transcribe`: audio files to text, in their own language or translated."""

from __future__ import annotations

import argparse
import dataclasses
import json

from maestro_jax.cli import environment, options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a model directory, or one checkpoint in it"
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="wav, flac, ogg or mp3, at any sampling rate"
    )
    parser.add_argument(
        "--target_language",
        metavar="CODE",
        help="translate into it, with a model trained for that; such a model's default is en",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    environment.prepare_process()
    from maestro_jax.cli import gin_config
    from maestro_jax.data.audio import read_audio
    from maestro_jax.training.checkpoints import find_checkpoint

    # Every file is read before the model is: a misspelt path fails at once.
    audio = [read_audio(file) for file in arguments.files]
    model_dir = find_checkpoint(arguments.checkpoint).parent.parent
    train_run = gin_config.load_run(model_dir)
    environment.enable_compilation_cache()
    from maestro_jax.evaluation.transcriber import Transcriber

    transcriber = Transcriber.from_checkpoint(arguments.checkpoint, train_run)
    records = []
    for file, samples in zip(arguments.files, audio, strict=True):
        transcript = transcriber.transcribe([samples], target_language=arguments.target_language)[0]
        if arguments.json:
            records.append({"file": file, **dataclasses.asdict(transcript)})
        elif len(audio) > 1:
            print(f"{file}: {transcript.text}", flush=True)
        else:
            print(transcript.text, flush=True)
    if arguments.json:
        print(json.dumps(records, indent=2, ensure_ascii=False))
