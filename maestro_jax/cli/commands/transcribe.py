"""`maestro transcribe`: transcribes or translates recordings."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from maestro_jax.cli.audio_inputs import AudioInput
    from maestro_jax.inference.timed_words import Transcript


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    options.add_checkpoint(parser)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="recording of any length and sampling rate, directory of recordings, or - for "
        "standard input",
    )
    parser.add_argument(
        "--language",
        metavar="CODE",
        help="language of the speech: told to models with a language input; of any model, "
        "transcripts have only tokens that the language writes",
    )
    parser.add_argument(
        "--target_language",
        metavar="CODE",
        help="language to translate into, for models trained for translation; default: en",
    )
    options.add_search(parser)
    options.add_untuned(parser)
    parser.add_argument(
        "--nbest",
        type=options.positive,
        default=1,
        metavar="N",
        help="print the best N hypotheses of the beam with their scores in nats; JSON has all",
    )
    parser.add_argument(
        "--timestamps",
        action="store_true",
        help="print the time of each word in seconds and its score in nats; JSON always has them",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    if arguments.nbest > (arguments.beam_size or 1):
        raise UserError(
            f"--nbest {arguments.nbest} needs a beam of that size: --beam_size {arguments.nbest}"
        )
    environment.prepare_process()
    from maestro_jax.cli.audio_inputs import ReadingProgress, audio_inputs
    from maestro_jax.gin_utils import gin_config
    from maestro_jax.training.saved_checkpoints import find_checkpoint

    inputs = audio_inputs(arguments.files)
    # One recording is opened before the model is read: where there is none, this fails at once.
    recordings, unreadable = _opened(inputs)
    if recordings is None:
        _finish([_error_record(*pair) for pair in zip(inputs, unreadable, strict=True)], arguments)
        return
    model_dir = find_checkpoint(arguments.checkpoint).parent.parent
    gin_files = options.tuned_search(str(model_dir), arguments)
    train_run = gin_config.load_run(model_dir, gin_files=gin_files)
    environment.enable_compilation_cache()
    search = options.search_config(arguments)
    from maestro_jax.inference.transcriber import Transcriber

    transcriber = Transcriber.from_checkpoint(arguments.checkpoint, train_run, search=search)
    if arguments.timestamps and transcriber.decoder == "attention":
        raise UserError(
            "an attention decoder has no alignment, so there are no --timestamps; leave them out, "
            "or decode with a transducer or CTC."
        )
    records: list[dict[str, Any]] = []
    with ReadingProgress([one.name for one in inputs]) as progress:
        results = transcriber.transcribe_chunks(
            recordings,
            target_language=arguments.target_language,
            language=arguments.language,
            progress=progress.update,
        )
        for one, found in zip(inputs, results, strict=True):
            progress.wipe()
            if isinstance(found, UserError):
                records.append(_error_record(one, found))
                continue
            records.append({"file": one.name})
            if arguments.json:
                said = {"findings": one.findings} if one.findings else {}
                records[-1] |= dataclasses.asdict(found) | said
            else:
                named = f"{one.name}: " if len(inputs) > 1 else ""
                print(f"{named}{found.text}", flush=True)
                _print_details(found, arguments)
    _finish(records, arguments)


def _opened(
    inputs: Sequence[AudioInput],
) -> tuple[Iterator[Iterable[np.ndarray]] | None, list[UserError]]:
    """Opens the first recording that can be read.

    Returns:
        The chunks of all recordings, or None if none can be read; and the errors of those before
        the first that can.
    """
    errors: list[UserError] = []
    for one in inputs:
        chunks = one.chunks()
        try:
            begun = itertools.chain(list(itertools.islice(chunks, 1)), chunks)
        except UserError as error:
            errors.append(error)
            continue
        rest = (later.chunks() for later in inputs[len(errors) + 1 :])
        return itertools.chain(map(_raising, errors), [begun], rest), errors
    return None, errors


def _raising(error: UserError) -> Iterator[np.ndarray]:
    raise error
    yield


def _error_record(one: AudioInput, error: UserError) -> dict:
    return {"file": one.name, "error": " ".join(str(error).split())}


def _finish(records: Sequence[dict], arguments: argparse.Namespace) -> None:
    """Prints the JSON and one line per recording that could not be read, and fails if any."""
    if arguments.json:
        print(json.dumps(records, indent=2, ensure_ascii=False), flush=True)
    errors = [record["error"] for record in records if "error" in record]
    if len(records) == 1 and errors:
        raise UserError(errors[0])
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        raise UserError(f"{len(errors)} of {len(records)} recordings could not be read")


def _print_details(transcript: Transcript, arguments: argparse.Namespace) -> None:
    """Prints timestamps and alternatives, indented below the text."""
    if arguments.timestamps:
        for word in transcript.words:
            print(f"  {word.start:8.2f}  {word.score:8.2f}  {word.text}")
    if arguments.nbest > 1:
        for number, alternatives in enumerate(transcript.alternatives, start=1):
            if transcript.segments > 1:
                print(f"  segment {number}")
            for one in alternatives[: arguments.nbest]:
                print(f"  {one.fused_score:8.2f}  {one.text}")
