"""Prepares a corpus: from its official layout to a TFDS data set of 16 kHz records.

The tables are read twice: to count the utterances, and to hand them to the processes that read
their audio, shard by shard. Neither the audio nor the list of utterances is ever held in memory as
a whole. A preparation that is started again keeps the shards that are complete.
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
from maestro_jax.data.corpora.corpus import (
    ALL_SPLITS,
    Corpus,
    PublishedSize,
    SplitSize,
    Utterance,
)
from maestro_jax.data.corpora.issues import EXPECTED_KINDS, KEPT_KINDS, IssueLog
from maestro_jax.data.corpora.shards import (
    LENGTHS,
    RECORDS,
    SUFFIXES,
    TEXTS,
    ShardStats,
    read_stats,
    record_features,
    write_shard,
)
from maestro_jax.data.lengths import TEXTS_ONLY, lengths_file, save_lengths
from maestro_jax.data.processes import Processes
from maestro_jax.errors import UserError
from maestro_jax.progress import Progress
from maestro_jax.text.characters import without_invisible, without_surrogates

VERSION = "1.0.0"
# The name that the file had in all versions: scripts of users read it.
ISSUES = "problems.tsv"
SUMMARY = "summary.json"
# Names in the summaries that earlier versions wrote.
_FORMER_FIELDS = {"problems": "issues"}


class NoUsableUtterancesError(UserError):
    """Not one utterance of a config could be used."""


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """Sizes and issues of a prepared split. `summary.json` has the same fields.

    Attributes:
        split: Name of the split.
        listed: Number of utterances in the tables of the corpus.
        utterances: Number of utterances that were written.
        hours: Hours of audio that were written.
        published: Published number of utterances; None if it is not known.
        published_hours: Published hours; None if they are not known.
        issues: Number of issues by kind.
    """

    split: str
    listed: int
    utterances: int
    hours: float
    published: int | None
    published_hours: float | None
    issues: dict[str, int]

    def explanation(self) -> str:
        """Explains why other numbers of utterances were published, listed and written."""
        reasons = []
        if self.published is not None and self.published != self.listed:
            difference = self.listed - self.published
            comparison = "more" if difference > 0 else "fewer"
            reasons.append(f"{abs(difference)} {comparison} in the tables than published")
        reasons += [
            f"{count} {kind}" + (" (kept)" if kind in KEPT_KINDS else "")
            for kind, count in self.issues.items()
        ]
        return ", ".join(reasons)


@dataclasses.dataclass(frozen=True)
class PreparedConfig:
    """A prepared config of a corpus.

    Attributes:
        config: Name of the config.
        directory: Directory of the data set, with `SUMMARY` and the table of all issues.
        splits: Summary of each split.
        lines: Number of issues with lines that belong to no split, by kind.
        fresh: Whether this call prepared the config; False if it was prepared before.
    """

    config: str
    directory: Path
    splits: tuple[SplitSummary, ...]
    lines: dict[str, int]
    fresh: bool = True

    @property
    def issues_path(self) -> Path:
        """Returns the path of the table of all issues."""
        return self.directory / ISSUES


def prepare(
    corpus: Corpus,
    source: Path,
    config: str,
    root: Path,
    *,
    processes: Processes,
    strict: bool = False,
    utterances_per_shard: int | None = None,
) -> PreparedConfig:
    """Prepares one config of a corpus, or continues an interrupted preparation.

    The data set goes to `root/name/config/1.0.0`. What is not complete is in a directory beside it.

    Args:
        corpus: Reader of the corpus.
        source: Directory of the corpus.
        config: One of `corpus.configs(source)`.
        root: Root of all prepared data.
        processes: Processes that read and convert audio.
        strict: Whether the first issue is an error.
        utterances_per_shard: Utterances that one process converts at once; by default those of the
            corpus.

    Returns:
        The sizes and issues of all splits.

    Raises:
        UserError: The tables cannot be read, no utterance can be used, or there is an issue
            (`strict`).
    """
    utterances_per_shard = utterances_per_shard or corpus.utterances_per_shard
    directory = root / corpus.name / config / VERSION
    if (directory / SUMMARY).is_file():
        return _read_prepared(config, directory)
    working = directory.with_name(f"{VERSION}.incomplete")
    working.mkdir(parents=True, exist_ok=True)
    for leftover in (*working.glob(".*.partial"), *working.glob(f"{corpus.name}-*")):
        leftover.unlink()
    shutil.rmtree(working / TEXTS_ONLY, ignore_errors=True)

    def completed(path: Path, utterances: tuple[Utterance, ...]) -> ShardStats | None:
        stats = read_stats(path, utterances)
        # The files may have been corrected since the shard was written.
        if strict and stats and any(one.kind not in EXPECTED_KINDS for one in stats.issues):
            return None
        return stats

    # First pass: count the utterances, for the summary and for the progress bar.
    listed: collections.Counter[str] = collections.Counter()
    remaining = 0
    for path, utterances in _into_shards(
        _usable_utterances(corpus, source, config, IssueLog(strict), listed),
        working,
        utterances_per_shard,
    ):
        remaining += 0 if completed(path, utterances) else len(utterances)

    # Second pass: write the shards that are not complete.
    issues = IssueLog(strict)
    shards: dict[Path, ShardStats] = {}
    # Shards that wait for a process hold only descriptions of utterances, no audio.
    pending: collections.deque[tuple[Path, int]] = collections.deque()

    def unfinished() -> Iterator[tuple[Path, tuple[Utterance, ...]]]:
        usable = _usable_utterances(corpus, source, config, issues, collections.Counter())
        for path, utterances in _into_shards(usable, working, utterances_per_shard):
            stats = completed(path, utterances)
            # This keeps the order of the corpus, also for shards that are not written yet.
            shards[path] = stats or ShardStats("", 0, 0, 0)
            if stats is None:
                pending.append((path, len(utterances)))
                yield path, utterances

    with Progress(remaining, f"{corpus.name}/{config}") as progress:
        for stats in processes.results(write_shard, unfinished()):
            path, size = pending.popleft()
            shards[path] = stats
            progress.update(size)
            if strict:
                IssueLog(strict).extend(stats.issues)
    for stats in shards.values():
        issues.extend(stats.issues)
    if not any(stats.utterances for stats in shards.values()):
        # The audio has to be read again once it is corrected.
        for path in shards:
            _remove(path)
        (working / ISSUES).write_text(issues.table(), encoding="utf-8")
        raise NoUsableUtterancesError(
            f"no utterance of {corpus.name}/{config} could be used: {issues.summary()}. All issues "
            f"are in {working / ISSUES}."
        )

    _finish(corpus, working, shards)
    summary = _summarise(corpus, source, config, working, listed, shards, issues)
    working.replace(directory)
    return dataclasses.replace(summary, directory=directory)


def _usable_utterances(
    corpus: Corpus,
    source: Path,
    config: str,
    issues: IssueLog,
    listed: collections.Counter[str],
) -> Iterator[Utterance]:
    """Yields the utterances without issues in their tables; `listed` counts all of them."""
    seen: set[bytes] = set()
    for utterance in corpus.utterances(source, config, issues):
        split = utterance.split
        if split not in corpus.splits:
            issues.add("unknown split", item=utterance.id, detail=split)
            continue
        listed[split] += 1
        utterance = _clean(utterance, issues)
        if not corpus.ids_are_line_numbers:
            # Hashes, for the ids of millions of utterances would take gigabytes.
            key = hashlib.blake2b(f"{split}\t{utterance.id}".encode(), digest_size=10).digest()
            if key in seen:
                issues.add("duplicate id", split=split, item=utterance.id, detail=utterance.audio)
                continue
            seen.add(key)
        empty = [name for name in utterance.required if not getattr(utterance, name).strip()]
        if empty:
            detail = utterance.raw_text or utterance.audio
            issues.add(f"empty {empty[0]}", split=split, item=utterance.id, detail=detail)
            continue
        yield utterance


def _clean(utterance: Utterance, issues: IssueLog) -> Utterance:
    """Removes invisible characters from text and translation, and all that cannot be encoded.

    Models must not write characters that nobody sees or hears, whatever a corpus calls normalised.
    """
    changed: dict[str, Any] = {}
    for name in ("text", "translation"):
        text = getattr(utterance, name)
        if (visible := without_invisible(text)) != text:
            changed[name] = " ".join(visible.split()) if name == "text" else visible.strip()
    for name in ("raw_text", "translation", "id", "speaker"):
        original = getattr(utterance, name)
        if not original.isascii() and (whole := without_surrogates(original)) != original:
            changed.setdefault(name, whole)
            detail = f"in {name}: {ascii(original)}"
            issues.add("broken character", split=utterance.split, item=utterance.id, detail=detail)
    return dataclasses.replace(utterance, **changed) if changed else utterance


def _into_shards(
    utterances: Iterator[Utterance], directory: Path, size: int
) -> Iterator[tuple[Path, tuple[Utterance, ...]]]:
    """Groups the utterances of each split into shards, numbered in the order of the corpus."""
    unfinished: dict[str, list[Utterance]] = {}
    numbers: collections.Counter[str] = collections.Counter()

    def close(split: str) -> tuple[Path, tuple[Utterance, ...]]:
        number = numbers[split]
        numbers[split] += 1
        # TFDS' names have the number of all shards, which is not known yet.
        return directory / f"part-{split}-{number:06d}", tuple(unfinished.pop(split))

    for utterance in utterances:
        shard = unfinished.setdefault(utterance.split, [])
        shard.append(utterance)
        if len(shard) == size:
            yield close(utterance.split)
    for split in list(unfinished):
        yield close(split)


def _finish(corpus: Corpus, working: Path, shards: dict[Path, ShardStats]) -> None:
    """Gives the shards the names that TFDS expects, and writes its metadata and all lengths."""
    record_features()
    by_split: dict[str, list[tuple[Path, ShardStats]]] = {}
    for path, stats in shards.items():
        if stats.utterances:
            by_split.setdefault(path.name.split("-")[1], []).append((path, stats))
    lengths = {
        split: np.concatenate([np.load(path.with_name(path.name + LENGTHS)) for path, _ in paths])
        for split, paths in by_split.items()
    }
    # The records without audio must be those with audio, so a split has them for all or for none.
    with_texts = {
        split: paths
        for split, paths in by_split.items()
        if all(stats.text_bytes for _, stats in paths)
    }
    if with_texts:
        only_texts = {split: lengths[split] * [0, 1, 1] for split in with_texts}
        _write_data_set(corpus, working / TEXTS_ONLY, with_texts, only_texts, TEXTS, "text_bytes")
    _write_data_set(corpus, working, by_split, lengths, RECORDS, "num_bytes")
    for path in shards:
        _remove(path)


def _remove(path: Path) -> None:
    """Removes the files of a shard."""
    for suffix in (*SUFFIXES, TEXTS):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _write_data_set(
    corpus: Corpus,
    directory: Path,
    by_split: dict[str, list[tuple[Path, ShardStats]]],
    lengths: dict[str, np.ndarray],
    suffix: str,
    size_field: str,
) -> None:
    """Makes a TFDS data set of shards.

    Args:
        corpus: The corpus.
        directory: Directory of the data set.
        by_split: Shards of each split, in order.
        lengths: Lengths of the records of each split.
        suffix: Suffix of the files that become the shards.
        size_field: The field of `ShardStats` with the bytes of these files.
    """
    import tensorflow_datasets as tfds

    directory.mkdir(exist_ok=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=corpus.name, filetype_suffix=RECORDS.lstrip(".")
    )
    infos = []
    for split, shards in by_split.items():
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[stats.utterances for _, stats in shards],
                num_bytes=sum(getattr(stats, size_field) for _, stats in shards),
                filename_template=template.replace(split=split),
            )
        )
        save_lengths(lengths_file(directory, split), lengths[split])
        for number, (path, _) in enumerate(shards):
            name = f"{corpus.name}-{split}{RECORDS}-{number:05d}-of-{len(shards):05d}"
            path.with_name(path.name + suffix).rename(directory / name)
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
    shards: dict[Path, ShardStats],
    issues: IssueLog,
) -> PreparedConfig:
    """Compares what was written with what was published, and writes the summary and the issues."""
    published = corpus.published(source, config)
    splits = []
    for split in corpus.splits:
        own = [stats for path, stats in shards.items() if path.name.split("-")[1] == split]
        size = published.get(split, PublishedSize())
        counts = issues.counts(split)
        if not (listed[split] or counts) and size == PublishedSize():
            continue
        splits.append(
            SplitSummary(
                split=split,
                listed=listed[split],
                utterances=sum(stats.utterances for stats in own),
                hours=sum(stats.samples for stats in own) / SAMPLE_RATE / 3600,
                published=size.utterances,
                published_hours=size.hours,
                issues=counts,
            )
        )
    if ALL_SPLITS in published:
        splits.append(
            SplitSummary(
                split=ALL_SPLITS,
                listed=sum(split.listed for split in splits),
                utterances=sum(split.utterances for split in splits),
                hours=sum(split.hours for split in splits),
                published=published[ALL_SPLITS].utterances,
                published_hours=published[ALL_SPLITS].hours,
                issues={},
            )
        )
    prepared = PreparedConfig(config, working, tuple(splits), issues.counts(""))
    # A detail may hold the name of a file, which may be bytes that are not UTF-8.
    (working / ISSUES).write_text(issues.table(), encoding="utf-8", errors="backslashreplace")
    record = {"splits": [dataclasses.asdict(split) for split in splits], "lines": prepared.lines}
    (working / SUMMARY).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return prepared


def _read_prepared(config: str, directory: Path) -> PreparedConfig:
    splits, lines = _read_summary(directory / SUMMARY)
    return PreparedConfig(config, directory, splits, lines, fresh=False)


def _read_summary(path: Path) -> tuple[tuple[SplitSummary, ...], dict[str, int]]:
    """Reads the splits and the issues of no split from a `summary.json`."""
    record = json.loads(path.read_text(encoding="utf-8"))
    splits = tuple(
        SplitSummary(**{_FORMER_FIELDS.get(name, name): value for name, value in split.items()})
        for split in record["splits"]
    )
    return splits, record["lines"]


def read_split_sizes(path: Path) -> dict[str, SplitSize]:
    """Reads the sizes of the splits of a prepared config, and what was left out of them.

    Args:
        path: Its `summary.json`.
    """
    return {
        split.split: SplitSize(
            published=split.published,
            listed=split.listed,
            left_out={
                kind: count for kind, count in split.issues.items() if kind not in KEPT_KINDS
            },
        )
        for split in _read_summary(path)[0]
    }


def remove_prepared(corpus: Corpus, config: str, root: Path) -> None:
    """Removes what was prepared of a config, and an interrupted preparation of it."""
    for name in (VERSION, f"{VERSION}.incomplete"):
        shutil.rmtree(root / corpus.name / config / name, ignore_errors=True)
