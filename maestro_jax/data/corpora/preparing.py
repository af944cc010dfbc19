"""From a corpus in its official layout to a TFDS data set of 16 kHz records, read at random.

The tables are read twice: to count, and to hand the utterances to the processes that read their
audio, part by part. Neither the audio nor the list of utterances is ever held as a whole. Parts
that are complete are kept when a preparation is started again.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.data.corpora.corpus import WHOLE, Corpus, Published
from maestro_jax.data.corpora.parts import (
    ENDINGS,
    LENGTHS,
    SUFFIX,
    TEXTS,
    Account,
    account_of,
    record_features,
    write_part,
)
from maestro_jax.data.corpora.problems import EXPECTED, KEPT, Problems
from maestro_jax.data.corpora.utterance import Utterance
from maestro_jax.data.lengths import TEXTS_ONLY, lengths_file, save_lengths
from maestro_jax.data.processes import Processes
from maestro_jax.errors import UserError
from maestro_jax.progress import Progress
from maestro_jax.text.invisible_characters import without_invisible, without_surrogates

VERSION = "1.0.0"
PROBLEMS = "problems.tsv"
SUMMARY = "summary.json"


class NothingUsableError(UserError):
    """Not one utterance of a config could be used."""


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """What became of a split.

    Attributes:
        split: Its name.
        listed: Utterances that the tables of the corpus have.
        utterances: Those that were written.
        hours: Of their audio.
        published: Utterances according to the corpus' paper or page; None if it does not say.
        published_hours: The same for hours.
        problems: By kind, how many.
    """

    split: str
    listed: int
    utterances: int
    hours: float
    published: int | None
    published_hours: float | None
    problems: dict[str, int]

    def explanation(self) -> str:
        """Why the written utterances are not as many as the published or the listed ones."""
        reasons = []
        if self.published is not None and self.published != self.listed:
            difference = self.listed - self.published
            more = "more" if difference > 0 else "fewer"
            reasons.append(f"{abs(difference)} {more} in the tables than published")
        reasons += [
            f"{count} {kind}" + (" (kept)" if kind in KEPT else "")
            for kind, count in self.problems.items()
        ]
        return ", ".join(reasons)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared config of a corpus.

    Attributes:
        config: Which.
        directory: Of the data set, with `PROBLEMS` and `SUMMARY`.
        splits: What became of its splits.
        lines: Problems of lines that belong to no split, by kind.
        fresh: Whether it was made by this call, and not there already.
    """

    config: str
    directory: Path
    splits: tuple[SplitSummary, ...]
    lines: dict[str, int]
    fresh: bool = True


def prepare(
    corpus: Corpus,
    source: Path,
    config: str,
    root: Path,
    *,
    processes: Processes,
    strict: bool = False,
    part_utterances: int | None = None,
) -> Prepared:
    """Prepare one config of a corpus, or go on with it.

    The data set goes to `root/name/config/1.0.0`; what is not complete lies beside it.

    Args:
        corpus: How it is read.
        source: Its directory.
        config: One of `corpus.configs(source)`.
        root: The data root.
        processes: That read and convert audio.
        strict: Whether the first problem is an error.
        part_utterances: How many utterances one process takes at once; by default the corpus says.

    Returns:
        What became of it.

    Raises:
        UserError: The tables cannot be read, nothing was left, or there is a problem (`strict`).
    """
    part_utterances = part_utterances or corpus.part_utterances
    directory = root / corpus.name / config / VERSION
    if (directory / SUMMARY).is_file():
        return _prepared_before(config, directory)
    working = directory.with_name(f"{VERSION}.incomplete")
    working.mkdir(parents=True, exist_ok=True)
    for leftover in (*working.glob(".*.partial"), *working.glob(f"{corpus.name}-*")):
        leftover.unlink()
    shutil.rmtree(working / TEXTS_ONLY, ignore_errors=True)

    def complete(path: Path, utterances: tuple[Utterance, ...]) -> Account | None:
        account = account_of(path, utterances)
        # What was wrong the last time may have been mended since.
        if strict and account and any(one.kind not in EXPECTED for one in account.problems):
            return None
        return account

    listed: collections.Counter[str] = collections.Counter()
    remaining = 0
    for path, utterances in _parts(
        _usable(corpus, source, config, Problems(strict), listed), working, part_utterances
    ):
        remaining += 0 if complete(path, utterances) else len(utterances)

    problems = Problems(strict)
    accounts: dict[Path, Account] = {}
    # Waiting parts only hold descriptions; the audio is in the processes.
    pending: collections.deque[tuple[Path, int]] = collections.deque()

    def unfinished() -> Iterator[tuple[Path, tuple[Utterance, ...]]]:
        usable = _usable(corpus, source, config, problems, collections.Counter())
        for path, utterances in _parts(usable, working, part_utterances):
            account = complete(path, utterances)
            # A place in the order of the corpus, also for what is not written yet.
            accounts[path] = account or Account("", 0, 0, 0)
            if account is None:
                pending.append((path, len(utterances)))
                yield path, utterances

    with Progress(remaining, f"{corpus.name}/{config}") as progress:
        for account in processes.results(write_part, unfinished()):
            path, size = pending.popleft()
            accounts[path] = account
            progress.update(size)
            if strict:
                Problems(strict).extend(account.problems)
    for account in accounts.values():
        problems.extend(account.problems)
    if not any(account.utterances for account in accounts.values()):
        # Once what was wrong is mended, the audio has to be read again.
        for path in accounts:
            _remove(path)
        (working / PROBLEMS).write_text(problems.table(), encoding="utf-8")
        raise NothingUsableError(
            f"nothing of {corpus.name}/{config} could be used: {problems.summary()}. Every problem "
            f"is in {working / PROBLEMS}."
        )

    _finish(corpus, working, accounts)
    summary = _summarise(corpus, source, config, working, listed, accounts, problems)
    working.replace(directory)
    return dataclasses.replace(summary, directory=directory)


def _usable(
    corpus: Corpus,
    source: Path,
    config: str,
    problems: Problems,
    listed: collections.Counter[str],
) -> Iterator[Utterance]:
    """The utterances that are worth looking at, once each; all of them are counted."""
    seen: set[bytes] = set()
    for utterance in corpus.utterances(source, config, problems):
        split = utterance.split
        if split not in corpus.splits:
            problems.add("unknown split", item=utterance.id, detail=split)
            continue
        listed[split] += 1
        utterance = _legible(utterance, problems)
        if not corpus.numbered:
            # Ids of millions of utterances would take gigabytes.
            key = hashlib.blake2b(f"{split}\t{utterance.id}".encode(), digest_size=10).digest()
            if key in seen:
                problems.add("duplicate id", split=split, item=utterance.id, detail=utterance.audio)
                continue
            seen.add(key)
        empty = [name for name in utterance.needs if not getattr(utterance, name).strip()]
        if empty:
            detail = utterance.raw_text or utterance.audio
            problems.add(f"empty {empty[0]}", split=split, item=utterance.id, detail=detail)
            continue
        yield utterance


def _legible(utterance: Utterance, problems: Problems) -> Utterance:
    """An utterance that can be encoded, whose text and translation have nothing invisible in them.

    Whatever a corpus calls normalised, models are to write nothing that nobody sees or hears.
    """
    changed: dict[str, Any] = {}
    for name in ("text", "translation"):
        text = getattr(utterance, name)
        if (legible := without_invisible(text)) != text:
            changed[name] = " ".join(legible.split()) if name == "text" else legible.strip()
    for name in ("raw_text", "translation", "id", "speaker"):
        given = getattr(utterance, name)
        if not given.isascii() and (whole := without_surrogates(given)) != given:
            changed.setdefault(name, whole)
            detail = f"in {name}: {ascii(given)}"
            problems.add(
                "broken character", split=utterance.split, item=utterance.id, detail=detail
            )
    return dataclasses.replace(utterance, **changed) if changed else utterance


def _parts(
    utterances: Iterator[Utterance], directory: Path, size: int
) -> Iterator[tuple[Path, tuple[Utterance, ...]]]:
    """Parts of each split, numbered in the order of the corpus."""
    open_parts: dict[str, list[Utterance]] = {}
    numbers: collections.Counter[str] = collections.Counter()

    def close(split: str) -> tuple[Path, tuple[Utterance, ...]]:
        number = numbers[split]
        numbers[split] += 1
        return directory / f"part-{split}-{number:06d}", tuple(open_parts.pop(split))

    for utterance in utterances:
        part = open_parts.setdefault(utterance.split, [])
        part.append(utterance)
        if len(part) == size:
            yield close(utterance.split)
    for split in list(open_parts):
        yield close(split)


def _finish(corpus: Corpus, working: Path, accounts: dict[Path, Account]) -> None:
    """Give the parts the names of TFDS' shards, and write its metadata and all lengths."""
    record_features()
    by_split: dict[str, list[tuple[Path, Account]]] = {}
    for path, account in accounts.items():
        if account.utterances:
            by_split.setdefault(path.name.split("-")[1], []).append((path, account))
    lengths = {
        split: np.concatenate([np.load(path.with_name(path.name + LENGTHS)) for path, _ in parts])
        for split, parts in by_split.items()
    }
    # Where a split has some speech without text, its texts would be other records than its speech.
    with_texts = {
        split: parts
        for split, parts in by_split.items()
        if all(account.text_bytes for _, account in parts)
    }
    if with_texts:
        only_texts = {split: lengths[split] * [0, 1, 1] for split in with_texts}
        _data_set(corpus, working / TEXTS_ONLY, with_texts, only_texts, TEXTS, "text_bytes")
    _data_set(corpus, working, by_split, lengths, SUFFIX, "num_bytes")
    for path in accounts:
        _remove(path)


def _remove(path: Path) -> None:
    """Remove the files of a part."""
    for ending in (*ENDINGS, TEXTS):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _data_set(
    corpus: Corpus,
    directory: Path,
    by_split: dict[str, list[tuple[Path, Account]]],
    lengths: dict[str, np.ndarray],
    ending: str,
    size: str,
) -> None:
    """Make a TFDS data set of files of parts.

    Args:
        corpus: What it is of.
        directory: Where it goes.
        by_split: The parts of each split, in their order.
        lengths: Of the records of each split.
        ending: Of the files of the parts.
        size: The field of their accounts that has the bytes.
    """
    import tensorflow_datasets as tfds

    directory.mkdir(exist_ok=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=corpus.name, filetype_suffix=SUFFIX.lstrip(".")
    )
    infos = []
    for split, parts in by_split.items():
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[account.utterances for _, account in parts],
                num_bytes=sum(getattr(account, size) for _, account in parts),
                filename_template=template.replace(split=split),
            )
        )
        save_lengths(lengths_file(directory, split), lengths[split])
        for number, (path, _) in enumerate(parts):
            name = f"{corpus.name}-{split}{SUFFIX}-{number:05d}-of-{len(parts):05d}"
            path.with_name(path.name + ending).rename(directory / name)
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=record_features(),
        split_infos=infos,
        filename_template=template,
        version=VERSION,
        check_data=False,
        description=corpus.title,
    )


def _summarise(
    corpus: Corpus,
    source: Path,
    config: str,
    working: Path,
    listed: collections.Counter[str],
    accounts: dict[Path, Account],
    problems: Problems,
) -> Prepared:
    """Count everything, and write it down beside the records."""
    published = corpus.published(source, config)
    splits = []
    for split in corpus.splits:
        own = [account for path, account in accounts.items() if path.name.split("-")[1] == split]
        said = published.get(split, Published())
        counts = problems.counts(split)
        if not (listed[split] or counts) and said == Published():
            continue
        splits.append(
            SplitSummary(
                split=split,
                listed=listed[split],
                utterances=sum(account.utterances for account in own),
                hours=sum(account.samples for account in own) / SAMPLE_RATE / 3600,
                published=said.utterances,
                published_hours=said.hours,
                problems=counts,
            )
        )
    if WHOLE in published:
        splits.append(
            SplitSummary(
                split=WHOLE,
                listed=sum(split.listed for split in splits),
                utterances=sum(split.utterances for split in splits),
                hours=sum(split.hours for split in splits),
                published=published[WHOLE].utterances,
                published_hours=published[WHOLE].hours,
                problems={},
            )
        )
    prepared = Prepared(config, working, tuple(splits), problems.counts(""))
    table = problems.table()
    # A detail may be the name of a file, which need not be text.
    (working / PROBLEMS).write_text(table, encoding="utf-8", errors="backslashreplace")
    record = {"splits": [dataclasses.asdict(split) for split in splits], "lines": prepared.lines}
    (working / SUMMARY).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return prepared


def _prepared_before(config: str, directory: Path) -> Prepared:
    record = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
    splits = tuple(SplitSummary(**split) for split in record["splits"])
    return Prepared(config, directory, splits, record["lines"], fresh=False)


def forget(corpus: Corpus, config: str, root: Path) -> None:
    """Remove what was prepared, and what was begun, of a config."""
    for name in (VERSION, f"{VERSION}.incomplete"):
        shutil.rmtree(root / corpus.name / config / name, ignore_errors=True)
