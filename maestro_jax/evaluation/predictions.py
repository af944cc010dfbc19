"""Predictions of a model: one JSON line per utterance."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping

from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import as_path, write_atomically


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


def merge(
    predictions: Iterable[Prediction], rows: Mapping[str, str] | None = None
) -> tuple[list[Prediction], int]:
    """Sorts predictions by direction and id, and keeps each utterance once.

    The first prediction of an utterance counts: a part of a test set may have been decoded twice
    before and after an interruption.

    Args:
        predictions: Predictions of any directions, in any order.
        rows: Names of rows of a table by task, where they are not the directions; utterances of
            different rows may share their ids.

    Returns:
        The predictions, and how many repeats were left out.

    Raises:
        UserError: If two utterances of a direction or row share an id.
    """
    merged: dict[tuple[str, str], Prediction] = {}
    repeats = 0
    for prediction in predictions:
        key = ((rows or {}).get(prediction.task, prediction.direction), prediction.id)
        known = merged.setdefault(key, prediction)
        if known is prediction:
            continue
        places = {(each.task, each.index) for each in (known, prediction) if each.index >= 0}
        if len(places) > 1:
            (task, first), (other, second) = sorted(places)
            raise UserError(
                f"examples {first} and {second} of task {task!r} have the same id "
                f"{prediction.id!r}; give each its own id, or remove the feature, and examples "
                "are numbered."
                if task == other
                else f"tasks {task!r} and {other!r} both have an example {prediction.id!r} in "
                f"{prediction.direction!r}; score them separately: --task {task} --task {other}."
            )
        if known.reference != prediction.reference:
            raise UserError(
                f"two utterances of {prediction.direction} have the id {prediction.id!r} and "
                "different references; give every utterance of a test set its own id"
            )
        repeats += 1
    return [merged[key] for key in sorted(merged)], repeats


def write_predictions(predictions: Iterable[Prediction], path: epath.PathLike) -> None:
    """Writes one JSON object per line; `read_predictions` reads them back."""
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(_to_line(prediction) + "\n" for prediction in predictions)
    write_atomically(path, content.encode())


def read_predictions(path: epath.PathLike) -> list[Prediction]:
    """Reads what `write_predictions` wrote, to score it again without decoding.

    Raises:
        UserError: The file is missing, or one of its lines is not a prediction.
    """
    try:
        text = as_path(path).read_bytes().decode()
    except OSError as error:
        raise UserError(f"cannot read predictions from {path}: {error.strerror}") from error
    return _from_lines(text, str(path))


def _to_line(prediction: Prediction) -> str:
    values = {
        field.name: getattr(prediction, field.name)
        for field in dataclasses.fields(prediction)
        # What is not known needs no room in files of many thousand lines.
        if field.default is dataclasses.MISSING
        or getattr(prediction, field.name) != field.default
        or field.name == "target_language"
    }
    return json.dumps(values, ensure_ascii=False)


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
