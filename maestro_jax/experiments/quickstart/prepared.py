"""From entries to manifests, from these to data sets that tasks read, and to a vocabulary."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maestro_jax.batches import Mixture
from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, Utterance
from maestro_jax.data.corpora.issues import KEPT_KINDS, IssueLog
from maestro_jax.data.corpora.manifest import Manifest
from maestro_jax.data.corpora.prepare import prepare
from maestro_jax.data.corpora.speech_directory import SPEECH, TEXT, Entry
from maestro_jax.data.corpora.text_files import MAX_CHARACTERS, sentences
from maestro_jax.files import write_atomically
from maestro_jax.text.characters import without_surrogates
from maestro_jax.text.languages import config_name
from maestro_jax.text.normalizers import normalize

if TYPE_CHECKING:
    from maestro_jax.data.processes import Processes

INTO = "_to_"
"""What stands between the languages of translated data in the names of tasks."""


class Transcribed(Manifest):
    """The transcribed utterances of a quickstart's manifests; a config is a language."""

    name = "quickstart"
    title = "transcribed speech of maestro quickstart"

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the lines with a transcript; see `Corpus`."""
        for each in super().utterances(source, config, issues):
            if each.raw_text:
                yield each


class Translated(Manifest):
    """The translated utterances of a quickstart's manifests; a config is `ar_to_en`."""

    name = "quickstart"
    title = "translated speech of maestro quickstart"

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the lines with a translation; see `Corpus`."""
        for each in super().utterances(source, config.partition(INTO)[0], issues):
            if each.translation:
                yield dataclasses.replace(each, required=("translation",))


def write_manifests(
    directory: Path, entries: Iterable[tuple[Entry, str]], max_characters: int = MAX_CHARACTERS
) -> None:
    """Writes entries as manifests that `maestro prepare manifest` reads.

    Args:
        directory: Directory of the manifests; those of unpaired data go to `unpaired` in it.
        entries: Each entry with its split.
        max_characters: Length at which sentences without a recording are divided.
    """
    # Those of an interrupted start may be of other data.
    shutil.rmtree(directory, ignore_errors=True)
    lines: dict[Path, list[str]] = {}
    for entry, split in entries:
        if entry.audio and (entry.text or entry.translation):
            path = directory / f"{split}.jsonl"
            lines.setdefault(path, []).append(_line(entry))
        elif entry.audio:
            path = directory / "unpaired" / f"{SPEECH}.jsonl"
            lines.setdefault(path, []).append(_line(entry))
        else:
            path = directory / "unpaired" / f"{TEXT}.jsonl"
            for number, sentence in enumerate(sentences(entry.text, max_characters), start=1):
                part = dataclasses.replace(entry, id=f"{entry.id}:{number}", text=sentence)
                lines.setdefault(path, []).append(_line(part))
    for path, content in lines.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, ("\n".join(content) + "\n").encode())


def _line(entry: Entry) -> str:
    fields: dict[str, object] = {"id": entry.id}
    if entry.audio:
        fields["audio"] = str(Path(entry.audio).absolute())
    if entry.span is not None:
        begin, end = entry.span
        fields["offset"] = begin
        if math.isfinite(end):
            fields["duration"] = round(end - begin, 4)
    for name in ("text", "translation", "language", "speaker"):
        if value := getattr(entry, name):
            fields[name] = value
    line = json.dumps(fields, ensure_ascii=False)
    # Names of files may be bytes that are no text; JSON can escape them.
    return line if without_surrogates(line) == line else json.dumps(fields)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a manifest; none if there is no such file."""
    # Not str.splitlines, which divides at the line separators inside of texts, too.
    return [json.loads(line) for _, line in tables.lines(path)] if path.is_file() else []


@dataclasses.dataclass(frozen=True)
class Tasks:
    """The tasks of each stream.

    Attributes:
        speech: Of untranscribed speech.
        paired: Of transcribed speech.
        text: Of unspoken text.
        st: Of translated speech.
        splits: The splits of which a task has data.
        left_out: Number of utterances that could not be prepared, by what is wrong and the file
            that names them.
    """

    speech: tuple[str, ...]
    paired: tuple[str, ...]
    text: tuple[str, ...]
    st: tuple[str, ...]
    splits: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    left_out: Mapping[tuple[str, Path], int] = dataclasses.field(default_factory=dict)

    def of(self, stream: str) -> tuple[str, ...]:
        """Returns the tasks of a stream."""
        return getattr(self, stream)

    def mixture(self, stream: str, split: str = "train") -> str | Mixture | None:
        """Returns the task or the mixture of the tasks of a stream that have a split.

        A language of few recordings may have none to hold out.

        Returns:
            None if no task has it.
        """
        every = self.of(stream)
        names = tuple(name for name in every if split in self.splits.get(name, ("train",)))
        if len(names) < 2:
            return names[0] if names else None
        name = f"quickstart_all_{stream}" + f"_{split}" * (names != every)
        return Mixture(name=name, tasks=names)


def prepare_all(
    manifests: Path,
    root: Path,
    languages: Sequence[str],
    target_language: str,
    processes: Processes,
) -> Tasks:
    """Prepares all data sets, or continues to.

    Args:
        manifests: Directory of the manifests.
        root: Root of the prepared data.
        languages: Codes of all languages.
        target_language: Language of the translations; empty for none.
        processes: Processes that read audio.

    Returns:
        The tasks that have something to train on.
    """
    found: dict[str, list[str]] = {"speech": [], "paired": [], "text": [], "st": []}
    splits: dict[str, frozenset[str]] = {}
    left_out: collections.Counter[tuple[str, Path]] = collections.Counter()

    def prepared(corpus: Corpus, source: Path, config: str) -> frozenset[str]:
        """Prepares a config, and returns the splits that it has."""
        done = prepare(corpus, source, config, root, processes=processes)
        for counts in (done.lines, *(split.issues for split in done.splits)):
            for kind, count in counts.items():
                if kind not in KEPT_KINDS:
                    left_out[kind, done.issues_path] += count
        return frozenset(split.split for split in done.splits if split.utterances)

    for language in languages:
        config = config_name(language)
        own: frozenset[str] = frozenset()
        if _has(manifests / "train.jsonl", language, "text"):
            own = prepared(Transcribed(), manifests, config)
            found["paired"].append(f"quickstart_paired_{config}")
            found["speech"].append(f"quickstart_speech_{config}")
            splits[found["paired"][-1]] = own
        if target_language and _has(manifests / "train.jsonl", language, "translation"):
            pair = f"{config}{INTO}{config_name(target_language)}"
            if _is_whole(manifests, language):
                # The same records: those of a language have translations, too.
                link = root / Transcribed.name / pair
                if not link.exists():
                    link.symlink_to(config)
            else:
                own = prepared(Translated(), manifests, pair)
            found["st"].append(f"quickstart_st_{pair}")
            splits[found["st"][-1]] = own
        unpaired = [
            stream
            for stream, field in ((SPEECH, "audio"), (TEXT, "text"))
            if _has(manifests / "unpaired" / f"{stream}.jsonl", language, field)
        ]
        if unpaired:
            reader = Manifest("unpaired", more_splits=(SPEECH, TEXT))
            prepared(reader, manifests / "unpaired", config)
        found["speech"] += [f"unpaired_speech_{config}"] * (SPEECH in unpaired)
        found["text"] += [f"unpaired_text_{config}"] * (TEXT in unpaired)
    return Tasks(
        speech=tuple(found["speech"]),
        paired=tuple(found["paired"]),
        text=tuple(found["text"]),
        st=tuple(found["st"]),
        splits=splits,
        left_out=left_out,
    )


def _is_whole(manifests: Path, language: str) -> bool:
    """Returns whether all utterances of a language have a transcript and a translation."""
    return all(
        bool(fields.get("text")) and bool(fields.get("translation"))
        for path in manifests.glob("*.jsonl")
        for fields in read_lines(path)
        if fields.get("language") == language
    )


def _has(path: Path, language: str, field: str) -> bool:
    """Returns whether a manifest has a line of a language with a field."""
    lines = read_lines(path)
    return any(line.get("language") == language and line.get(field) for line in lines)


def write_lm_texts(manifests: Path, directory: Path) -> dict[str, Path]:
    """Writes the training texts, one sentence per line, for n-gram language models.

    Args:
        manifests: Directory of the manifests.
        directory: Directory to write to.

    Returns:
        The file of transcripts (`recognise`) and of translations (`translate`), as far as there
        are such texts. Test and validation texts are in neither.
    """
    texts: dict[str, list[str]] = {"recognise": [], "translate": []}
    for path in (manifests / "train.jsonl", manifests / "unpaired" / f"{TEXT}.jsonl"):
        for fields in read_lines(path):
            texts["recognise"].append(normalize(fields.get("text", ""), fields["language"]))
            texts["translate"].append(" ".join(fields.get("translation", "").split()))
    directory.mkdir(parents=True, exist_ok=True)
    files = {}
    for stage, name in (("recognise", "transcripts.txt"), ("translate", "translations.txt")):
        if lines := [text for text in texts[stage] if text]:
            files[stage] = directory / name
            write_atomically(files[stage], ("\n".join(lines) + "\n").encode())
    return files
