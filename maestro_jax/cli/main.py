"""The `maestro` command: parses the command line, calls the library, prints errors as one line.

Each command is a module of `commands` with `add_arguments(parser)` and `run(arguments) -> None`;
it imports the library inside `run`, so that help costs no more than argparse.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from maestro_jax import __version__
from maestro_jax.cli import environment, options
from maestro_jax.errors import RESTART_EXIT_CODE, RestartableError, UserError, near_misses

# Help in one line, and an example, by the name of the command: the module commands.NAME.
COMMANDS = {
    "demo": (
        "run a whole experiment on a small synthetic corpus, on a CPU",
        "maestro demo --output_dir demo_output",
    ),
    "quickstart": (
        "make a recogniser and a translator of a directory of recordings, in a given time",
        "maestro quickstart recordings --budget 40m --explain",
    ),
    "prepare": (
        "convert a downloaded corpus, or synthesise MiniVox, for use by its tasks",
        "maestro prepare minivox --config small",
    ),
    "vocabulary": (
        "train a vocabulary on the texts of prepared tasks",
        "maestro vocabulary mine --task minivox_small_text --task minivox_small_mt --size 1000",
    ),
    "language_model": (
        "estimate an n-gram language model over the pieces of a vocabulary, as an ARPA file",
        "maestro language_model /data/run1 sentences.txt --output lm.arpa.gz --prune 0,0,1",
    ),
    "tasks": (
        "list the tasks and mixtures, and which of them are prepared",
        "maestro tasks --json",
    ),
    "buckets": (
        "find the batch lengths with the least padding",
        "maestro buckets minivox_small_paired --count 4 --seconds 15 --tokens 96",
    ),
    "train": (
        "train the run that gin files describe, or continue it",
        "maestro train --gin_file runs/demo_pretrain.gin --model_dir /data/run1 --gin.STEPS=1000",
    ),
    "study": (
        "train, fine-tune and evaluate a grid of methods, amounts of speech and seeds",
        "maestro study --gin_file runs/study.gin --output_dir study_output",
    ),
    "plan": (
        "compile a run ahead of time for a TPU or GPU topology: memory, time, cost",
        "maestro plan --gin_file runs/paper_voxpopuli.gin --topology v5e:16x16",
    ),
    "report": (
        "write the HTML report of a run: health checks, scores, losses, diagnostics",
        "maestro report /data/run1",
    ),
    "eval": (
        "score a trained model on its tasks: WER, CER, BLEU, chrF and metrics of your own",
        "maestro eval --model_dir /data/run1 --task minivox_small_paired_de",
    ),
    "tune": (
        "find the best weights of a search on validation data, and make them defaults",
        "maestro tune /data/run1 --beam_size 4 --lm_arpa lm.arpa.gz",
    ),
    "checkpoints": (
        "list, verify, remove or average the checkpoints of a run",
        "maestro checkpoints /data/run1 verify",
    ),
    "average": (
        "average the parameters of the last checkpoints of a run",
        "maestro average /data/run1 --last 5",
    ),
    "compare": (
        "compare two runs on the same utterances, with intervals and significance tests",
        "maestro compare /data/run1 /data/run2 --metric wer,cer",
    ),
    "export": (
        "write the hypotheses of an evaluation for other tools, and the page of its errors",
        "maestro export /data/run1 --formats trn,ctm,stm,html",
    ),
    "transcribe": (
        "transcribe or translate audio files with a trained model",
        "maestro transcribe /data/run1 speech.wav --target_language en",
    ),
    "align": (
        "align a transcript with a recording: the time of each word",
        'maestro align /data/run1 speech.wav "what is said" --format textgrid --output a.TextGrid',
    ),
}
# Commands that continue where they stopped when they are started again.
_RESUMABLE = ("demo", "prepare", "quickstart", "study", "train")
_USER_MODULES = "maestro_jax.gin_utils.user_modules"
_INTERRUPTED = 130
_BROKEN_PIPE = 141
_ORDERLY_END_SECONDS = 60.0


class _Parser(argparse.ArgumentParser):
    """Raises errors as one line, with the near misses of a misspelt option."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        namespace, unknown = super().parse_known_args(args, namespace)
        for word in unknown:
            if word.startswith("-"):
                options = list(self._option_string_actions)
                flag = word.split("=")[0]
                remedy = near_misses(flag, options)
                if "--gin_file" in options and (flag[2:].isupper() or "." in flag):
                    remedy = f" A gin binding is written --gin.{word.lstrip('-')}."
                raise UserError(
                    f"{self.prog} has no option {flag}.{remedy} See {self.prog} --help."
                )
        return namespace, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments after the program's name; those of the process by default.

    Returns:
        The exit status: 0, 2 after a user error, 75 after an error that a restart mends, 130 after
        an interrupt, 141 when the reader of the output has closed it. Any other exception is a bug
        and propagates.
    """
    status = 1
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        return status
    except SystemExit as stopped:
        status = int(stopped.code or 0)
        raise
    finally:
        processes = sys.modules.get("maestro_jax.training.process_group")
        if argv is None and processes is not None:
            # Threads of libraries, and of input that hangs, must not keep the process.
            processes.end_within(_ORDERLY_END_SECONDS, status)


def _run(argv: list[str]) -> int:
    command = ""
    try:
        try:
            command, arguments = _parse(argv)
        except SystemExit as exit_:  # argparse printed the help or the version.
            sys.stdout.flush()
            return int(exit_.code or 0)
        if arguments.imports:
            environment.prepare_process()
            importlib.import_module(_USER_MODULES).import_user_modules(arguments.imports)
        importlib.import_module(f"maestro_jax.cli.commands.{command}").run(arguments)
        sys.stdout.flush()
    except (UserError, RestartableError) as error:
        return _report(error)
    except KeyboardInterrupt:
        remedy = ": the same command continues it" if command in _RESUMABLE else ""
        print(f"\ninterrupted{remedy}", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # What is still buffered has no reader: keep the interpreter from complaining at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except Exception as error:
        # Disks and the clients of object stores have errors of their own, wherever a path is used.
        from maestro_jax.files import storage_error

        trouble = storage_error(error)
        if trouble is None:
            raise
        return _report(trouble)
    return 0


def _report(error: UserError | RestartableError) -> int:
    """Prints an error as one line, and returns the exit status."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return 2 if isinstance(error, UserError) else RESTART_EXIT_CODE


def command_parser(command: str) -> argparse.ArgumentParser:
    """Builds the parser of one of `COMMANDS`, without importing the library."""
    help_, example = COMMANDS[command]
    parser = _Parser(
        prog=f"maestro {command}",
        description=f"{help_[0].upper()}{help_[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    importlib.import_module(f"maestro_jax.cli.commands.{command}").add_arguments(parser)
    return parser


def _parse(argv: list[str]) -> tuple[str, argparse.Namespace]:
    """Returns the name of the command and its arguments."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {help_}" for name, (help_, _) in COMMANDS.items())
    parser: argparse.ArgumentParser = _Parser(
        prog="maestro",
        usage="maestro COMMAND [options]",
        description="Speech and text pretraining with MAESTRO: train, evaluate, transcribe.",
        epilog=f"commands:\n{listing}\n\n"
        "maestro COMMAND --help shows a command's options and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"maestro_jax {__version__}")
    if not argv:
        parser.print_help()
        raise UserError("maestro needs a command")
    if argv[0].startswith("-"):
        parser.parse_args(argv)
        raise UserError("the command comes first: maestro COMMAND [options]")
    command = argv[0]
    if command not in COMMANDS:
        remedy = near_misses(command, COMMANDS) or f" The commands are: {', '.join(COMMANDS)}."
        raise UserError(f"there is no command {command!r}.{remedy}")
    parser = command_parser(command)
    options.add_import(parser)
    words, bindings = options.split_bindings(argv[1:])
    arguments = parser.parse_args(words)
    if bindings and not hasattr(arguments, "gin_file"):
        name = next(iter(bindings))
        raise UserError(f"maestro {command} reads no gin files, so it takes no --gin.{name}")
    arguments.bindings = bindings
    return command, arguments


if __name__ == "__main__":
    sys.exit(main())
