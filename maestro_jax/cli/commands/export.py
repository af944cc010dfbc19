"""`maestro export`: writes the hypotheses of an evaluation for other tools."""

from __future__ import annotations

import argparse
import json
from typing import Any

from etils import epath

from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError
from maestro_jax.files import as_path

_PAGE = "html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "run",
        metavar="RUN",
        help="a model directory, a result directory (MODEL_DIR/evaluation/RESULT) or a file of "
        "hypotheses (*.hypotheses.jsonl)",
    )
    parser.add_argument(
        "--formats",
        action="extend",
        type=options.names,
        default=[],
        metavar="NAME,NAME",
        help="txt, trn, stm and ctm (of sclite), openasr (manifest of the Open ASR leaderboard), "
        "html (page of errors)",
    )
    options.add_result_step(parser)
    parser.add_argument("--name", metavar="NAME", help="test set; default: all")
    parser.add_argument(
        "--output_dir", metavar="DIR", help="directory of the files; default: that of the results"
    )
    parser.add_argument(
        "--worst_audio",
        type=options.not_negative,
        default=0,
        metavar="N",
        help="write the audio of the N worst utterances beside the page, from the prepared data",
    )
    options.add_data_dir(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from maestro_jax.evaluation.error_page import write_error_page, write_worst_audio
    from maestro_jax.evaluation.hypothesis_formats import FORMATS, check_formats, write_formats
    from maestro_jax.evaluation.predictions import read_predictions
    from maestro_jax.evaluation.prepared_audio import prepared_audio
    from maestro_jax.evaluation.stored_hypotheses import find_hypotheses
    from maestro_jax.evaluation.suites import rows_of_stored

    if not arguments.formats:
        raise UserError(f"export needs --formats, of {', '.join([*FORMATS, _PAGE])}")
    formats = [name for name in arguments.formats if name != _PAGE]
    check_formats(formats)
    found = find_hypotheses(arguments.run, step=arguments.step, name=arguments.name)
    for name, file in found.items():
        directory = as_path(arguments.output_dir) if arguments.output_dir else file.parent
        predictions = read_predictions(file)
        scores = _scores(file.parent / f"{name}.json")
        paths = write_formats(
            directory,
            name,
            predictions,
            formats,
            model=_model_name(file),
            decoding_seconds=(scores.get("decoding") or {}).get("decode_seconds"),
        )
        if _PAGE in arguments.formats:
            audio = None
            if arguments.worst_audio:
                environment.prepare_process()
                from maestro_jax.data.tensorflow_import import import_tensorflow

                import_tensorflow()
                audio = write_worst_audio(
                    directory / f"{name}.audio",
                    predictions,
                    prepared_audio(name.rpartition(".")[2], arguments.data_dir),
                    count=arguments.worst_audio,
                ).get
            paths.append(
                write_error_page(
                    directory / f"{name}.html",
                    predictions,
                    name=name,
                    details={"result": file.parent.name},
                    audio=audio,
                    **rows_of_stored(name, predictions),
                )
            )
        for path in paths:
            print(path)


def _scores(path: epath.Path) -> dict[str, Any]:
    """Returns what is stored beside the hypotheses; empty if there is nothing."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _model_name(file: epath.Path) -> str:
    """Returns the name of the model directory that a result is of, with that of the result."""
    result = file.parent
    if result.parent.name == "evaluation":
        return f"{result.parent.parent.name}-{result.name}"
    return result.name
