"""`maestro transcribe`: audio files to text, in their own language or translated."""

from __future__ import annotations

import argparse
import dataclasses
import json

from maestro_jax.cli import environment, options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a model directory")
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="wav, flac, ogg or mp3, at any sampling rate"
    )
    parser.add_argument(
        "--target_language",
        metavar="CODE",
        help="translate into it, with a model trained for that: en",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    environment.prepare_process()
    from maestro_jax.cli import gin_config
    from maestro_jax.data.audio import read_audio

    # Every file is read before the model is: a misspelt path fails at once.
    audio = {file: read_audio(file) for file in arguments.files}
    train_run = gin_config.load_run(arguments.checkpoint)
    environment.enable_compilation_cache()
    from maestro_jax.evaluation.transcriber import Transcriber

    transcriber = Transcriber.from_checkpoint(arguments.checkpoint, train_run)
    records = []
    for file, samples in audio.items():
        (transcript,) = transcriber.transcribe([samples], target_language=arguments.target_language)
        if arguments.json:
            records.append({"file": file, **dataclasses.asdict(transcript)})
        else:
            prefix = f"{file}: " if len(audio) > 1 else ""
            print(f"{prefix}{transcript.text}", flush=True)
    if arguments.json:
        print(json.dumps(records, indent=2, ensure_ascii=False))
