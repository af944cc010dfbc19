"""From entries to manifests, from these to data sets that tasks read, and to a vocabulary."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maestro_jax.data.corpora.corpus import Utterance
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.data.corpora.manifest import Manifest
from maestro_jax.data.corpora.prepare import prepare
from maestro_jax.data.corpora.speech_directory import SPEECH, TEXT, Entry
from maestro_jax.data.corpora.text_files import sentences
from maestro_jax.files import write_atomically
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


def write_manifests(directory: Path, entries: Iterable[tuple[Entry, str]]) -> None:
    """Writes entries as manifests that `maestro prepare manifest` reads.

    Args:
        directory: Directory of the manifests; those of unpaired data go to `unpaired` in it.
        entries: Each entry with its split.
    """
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
            for number, sentence in enumerate(sentences(entry.text), start=1):
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
    return json.dumps(fields, ensure_ascii=False)


@dataclasses.dataclass(frozen=True)
class Tasks:
    """The tasks of each stream."""

    speech: tuple[str, ...]
    paired: tuple[str, ...]
    text: tuple[str, ...]
    st: tuple[str, ...]

    def of(self, stream: str) -> tuple[str, ...]:
        """Returns the tasks of a stream."""
        return getattr(self, stream)


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
    for language in languages:
        config = config_name(language)
        if _has(manifests / "train.jsonl", language, "text"):
            prepare(Transcribed(), manifests, config, root, processes=processes)
            found["paired"].append(f"quickstart_paired_{config}")
            found["speech"].append(f"quickstart_speech_{config}")
        if target_language and _has(manifests / "train.jsonl", language, "translation"):
            pair = f"{config}{INTO}{config_name(target_language)}"
            if _is_whole(manifests, language):
                # The same records: those of a language have translations, too.
                link = root / Transcribed.name / pair
                if not link.exists():
                    link.symlink_to(config)
            else:
                prepare(Translated(), manifests, pair, root, processes=processes)
            found["st"].append(f"quickstart_st_{pair}")
        unpaired = [
            stream
            for stream, field in ((SPEECH, "audio"), (TEXT, "text"))
            if _has(manifests / "unpaired" / f"{stream}.jsonl", language, field)
        ]
        if unpaired:
            reader = Manifest("unpaired", more_splits=(SPEECH, TEXT))
            prepare(reader, manifests / "unpaired", config, root, processes=processes)
        found["speech"] += [f"unpaired_speech_{config}"] * (SPEECH in unpaired)
        found["text"] += [f"unpaired_text_{config}"] * (TEXT in unpaired)
    return Tasks(**{name: tuple(tasks) for name, tasks in found.items()})


def _is_whole(manifests: Path, language: str) -> bool:
    """Returns whether all utterances of a language have a transcript and a translation."""
    return all(
        bool(fields.get("text")) and bool(fields.get("translation"))
        for path in manifests.glob("*.jsonl")
        for fields in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if fields.get("language") == language
    )


def _has(path: Path, language: str, field: str) -> bool:
    """Returns whether a manifest has a line of a language with a field."""
    if not path.is_file():
        return False
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
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
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            fields = json.loads(line)
            texts["recognise"].append(normalize(fields.get("text", ""), fields["language"]))
            texts["translate"].append(" ".join(fields.get("translation", "").split()))
    directory.mkdir(parents=True, exist_ok=True)
    files = {}
    for stage, name in (("recognise", "transcripts.txt"), ("translate", "translations.txt")):
        if lines := [text for text in texts[stage] if text]:
            files[stage] = directory / name
            write_atomically(files[stage], ("\n".join(lines) + "\n").encode())
    return files
