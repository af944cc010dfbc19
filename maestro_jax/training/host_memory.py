"""The memory of this process, and a warning when it keeps growing."""

from __future__ import annotations

import logging
import os
import pathlib
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING

from maestro_jax.training.callbacks import Callback, LogWindow

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer

log = logging.getLogger(__name__)

_GIB = 2**30
# Log points before caches, compiled programs and buffers of the input are as large as they get, and
# those of which the smallest counts, because memory goes up and down.
_WARM_UP, _RECENT = 10, 5


def anonymous_memory() -> int | None:
    """Returns the bytes that this process holds, without files that are mapped; None if unknown.

    Mapped files, such as shards, leave memory by themselves when it becomes scarce.
    """
    status = pathlib.Path("/proc/self/status")
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return None


class HostMemory(Callback):
    """Logs the memory of the process, and warns when it grows.

    Args:
        growth: Growth since the tenth log point, as a share and in bytes, from which to warn; both
            must be reached. Each further growth of this size is a further warning.
    """

    def __init__(self, growth: tuple[float, int] = (0.25, _GIB)) -> None:
        self._growth = growth
        self._points: list[tuple[int, int]] = []
        self._reference: tuple[int, int] | None = None

    def log_values(self, trainer: Trainer, window: LogWindow) -> Mapping[str, float]:
        """Measures the memory at a log point."""
        memory = anonymous_memory()
        if memory is None:
            return {}
        if warning := self.judge(window.step, memory):
            log.warning("%s", warning)
        return {"host_memory_gib": memory / _GIB}

    def judge(self, step: int, memory: int) -> str | None:
        """Takes down the memory at a log point.

        Args:
            step: The step.
            memory: Bytes.

        Returns:
            A line of warning, if there is reason for one.
        """
        self._points = [*self._points[-(_WARM_UP - 1) :], (step, memory)]
        if len(self._points) < _WARM_UP:
            return None
        if self._reference is None:
            recent = self._points[-_RECENT:]
            self._reference = (step, int(statistics.median(m for _, m in recent)))
        (before, reference), (share, least) = self._reference, self._growth
        now = min(m for _, m in self._points[-_RECENT:])
        if now - reference < max(share * reference, least):
            return None
        self._reference = (step, now)
        rate = (now - reference) / max(step - before, 1)
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return (
            f"the memory of this process grew from {reference / _GIB:.1f} GiB at step {before} to "
            f"{now / _GIB:.1f} GiB at step {step}, {1000 * rate / _GIB:.2f} GiB per 1000 steps; at "
            f"this rate the {total / _GIB:.0f} GiB of the machine are full at step "
            f"{step + max(total - now, 0) / rate:.0f}. Look for what the callbacks and "
            "preprocessors of the run keep."
        )
