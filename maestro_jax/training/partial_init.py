"""Which parameters of a checkpoint a model begins with, and the account of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

REPORT_FILE = "init_report.txt"
_SCANNED = re.compile(r"(.*/)?layers(/.*)")
_UNROLLED = re.compile(r"(.*/)?layer_\d+(/.*)")


@dataclasses.dataclass(frozen=True)
class PartialRestoreReport:
    """What became of each parameter in a partial restore.

    Attributes:
        loaded: Names of the parameters that were read.
        skipped: Names in the checkpoint that were not read, each with the reason.
        new: Names in the model that keep their initial value.
        copied: Names in the model that hold durations (`modules.held_durations`), with the values
            that the parameters they are copies of begin with.
    """

    loaded: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    new: tuple[str, ...]
    copied: tuple[str, ...] = ()

    def summary(self) -> str:
        """The report by module: counts, and one example of what was skipped in each."""
        lines = [self._counts()]
        for module in sorted({_module(name) for name in self._names()}):
            loaded = [name for name in self.loaded if _module(name) == module]
            skipped = [pair for pair in self.skipped if _module(pair[0]) == module]
            new = [name for name in self.new if _module(name) == module]
            copied = [name for name in self.copied if _module(name) == module]
            all_counts = (
                (loaded, "loaded"),
                (skipped, "skipped"),
                (new, "new"),
                (copied, "copied to hold durations"),
            )
            counts = [f"{len(names)} {what}" for names, what in all_counts if names]
            line = f"  {module}: {', '.join(counts)}"
            if skipped:
                name, reason = skipped[0]
                line += f" ({name}: {reason}{', ...' if len(skipped) > 1 else ''})"
            lines.append(line)
        return "\n".join(lines)

    def text(self) -> str:
        """The whole report, a parameter a line."""
        return "\n".join(
            [
                self._counts(),
                "",
                "loaded: in the checkpoint and in the model",
                *(f"  {name}" for name in self.loaded),
                "",
                "skipped: in the checkpoint, and not taken over",
                *(f"  {name}: {reason}" for name, reason in self.skipped),
                "",
                "new: in the model, with their initial values",
                *(f"  {name}" for name in self.new),
                "",
                "copied: in the model, to hold the durations with which it begins",
                *(f"  {name}" for name in self.copied),
                "",
            ]
        )

    def _counts(self) -> str:
        return (
            f"{len(self.loaded)} parameters loaded, {len(self.skipped)} skipped, "
            f"{len(self.new)} new"
        )

    def _names(self) -> tuple[str, ...]:
        return (*self.loaded, *(name for name, _ in self.skipped), *self.new, *self.copied)


def reason_to_skip(
    name: str,
    shape: tuple[int, ...],
    wanted: Mapping[str, Any],
    *,
    include: Sequence[str],
    exclude: Sequence[str],
) -> str | None:
    """Why a parameter of a checkpoint is not taken over; None if it is.

    Args:
        name: Its name.
        shape: Its shape.
        wanted: The model's parameters by name.
        include: Regular expressions of what may be taken over.
        exclude: Regular expressions of what may not.
    """
    if any(re.fullmatch(pattern, name) for pattern in exclude):
        return "excluded by init_exclude"
    if not any(re.fullmatch(pattern, name) for pattern in include):
        return "not in init_include"
    if name not in wanted:
        return _stacked_otherwise(name, wanted) or "not in this model"
    here = tuple(wanted[name].shape)
    if here != shape:
        return f"shape {shape} there, {here} here"
    return None


def _stacked_otherwise(name: str, wanted: Mapping[str, Any]) -> str | None:
    """The reason if checkpoint and model hold the layers of a stack in different ways."""
    scanned = _SCANNED.fullmatch(name)
    if scanned and f"{scanned[1] or ''}layer_0{scanned[2]}" in wanted:
        return "all layers in one array there, an array a layer here: set scan = True for the stack"
    unrolled = _UNROLLED.fullmatch(name)
    if unrolled and f"{unrolled[1] or ''}layers{unrolled[2]}" in wanted:
        return (
            "an array a layer there, all layers in one array here: set scan = False for the stack"
        )
    return None


def _module(name: str) -> str:
    return name.split("/")[0]
