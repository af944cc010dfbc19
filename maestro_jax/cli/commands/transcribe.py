"""`maestro transcribe`: audio files to text, in their own language or translated."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from maestro_jax.cli import environment, options, search_options
from maestro_jax.errors import UserError

if TYPE_CHECKING:
    from maestro_jax.evaluation.transcriber import Transcript


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a model directory, or one checkpoint in it"
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="wav, flac, ogg or mp3, at any sampling rate"
    )
    parser.add_argument(
        "--language",
        metavar="CODE",
        help="language that is spoken, for models that were built to be told it",
    )
    parser.add_argument(
        "--target_language",
        metavar="CODE",
        help="translate into it, with a model trained for that; such a model's default is en",
    )
    search_options.add_search(parser)
    parser.add_argument(
        "--nbest",
        type=options.positive,
        default=1,
        metavar="N",
        help="print so many hypotheses of a beam with their scores in nats; JSON has them all",
    )
    parser.add_argument(
        "--timestamps",
        action="store_true",
        help="print when each word was heard, in seconds, and its score in nats; JSON has them",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    if arguments.nbest > (arguments.beam_size or 1):
        raise UserError(
            f"--nbest {arguments.nbest} needs a beam of as many: --beam_size {arguments.nbest}"
        )
    environment.prepare_process()
    from maestro_jax.cli import gin_config
    from maestro_jax.data.audio import read_audio
    from maestro_jax.training.checkpoints import find_checkpoint

    # Every file is read before the model is: a misspelt path fails at once.
    audio = [read_audio(file) for file in arguments.files]
    model_dir = find_checkpoint(arguments.checkpoint).parent.parent
    train_run = gin_config.load_run(model_dir)
    environment.enable_compilation_cache()
    search = search_options.search_config(arguments)
    from maestro_jax.evaluation.transcriber import Transcriber

    transcriber = Transcriber.from_checkpoint(arguments.checkpoint, train_run, search=search)
    if arguments.timestamps and transcriber.decoder == "attention":
        raise UserError(
            "an attention decoder has no alignment, so there are no --timestamps; leave them out, "
            "or decode with a transducer or CTC."
        )
    records = []
    for file, samples in zip(arguments.files, audio, strict=True):
        transcript = transcriber.transcribe(
            [samples], target_language=arguments.target_language, language=arguments.language
        )[0]
        if arguments.json:
            records.append({"file": file, **dataclasses.asdict(transcript)})
        elif len(audio) > 1:
            print(f"{file}: {transcript.text}", flush=True)
        else:
            print(transcript.text, flush=True)
        if not arguments.json:
            _print_details(transcript, arguments)
    if arguments.json:
        print(json.dumps(records, indent=2, ensure_ascii=False))


def _print_details(transcript: Transcript, arguments: argparse.Namespace) -> None:
    """What was asked for beside the text, indented below it."""
    if arguments.timestamps:
        for word in transcript.words:
            print(f"  {word.start:8.2f}  {word.score:8.2f}  {word.text}")
    if arguments.nbest > 1:
        for number, alternatives in enumerate(transcript.alternatives, start=1):
            if transcript.segments > 1:
                print(f"  segment {number}")
            for one in alternatives[: arguments.nbest]:
                print(f"  {one.fused_score:8.2f}  {one.text}")
