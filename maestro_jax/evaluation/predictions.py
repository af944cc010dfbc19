"""Predictions of a model: one JSON line per utterance, gathered from all processes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath

from maestro_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """The reference and the hypothesis of one utterance.

    Attributes:
        id: Id of the utterance, unique within its direction.
        language: ISO 639-1 code of the speech.
        target_language: Code of the language of a translation; empty for a transcript.
        reference: Transcript or translation as the corpus has it, not normalised.
        hypothesis: Text that the model wrote, not normalised.
        task: Name of the seqio task that the utterance is of.
        index: Its place in the split of the task; -1 where it is not known.
        seconds: Duration of the audio; 0 for a text.
        segments: Number of segments that over-long audio was cut into; 1 for what was decoded
            whole.
        score: Log-probability of the hypothesis under the decoder, nats.
        words: Words of the hypothesis: text, start in seconds (None where the decoder gives no
            times) and score in nats.
        speaker: Speaker, where the corpus names them.
        heard: Code of the language that the hypothesis is written in, where it was recognised.
    """

    id: str
    language: str
    target_language: str = ""
    reference: str
    hypothesis: str
    task: str = ""
    index: int = -1
    seconds: float = 0.0
    segments: int = 1
    score: float | None = None
    words: tuple[tuple[str, float | None, float], ...] = ()
    speaker: str = ""
    heard: str = ""

    def __post_init__(self) -> None:
        """Makes tuples of the words, which JSON has as lists."""
        object.__setattr__(self, "words", tuple(tuple(word) for word in self.words))

    @property
    def direction(self) -> str:
        """The row of a score table: `de`, or `de-en` for a translation."""
        if not self.target_language:
            return self.language
        return f"{self.language}-{self.target_language}"


def merge(predictions: Iterable[Prediction]) -> tuple[list[Prediction], int]:
    """Sorts predictions by direction and id, and keeps each utterance once.

    Shards of an evaluation may overlap (a host wraps around to fill its last batch); the first
    prediction of an utterance counts.

    Returns:
        The predictions, and how many repeats were left out.

    Raises:
        UserError: If two utterances of a direction share an id but not a reference.
    """
    merged: dict[tuple[str, str], Prediction] = {}
    repeats = 0
    for prediction in predictions:
        key = (prediction.direction, prediction.id)
        known = merged.setdefault(key, prediction)
        if known is prediction:
            continue
        if known.reference != prediction.reference:
            raise UserError(
                f"two utterances of {prediction.direction} have the id {prediction.id!r} and "
                "different references; give every utterance of a test set its own id"
            )
        repeats += 1
    return [merged[key] for key in sorted(merged)], repeats


def gather_across_processes(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Returns the predictions of all processes, on every process.

    This is a collective operation: every process must call it, also one without predictions.
    """
    import jax

    if jax.process_count() == 1:
        return list(predictions)
    from jax.experimental import multihost_utils

    encoded = "\n".join(map(_to_line, predictions)).encode()
    local = np.frombuffer(encoded, np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(local.size))).reshape(-1)
    padded = np.zeros(max(1, int(lengths.max())), np.uint8)
    padded[: local.size] = local
    everyone = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    gathered = []
    for row, length in zip(everyone, lengths, strict=True):
        gathered += _from_lines(row[:length].tobytes().decode(), "another process")
    return gathered


def write_predictions(predictions: Iterable[Prediction], path: epath.PathLike) -> None:
    """Writes one JSON object per line; `read_predictions` reads them back."""
    path = epath.Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(_to_line(prediction) + "\n" for prediction in predictions).encode())


def read_predictions(path: epath.PathLike) -> list[Prediction]:
    """Reads what `write_predictions` wrote, to score it again without decoding.

    Raises:
        UserError: The file is missing, or one of its lines is not a prediction.
    """
    try:
        text = epath.Path(path).expanduser().read_bytes().decode()
    except OSError as error:
        raise UserError(f"cannot read predictions from {path}: {error.strerror}") from error
    return _from_lines(text, str(path))


def _to_line(prediction: Prediction) -> str:
    return json.dumps(dataclasses.asdict(prediction), ensure_ascii=False)


def _from_lines(text: str, source: str) -> list[Prediction]:
    # Not splitlines(): a transcript may hold U+2028 and its like, which JSON leaves as they are.
    predictions = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            predictions.append(Prediction(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"line {number} of {source} is not a prediction; evaluate again to rewrite the file"
            ) from error
    return predictions
