"""`maestro prepare`: converts a corpus from its official layout, or synthesises MiniVox."""

from __future__ import annotations

import argparse

from maestro_jax.cli import environment, options
from maestro_jax.data.corpora.corpus import corpus_names, find_corpus
from maestro_jax.data.corpora.parquet import COLUMNS
from maestro_jax.data.corpora.prepare import (
    NoUsableUtterancesError,
    PreparedConfig,
    prepare,
    remove_prepared,
)
from maestro_jax.errors import UserError, near_misses
from maestro_jax.files import local_directory
from maestro_jax.tables import table
from maestro_jax.text.normalizers import RULES

# Corpora that are made, not read: the configurations, the first of which is the default.
MADE = {"minivox": ("small", "low_resource", "study", "full", "tiny")}
# Layouts that many corpora share.
NAMED = ("manifest", "parquet", "text_files", "parallel_text")
# Corpora that are read from Parquet files, too.
WITH_COLUMNS = ("parquet", "covost2", "voxpopuli")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    names = [*MADE, *corpus_names()]
    parser.add_argument("corpus", metavar="CORPUS", help="one of: " + ", ".join(names))
    configs = "; ".join(f"{corpus}: {', '.join(names)}" for corpus, names in MADE.items())
    parser.add_argument(
        "--config", help=f"configuration of a synthesised corpus ({configs}); default: the first"
    )
    parser.add_argument(
        "--source_dir", metavar="DIR", help="directory of the corpus as downloaded and unpacked"
    )
    parser.add_argument(
        "--languages",
        metavar="L,L",
        help="languages or pairs to prepare, as de,fr or de_en; default: all in the directory",
    )
    parser.add_argument("--name", help=f"name of the corpus; only for {', '.join(NAMED)}")
    parser.add_argument(
        "--text_rules",
        choices=tuple(RULES),
        help="normalisation of your own corpora and of plain text: as transcripts are scored (the "
        "default), or as text is spoken, with numbers in words and without parentheses",
    )
    parser.add_argument(
        "--columns",
        metavar="FIELD=NAME,...",
        help="names of columns of Parquet files, as audio=speech,text=sentence; fields: "
        f"{', '.join(COLUMNS)}; only for {', '.join(WITH_COLUMNS)}",
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first issue")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace data that are already prepared"
    )
    parser.add_argument(
        "--workers",
        type=options.positive,
        metavar="N",
        help="number of processes; default: one per core",
    )
    options.add_data_dir(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    if arguments.corpus in MADE:
        _make(arguments)
    else:
        _read(arguments)


def _make(arguments: argparse.Namespace) -> None:
    """Synthesises a corpus."""
    corpus = arguments.corpus
    config = arguments.config or MADE[corpus][0]
    if config not in MADE[corpus]:
        remedy = near_misses(config, MADE[corpus]) or f" It has: {', '.join(MADE[corpus])}."
        raise UserError(f"{corpus} has no configuration {config!r}.{remedy}")
    environment.prepare_process(tensorflow=True)
    from maestro_jax.data.data_dir import local_data_root
    from maestro_jax.minivox import dataset

    dataset.prepare(config, local_data_root(arguments.data_dir))


def _read(arguments: argparse.Namespace) -> None:
    """Converts a corpus from its official layout."""
    names = [*MADE, *corpus_names()]
    if arguments.corpus not in names:
        remedy = near_misses(arguments.corpus, names) or f" The corpora are: {', '.join(names)}."
        raise UserError(f"there is no corpus {arguments.corpus!r} to prepare.{remedy}")
    corpus = find_corpus(arguments.corpus)
    if arguments.source_dir is None:
        raise UserError(
            f"{corpus.title} needs --source_dir DIR, the directory of the downloaded corpus."
        )
    if arguments.name:
        if arguments.corpus not in NAMED:
            raise UserError(f"--name is for {', '.join(NAMED)}; leave it out for other corpora.")
        if not arguments.name.isidentifier():
            raise UserError(f"--name {arguments.name!r} is not a name; use letters, digits and _.")
        corpus.name = arguments.name
    if arguments.columns:
        if not hasattr(corpus, "columns"):
            raise UserError(
                f"--columns is for {', '.join(WITH_COLUMNS)}; leave it out for {arguments.corpus}."
            )
        corpus.columns = _columns(arguments.columns)
    if arguments.text_rules:
        if not corpus.text_rules:
            raise UserError(
                f"--text_rules does not apply to {arguments.corpus}, whose rules are fixed; leave "
                "it out."
            )
        corpus.text_rules = arguments.text_rules
    source = local_directory(arguments.source_dir, "directory of the corpus,")
    if not source.is_dir():
        raise UserError(
            f"--source_dir {source} is not a directory; name the directory of {corpus.title}."
        )
    wanted = options.names(arguments.languages or "")
    configs = corpus.configs(source, wanted)
    environment.prepare_process()
    from maestro_jax.data.data_dir import local_data_root
    from maestro_jax.data.processes import Processes

    root = local_data_root(arguments.data_dir)
    done, failed = [], {}
    with Processes(arguments.workers) as processes:
        for config in configs:
            if arguments.overwrite:
                remove_prepared(corpus, config, root)
            try:
                made = prepare(
                    corpus, source, config, root, processes=processes, strict=arguments.strict
                )
            except NoUsableUtterancesError as error:
                # One empty language must not keep the others from being prepared.
                if len(configs) == 1:
                    raise
                failed[config] = str(error)
                continue
            done.append(made)
    if done:
        print(_closing_table(corpus.name, done))
    if failed:
        raise UserError(
            f"no utterance of {', '.join(failed)} could be used; select others with --languages. "
            + " ".join(failed.values())
        )


def _columns(text: str) -> dict[str, str]:
    """Parses `audio=speech,text=sentence`."""
    columns = {}
    for pair in options.names(text):
        field, equals, name = pair.partition("=")
        if not equals or not name or field not in COLUMNS:
            raise UserError(
                f"--columns has {pair!r}; write FIELD=NAME, with one of the fields "
                f"{', '.join(COLUMNS)}.{near_misses(field, COLUMNS)}"
            )
        columns[field] = name
    return columns


def _closing_table(name: str, done: list[PreparedConfig]) -> str:
    """Formats what was written, beside the published sizes, and the reasons for differences."""
    rows = [
        {
            "corpus": f"{name}/{prepared.config}",
            "split": split.split,
            "utterances": split.utterances,
            "published": split.published,
            "hours": round(split.hours, 2),
            "published hours": split.published_hours,
            "why": split.explanation(),
        }
        for prepared in done
        for split in prepared.splits
    ]
    lines = [table(rows), ""]
    for prepared in done:
        if prepared.lines:
            what = ", ".join(f"{count} {kind}" for kind, count in prepared.lines.items())
            lines.append(f"{name}/{prepared.config}, lines of no split: {what}")
        if not prepared.fresh:
            lines.append(f"{prepared.directory} was there already (--overwrite makes it again).")
    lines += [f"All issues: {prepared.issues_path}" for prepared in done]
    return "\n".join(lines)
