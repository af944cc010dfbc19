"""`NAME.html`: every utterance of a test set, its errors aligned and coloured, the worst first.

The page is one file without any other: the utterances as JSON and a script that shows them, fifty
at a time. Texts reach the document as text nodes alone, so that no transcript is taken for markup.
"""

from __future__ import annotations

import collections
import dataclasses
import html
import importlib.resources
import io
import json
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jiwer
import numpy as np
import soundfile
from etils import epath
from sacrebleu.metrics import BLEU

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.evaluation.predictions import Prediction
from maestro_jax.files import as_path, write_atomically
from maestro_jax.scoring.metrics import Metric, bleu_tokenizer, get_metric, primary_metric
from maestro_jax.text.characters import without_invisible
from maestro_jax.text.languages import writes_spaces
from maestro_jax.text.normalizers import normalize

MOST_UTTERANCES = 30_000
"""Utterances on a page; of a larger test set, the worst of each language."""
MOST_CONFUSIONS = 40

AudioOf = Callable[[Prediction], str | None]
"""From an utterance to the address of its audio, relative to the page, or None."""

# jiwer's default transforms strip and collapse text; these only split.
_SPLIT = jiwer.Compose([jiwer.ReduceToListOfListOfWords()])
# Ends the script element or the line, whatever the string around it.
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}

Edit = tuple[str, str]
"""What stands in the reference and in its place in the hypothesis; one of them may be empty."""


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The shortest edits that turn a reference into a hypothesis, as jiwer finds them.

    Attributes:
        parts: In their order: text that both have, as a string, and edits.
        substitutions: Number of units replaced.
        deletions: Number of units of the reference that are missing.
        insertions: Number of units of the hypothesis that are not in the reference.
        units: Number of units of the reference.
    """

    parts: tuple[str | Edit, ...]
    substitutions: int
    deletions: int
    insertions: int
    units: int

    @property
    def errors(self) -> int:
        """Number of edits."""
        return self.substitutions + self.deletions + self.insertions


def align(
    references: Sequence[str], hypotheses: Sequence[str], *, by_character: bool
) -> list[Alignment]:
    """Aligns hypotheses with references, by words or by characters.

    Args:
        references: As they are compared, [utterances].
        hypotheses: As they are compared, [utterances].
        by_character: Whether units are characters, among which white space is none; else words.
    """
    if not references:
        return []

    def units(text: str) -> list[str]:
        return list("".join(text.split())) if by_character else text.split()

    # jiwer splits at blanks, whatever stands between them.
    output = jiwer.process_words(
        [" ".join(units(text)) for text in references],
        [" ".join(units(text)) for text in hypotheses],
        reference_transform=_SPLIT,
        hypothesis_transform=_SPLIT,
    )
    between = "" if by_character else " "
    alignments = []
    for reference, hypothesis, chunks in zip(
        output.references, output.hypotheses, output.alignments, strict=True
    ):
        counts = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
        parts: list[str | Edit] = []
        for chunk in chunks:
            before = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            after = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            counts[chunk.type] += max(len(before), len(after))
            if chunk.type == "equal":
                parts.append(between.join(before))
            elif chunk.type == "substitute":
                parts += zip(before, after, strict=True)
            else:
                parts += [(unit, "") for unit in before] + [("", unit) for unit in after]
        alignments.append(
            Alignment(
                tuple(parts),
                counts["substitute"],
                counts["delete"],
                counts["insert"],
                len(reference),
            )
        )
    return alignments


def error_page(
    predictions: Sequence[Prediction],
    *,
    name: str,
    details: Mapping[str, str] | None = None,
    audio: AudioOf | None = None,
    rows: Mapping[str, str] | None = None,
    scorers: Mapping[str, Collection[Metric]] | None = None,
    most: int = MOST_UTTERANCES,
) -> str:
    """Writes the page of a test set.

    Transcripts are compared as they are scored: normalised, by word, or by character in languages
    that put no spaces between words. Translations are compared as they are; each also has its
    sentence's chrF and BLEU.

    Args:
        predictions: References and hypotheses.
        name: Name of the test set.
        details: Further facts for the head of the page, such as the step and the search.
        audio: Where the audio of an utterance is.
        rows: Names of rows by task, in order, where they are not languages, as of
            `maestro_jax.evaluation.evaluate.score`.
        scorers: Metrics of rows with rules of their own, which the alignment does not show.
        most: Utterances on the page; totals are of all.

    Returns:
        HTML.
    """
    share = most / max(len(predictions), 1)
    totals, utterances = [], []
    for place, (name_of_row, members) in enumerate(_by_row(predictions, rows).items()):
        own = {metric.name: metric for metric in (scorers or {}).get(name_of_row, ())}
        row, shown = _row(name_of_row, members, place, audio, own)
        totals.append(row)
        if share < 1:
            shown.sort(key=_badness)
            shown = shown[: max(1, int(len(shown) * share))]
        utterances += shown
    translated = any(prediction.target_language for prediction in predictions)
    data = {
        "translated": translated,
        "total": len(predictions),
        "rows": totals,
        "utterances": utterances,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    facts = " \u00b7 ".join(f"{key} {value}" for key, value in (details or {}).items())
    template = importlib.resources.files(__package__).joinpath("error_page.html")
    values = {
        "title": html.escape(f"Errors: {name}"),
        "details": html.escape(facts),
        "data": text.translate(_UNSAFE),
    }
    # In one pass: what a value says is not searched for placeholders.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template.read_text("utf-8"))


def write_error_page(
    path: epath.PathLike,
    predictions: Sequence[Prediction],
    *,
    name: str,
    details: Mapping[str, str] | None = None,
    audio: Mapping[str, str] | Callable[[Prediction], epath.PathLike | None] | None = None,
    rows: Mapping[str, str] | None = None,
    scorers: Mapping[str, Collection[Metric]] | None = None,
) -> epath.Path:
    """Writes the page of a test set into a file.

    Args:
        path: File to write.
        predictions: References and hypotheses.
        name: Name of the test set.
        details: As of `error_page`.
        audio: Path of the audio of an utterance, by its id or from its prediction; None where there
            is no file. The page names local files relative to its own directory.
        rows: As of `error_page`.
        scorers: As of `error_page`.

    Returns:
        The path.
    """
    path = as_path(path)
    if isinstance(audio, Mapping):
        by_id = audio
        path_of: Callable[[Prediction], epath.PathLike | None] = lambda each: by_id.get(each.id)  # noqa: E731
    else:
        path_of = audio or (lambda _: None)

    def address(prediction: Prediction) -> str | None:
        found = path_of(prediction)
        return None if found is None else _address(os.fspath(found), path.parent)

    path.parent.mkdir(parents=True, exist_ok=True)
    page = error_page(
        predictions, name=name, details=details, audio=address, rows=rows, scorers=scorers
    )
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def worst(predictions: Sequence[Prediction], count: int) -> list[Prediction]:
    """Returns the utterances that the page shows first, of all languages together."""
    ranked: list[tuple[Any, int]] = []
    places = {id(prediction): place for place, prediction in enumerate(predictions)}
    for members in _by_row(predictions, None).values():
        _, shown = _row("", members, 0, None, {})
        ranked += [
            (_badness(each), places[id(member)])
            for each, member in zip(shown, members, strict=True)
        ]
    return [predictions[place] for _, place in sorted(ranked)[:count]]


def write_worst_audio(
    directory: epath.PathLike,
    predictions: Sequence[Prediction],
    read: Callable[[Prediction], np.ndarray | None],
    *,
    count: int,
) -> dict[Prediction, epath.Path]:
    """Writes the audio of the worst utterances as WAV files.

    Args:
        directory: Directory of the files, which are named by their rank.
        predictions: References and hypotheses.
        read: From an utterance to int16 `[samples]` at 16 kHz; None where there are none.
        count: Number of utterances.

    Returns:
        The file of each utterance that has audio.
    """
    directory = as_path(directory)
    files: dict[Prediction, epath.Path] = {}
    for rank, prediction in enumerate(worst(predictions, count), 1):
        samples = read(prediction)
        if samples is None:
            continue
        directory.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        soundfile.write(content, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        files[prediction] = directory / f"{rank:04d}.wav"
        write_atomically(files[prediction], content.getvalue())
    return files


def _by_row(
    predictions: Sequence[Prediction], rows: Mapping[str, str] | None
) -> dict[str, list[Prediction]]:
    """Divides predictions into rows: those that are named in their order, then the directions."""
    found: dict[str, list[Prediction]] = {}
    for prediction in sorted(predictions, key=lambda each: each.direction):
        found.setdefault((rows or {}).get(prediction.task, prediction.direction), []).append(
            prediction
        )
    names = dict.fromkeys([*(rows or {}).values(), *found])
    return {name: found[name] for name in names if name in found}


def _row(
    name: str,
    members: Sequence[Prediction],
    place: int,
    audio: AudioOf | None,
    own: Mapping[str, Metric],
) -> tuple[dict[str, Any], list[list[Any]]]:
    """Returns the totals of a row, and its utterances as the script reads them.

    An utterance is a list: id, place of the row, substitutions, deletions, insertions, units,
    parts, reference and hypothesis as they were where that is not what was compared (else null),
    seconds, log-probability, address of the audio, sentence chrF and BLEU.
    """
    first = members[0]
    language = first.target_language or first.language
    translated = bool(first.target_language)
    by_character = not writes_spaces(language)

    def compared(text: str) -> str:
        if translated:
            return without_invisible(unicodedata.normalize("NFC", text))
        return normalize(text, language)

    references = [compared(each.reference) for each in members]
    hypotheses = [compared(each.hypothesis) for each in members]
    alignments = align(references, hypotheses, by_character=by_character)
    kind = "st" if translated else "asr"
    metrics = ["bleu", "chrf"] if translated else [primary_metric("asr", language)]
    scores = {}
    for metric_name in metrics:
        metric = own.get(metric_name) or get_metric(metric_name)
        statistics = metric.statistics(references, hypotheses, language)
        value = float(metric.score(np.asarray(statistics).sum(axis=0)))
        scores[metric.title] = round(value, 2) if np.isfinite(value) else None
    sentence_scores: list[tuple[float | None, float | None]] = [(None, None)] * len(members)
    if translated:
        # chrF of a sentence is that of a corpus of one; BLEU needs the orders that it has.
        chrf = get_metric("chrf")
        counts = chrf.statistics(references, hypotheses, language)
        bleu = BLEU(tokenize=bleu_tokenizer(language), effective_order=True)
        sentence_scores = [
            (
                round(float(chrf.score(np.asarray(count))), 1),
                round(bleu.sentence_score(hypothesis, [reference]).score, 1),
            )
            for count, reference, hypothesis in zip(counts, references, hypotheses, strict=True)
        ]
    confusions: collections.Counter[Edit] = collections.Counter()
    utterances: list[list[Any]] = []
    for each, alignment, reference, hypothesis, (chrf_value, bleu_value) in zip(
        members, alignments, references, hypotheses, sentence_scores, strict=True
    ):
        confusions.update(part for part in alignment.parts if not isinstance(part, str))
        as_they_were = (each.reference, each.hypothesis) != (reference, hypothesis)
        utterances.append(
            [
                each.id,
                place,
                alignment.substitutions,
                alignment.deletions,
                alignment.insertions,
                alignment.units,
                alignment.parts,
                each.reference if as_they_were else None,
                each.hypothesis if as_they_were else None,
                round(each.seconds, 2),
                None if each.score is None else round(each.score, 2),
                audio(each) if audio is not None else None,
                chrf_value,
                bleu_value,
            ]
        )
    row = {
        "name": name,
        "rules": any(metric in own for metric in metrics),
        "language": language,
        "kind": kind,
        "by_character": by_character,
        "utterances": len(members),
        "wrong": sum(alignment.errors > 0 for alignment in alignments),
        "substitutions": sum(alignment.substitutions for alignment in alignments),
        "deletions": sum(alignment.deletions for alignment in alignments),
        "insertions": sum(alignment.insertions for alignment in alignments),
        "units": sum(alignment.units for alignment in alignments),
        "scores": scores,
        "confusions": [[*edit, count] for edit, count in confusions.most_common(MOST_CONFUSIONS)],
    }
    return row, utterances


def _badness(utterance: list[Any]) -> tuple[float, ...]:
    """Orders utterances as the script does: the worst first."""
    _, _, substitutions, deletions, insertions, units, *_, chrf, _ = utterance
    errors = substitutions + deletions + insertions
    if chrf is not None:
        return (chrf, -errors)
    return (-errors, -errors / max(units, 1))


def _address(path: str, directory: epath.Path) -> str:
    """Returns the address of a file in a page of a directory."""
    if "://" in path:
        return path
    if "://" in os.fspath(directory):
        return "file://" + urllib.parse.quote(os.path.abspath(path))
    relative = os.path.relpath(path, os.path.abspath(os.fspath(directory)))
    # Before a colon there would stand a scheme.
    return urllib.parse.quote(relative if relative.startswith(".") else f"./{relative}")
