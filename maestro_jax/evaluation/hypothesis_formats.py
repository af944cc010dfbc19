"""Hypotheses in the formats of other tools: text, sclite's three, the Open ASR leaderboard.

sclite's formats hold transcripts as they are scored, normalised, so that it counts the same errors.
Plain text and the manifest of the leaderboard, whose readers normalise by rules of their own, hold
texts as they are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from maestro_jax.errors import UserError, near_misses
from maestro_jax.evaluation.predictions import Prediction
from maestro_jax.files import as_path, write_atomically
from maestro_jax.text.normalizers import normalize

Files = Mapping[str, str]
"""Contents by the names of files."""

_CHANNEL = "1"
_SHORTEST_WORD = 0.01
# White space ends an id, parentheses enclose it, and a semicolon begins a comment.
_NO_ID = re.compile(r"[\s();<>]+")


def txt(predictions: Sequence[Prediction], name: str) -> Files:
    """Formats plain text: one line per utterance, and the references beside it.

    `sacrebleu NAME.ref.txt -i NAME.hyp.txt` reads them.

    Returns:
        `NAME.hyp.txt`, `NAME.ref.txt`.
    """
    return {
        f"{name}.{side}.txt": "".join(
            " ".join(getattr(each, field).split()) + "\n" for each in predictions
        )
        for side, field in (("hyp", "hypothesis"), ("ref", "reference"))
    }


def trn(predictions: Sequence[Prediction], name: str) -> Files:
    """Formats sclite's transcripts: words, then the id of the utterance in parentheses.

    `sclite -r NAME.ref.trn trn -h NAME.hyp.trn trn -i rm -e utf-8` scores them; what it calls a
    speaker is the language.

    Returns:
        `NAME.hyp.trn`, `NAME.ref.trn`.

    Source: SCTK, doc/infmts.htm, "trn".
    """
    ids = _ids(_transcripts(predictions, "trn"))

    def lines(field: str) -> str:
        texts = [normalize(getattr(each, field), each.language) for each in predictions]
        return "".join(
            f"{text} ({each.language}-{identity})\n".lstrip()
            for text, each, identity in zip(texts, predictions, ids, strict=True)
        )

    return {f"{name}.hyp.trn": lines("hypothesis"), f"{name}.ref.trn": lines("reference")}


def stm(predictions: Sequence[Prediction], name: str) -> Files:
    """Formats sclite's references with times: each utterance is a recording of its own.

    A line has the recording, the channel, the speaker (here the language), begin and end in seconds
    and the words.

    Returns:
        `NAME.stm`.

    Raises:
        UserError: The duration of an utterance is not known.

    Source: SCTK, doc/infmts.htm, "stm".
    """
    ids = _ids(_transcripts(predictions, "stm"))
    lines = []
    for each, identity in zip(predictions, ids, strict=True):
        if not each.seconds > 0:
            raise UserError(
                f"the format stm needs the duration of the audio, which that of {each.id!r} has "
                "not: these hypotheses are of an earlier version; evaluate again"
            )
        words = normalize(each.reference, each.language)
        lines.append(
            f"{identity} {_CHANNEL} {each.language} 0.00 {each.seconds:.2f} {words}".rstrip() + "\n"
        )
    return {f"{name}.stm": "".join(sorted(lines))}


def ctm(predictions: Sequence[Prediction], name: str) -> Files:
    """Formats sclite's words with times, which it scores against `stm`.

    A line has the recording, the channel, begin and duration in seconds, the word and a confidence:
    the probability of the word under the decoder. A word ends where the next begins, the last with
    the audio. `sclite -r NAME.stm stm -h NAME.ctm ctm -e utf-8` scores it.

    Returns:
        `NAME.ctm`.

    Raises:
        UserError: The decoder gave no times of words.

    Source: SCTK, doc/infmts.htm, "ctm".
    """
    ids = _ids(_transcripts(predictions, "ctm"))
    rows: list[tuple[str, float, str]] = []
    for each, identity in zip(predictions, ids, strict=True):
        starts = [start for _, start, _ in each.words if start is not None]
        if len(starts) < len(each.words) or (each.hypothesis.strip() and not starts):
            raise UserError(
                f"the format ctm needs the times of words, which those of {each.id!r} do not have: "
                "decode with --decoder transducer or ctc"
            )
        ends = [*starts[1:], max([each.seconds, *starts])][: len(starts)]
        for (text, _, score), start, end in zip(each.words, starts, ends, strict=True):
            words = normalize(text, each.language).split()
            length = max((end - start) / max(len(words), 1), _SHORTEST_WORD)
            for place, word in enumerate(words):
                begin = start + place * length
                rows.append(
                    (
                        identity,
                        begin,
                        f"{identity} {_CHANNEL} {begin:.2f} {length:.2f} {word} "
                        f"{math.exp(min(score, 0.0)):.4f}\n",
                    )
                )
        if not starts:
            # sclite demands each recording of the references; @ is its word of no letters.
            rows.append((identity, 0.0, f"{identity} {_CHANNEL} 0.00 {_SHORTEST_WORD} @\n"))
    return {f"{name}.ctm": "".join(line for *_, line in sorted(rows))}


def open_asr_manifest(
    predictions: Sequence[Prediction],
    name: str,
    *,
    model: str = "model",
    decoding_seconds: float | None = None,
) -> Files:
    """Formats the manifests that `score_results` of the Open ASR leaderboard reads.

    One JSON object per utterance: `audio_filepath` (here the id), `duration` and `time` in seconds,
    `text` and `pred_text`. As its own scripts do, the time of a batch is divided among its
    utterances, here by their durations.

    Args:
        predictions: References and hypotheses.
        name: Name of the test set, whose last part is the split: `maestro_voxpopuli_paired.test`.
        model: Name of the model.
        decoding_seconds: What decoding took; None writes no times, so that no RTFx is computed.

    Returns:
        `MODEL_maestro_jax-<model>_DATASET_<test set>_<language>_<split>.jsonl`, one per language.

    Source: huggingface/open_asr_leaderboard, normalizer/eval_utils.py: `write_manifest`.
    """
    dataset, _, split = name.rpartition(".")
    total = sum(each.seconds for each in predictions)
    lines: dict[str, list[str]] = {}
    for each in _transcripts(predictions, "openasr"):
        time = decoding_seconds * each.seconds / total if decoding_seconds and total else None
        record = {
            "audio_filepath": each.id,
            "duration": each.seconds or None,
            "time": time,
            "text": each.reference,
            "pred_text": each.hypothesis,
        }
        lines.setdefault(each.language, []).append(json.dumps(record, ensure_ascii=False) + "\n")
    # Slashes would be folders, and the first - ends the name of the author.
    model = re.sub(r"[^\w.-]+", "-", model)
    return {
        f"MODEL_maestro_jax-{model}_DATASET_{dataset or name}_{language}_{split}.jsonl": "".join(
            members
        )
        for language, members in sorted(lines.items())
    }


FORMATS: Mapping[str, Callable[..., Files]] = {
    "txt": txt,
    "trn": trn,
    "stm": stm,
    "ctm": ctm,
    "openasr": open_asr_manifest,
}
"""The formats by name."""


def check_formats(names: Sequence[str]) -> None:
    """Raises an error for a format that there is not.

    Raises:
        UserError: With the near misses.
    """
    for name in names:
        if name not in FORMATS:
            raise UserError(
                f"there is no format {name!r} of hypotheses; there are {', '.join(FORMATS)}."
                f"{near_misses(name, FORMATS)}"
            )


def write_formats(
    directory: epath.PathLike,
    name: str,
    predictions: Sequence[Prediction],
    formats: Sequence[str],
    *,
    model: str = "model",
    decoding_seconds: float | None = None,
) -> list[epath.Path]:
    """Writes hypotheses in some formats.

    Args:
        directory: Directory of the files.
        name: Name of the test set.
        predictions: References and hypotheses.
        formats: Names of formats.
        model: Name of the model, for the manifest of the leaderboard.
        decoding_seconds: What decoding took, for the same.

    Returns:
        The paths of the files.

    Raises:
        UserError: There is no such format, or it needs what these hypotheses do not have.
    """
    check_formats(formats)
    files: dict[str, str] = {}
    # All are made before one is written.
    for each in formats:
        options = {"model": model, "decoding_seconds": decoding_seconds}
        files |= FORMATS[each](predictions, name, **(options if each == "openasr" else {}))
    directory = as_path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        write_atomically(directory / file, content.encode())
    return [directory / file for file in files]


def _transcripts(predictions: Sequence[Prediction], format_name: str) -> Sequence[Prediction]:
    if any(each.target_language for each in predictions):
        raise UserError(
            f"the format {format_name} is for transcripts; translations can be written as txt"
        )
    return predictions


def _ids(predictions: Sequence[Prediction]) -> list[str]:
    """Returns ids that sclite takes, each of them once."""
    seen: dict[str, int] = {}
    ids = []
    for each in predictions:
        identity = _NO_ID.sub("_", each.id)
        # Several languages may share an id; sclite does not tell upper from lower case.
        key = identity.lower()
        seen[key] = seen.get(key, 0) + 1
        ids.append(identity if seen[key] == 1 else f"{identity}#{seen[key]}")
    return ids
