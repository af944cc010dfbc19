"""`maestro align`: aligns a transcript with a recording, token by token and word by word."""

from __future__ import annotations

import argparse
from pathlib import Path

from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError

_FORMATS = ("table", "textgrid", "json")
_SUFFIXES = {".textgrid": "textgrid", ".json": "json"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    options.add_checkpoint(parser)
    parser.add_argument(
        "file", metavar="FILE", help="recording of any sampling rate, or - for standard input"
    )
    parser.add_argument("text", metavar="TEXT", help="transcript of the recording, in quotes")
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        help="a table of tokens, a Praat TextGrid, or JSON; default: by the suffix of --output "
        "(.TextGrid, .json), else a table",
    )
    parser.add_argument(
        "--json",
        action="store_const",
        const="json",
        dest="format",
        help="the same as --format json",
    )
    parser.add_argument("--output", metavar="FILE", help="file to write; default: standard output")
    parser.add_argument(
        "--language",
        metavar="CODE",
        default="",
        help="language of the speech; decides how Turkish and Catalan are lower-cased, and is an "
        "input of some models",
    )
    parser.add_argument(
        "--target_language",
        metavar="CODE",
        help="language of TEXT if it is a translation, for models trained for translation; "
        "default: en",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    environment.prepare_process()
    import numpy as np

    from maestro_jax.cli.audio_inputs import audio_input
    from maestro_jax.files import as_path, check_output, naming_failures, write_atomically
    from maestro_jax.gin_utils import gin_config
    from maestro_jax.training.saved_checkpoints import find_checkpoint

    # What can fail without the model fails before it is read.
    if not arguments.text.strip():
        raise UserError("the text is empty; write what is said in the recording, in quotes.")
    samples = np.concatenate(list(audio_input(arguments.file).chunks()))
    if arguments.output:
        check_output(arguments.output)
    checkpoint = find_checkpoint(arguments.checkpoint)
    model_dir = checkpoint.parent.parent
    from maestro_jax.inference.aligner import Aligner, encode_transcript
    from maestro_jax.training.model_vocabulary import load_model_vocabulary

    language = arguments.target_language or arguments.language
    train_run = gin_config.load_run(model_dir)
    vocabulary = load_model_vocabulary(checkpoint, train_run.model.vocab_size)
    encode_transcript(vocabulary, arguments.text, language)
    environment.enable_compilation_cache()
    from maestro_jax.inference.alignment_formats import as_json, as_rows, as_textgrid
    from maestro_jax.inference.transcriber import Transcriber
    from maestro_jax.tables import table

    found = Aligner(Transcriber.from_checkpoint(arguments.checkpoint, train_run)).align(
        samples,
        arguments.text,
        language=arguments.language,
        target_language=arguments.target_language,
    )
    suffix = Path(arguments.output or "").suffix.lower()
    format_ = arguments.format or _SUFFIXES.get(suffix, "table")
    if format_ == "json":
        page = as_json(found, file=arguments.file) + "\n"
    elif format_ == "textgrid":
        page = as_textgrid(found)
    else:
        page = (
            table(as_rows(found))
            + f"\n{found.seconds:.3f} s; {found.score / len(found.tokens):.2f} nats per token "
            "on the best path\n"
        )
    if not arguments.output:
        print(page, end="", flush=True)
        return
    path = as_path(arguments.output)
    with naming_failures(path, "file of --output"):
        write_atomically(path, page.encode())
    print(f"wrote {path}", flush=True)
