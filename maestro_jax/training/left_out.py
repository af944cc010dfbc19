"""The batches that a run leaves out: which batch of the data each step takes.

The batches of a run have numbers: batch *n* is the one of step *n* in a run that leaves none out.
A run that rolls back (`health`) leaves out the batches that spoiled it. Which those are belongs to
every checkpoint and to the file ``left_out.jsonl`` in the model directory, so that a restarted run
takes the batches that the run would have taken without the interruption.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import write_atomically

LEFT_OUT_FILE = "left_out.jsonl"


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """The numbers of the batches that no step takes.

    Attributes:
        ranges: First and last number of each range, from 1; kept in order and without overlap.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges, and joins those that touch."""
        joined: list[tuple[int, int]] = []
        for pair in sorted(tuple(each) for each in self.ranges):
            if len(pair) != 2 or not all(isinstance(n, int) for n in pair) or pair[0] < 1:
                raise UserError(
                    f"leave_out_batches has {pair!r}; give the first and the last number of each "
                    "range of batches, from 1."
                )
            first, last = pair
            if last < first:
                raise UserError(
                    f"leave_out_batches has {pair!r}, which ends before it begins; swap the two."
                )
            if joined and first <= joined[-1][1] + 1:
                first, last = joined[-1][0], max(joined.pop()[1], last)
            joined.append((first, last))
        object.__setattr__(self, "ranges", tuple(joined))

    def __or__(self, other: LeftOut) -> LeftOut:
        """Returns what either leaves out."""
        return LeftOut(self.ranges + other.ranges)

    def batch_of(self, step: int) -> int:
        """Returns the number of the batch that a step takes, both from 1."""
        number = step
        for first, last in self.ranges:
            if number < first:
                break
            number += last - first + 1
        return number


class BatchesLeavingOut:
    """An iterator over the batches of a run from a step on; those left out are not even read.

    Args:
        batches: Function of the number of batches before that returns an iterator of batches.
        left_out: The batches to leave out.
        done: Number of steps done.
    """

    def __init__(
        self, batches: Callable[[int], Iterator[Any]], left_out: LeftOut, done: int
    ) -> None:
        self._source = batches
        self._left_out = left_out
        self._step = done + 1
        self._earlier: collections.Counter[str] = collections.Counter()
        self._open()

    def _open(self) -> None:
        self._number = self._left_out.batch_of(self._step)
        self._batches = self._source(self._number - 1)

    def __iter__(self) -> BatchesLeavingOut:
        return self

    def __next__(self) -> Any:
        if self._left_out.batch_of(self._step) != self._number:
            # Opened anew behind the range: what spoils a run may not even be readable.
            counters = self.counters
            self.close()
            self._earlier = collections.Counter(counters)
            self._open()
        batch = next(self._batches)
        self._step, self._number = self._step + 1, self._number + 1
        return batch

    @property
    def counters(self) -> Mapping[str, int]:
        """Returns the numbers of over-long examples so far, in this process."""
        return self._earlier + collections.Counter(getattr(self._batches, "counters", {}))

    @property
    def reading(self) -> str:
        """Returns what the batches wait for, for messages."""
        return getattr(self._batches, "reading", "")

    def close(self) -> None:
        """Stops reading."""
        if hasattr(self._batches, "close"):
            self._batches.close()


def read_left_out(model_dir: epath.Path) -> list[dict[str, Any]]:
    """Reads what a run has left out so far, by its file; empty where there is none.

    Raises:
        UserError: The file is not what `write_left_out` writes.
    """
    path = model_dir / LEFT_OUT_FILE
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        # The last line may tell why the run ended instead of rolling back once more.
        entries = [line for line in lines if line["rolled_back_to"] is not None]
        batches_of(entries)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); put it back as it was, or remove it to go by what the "
            "checkpoints say."
        ) from error
    return entries


def write_left_out(model_dir: epath.Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Writes what a run leaves out, a line for each time that it rolled back.

    Args:
        model_dir: The model directory.
        entries: JSON values: ``batches``, the first and the last one of a range;
            ``rolled_back_to``, a step; and whatever tells why.
    """
    lines = [json.dumps(dict(entry)) + "\n" for entry in entries]
    write_atomically(model_dir / LEFT_OUT_FILE, "".join(lines).encode())


def batches_of(entries: Sequence[Mapping[str, Any]]) -> LeftOut:
    """Returns the batches that entries of the file leave out."""
    return LeftOut(tuple((int(e["batches"][0]), int(e["batches"][1])) for e in entries))


def open_batches(
    batches: Callable[[int], Iterator[Any]], left_out: LeftOut, done: int
) -> Iterator[Any]:
    """Opens the batches that follow some steps; see `BatchesLeavingOut`."""
    return BatchesLeavingOut(batches, left_out, done) if left_out.ranges else batches(done)
