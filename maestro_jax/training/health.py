"""The health of a run: what is done about steps that would spoil the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from maestro_jax.training.callbacks import Callback, LogWindow

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer


class NonFiniteGuard(Callback):
    """Counts steps whose loss or gradient was not finite, and ends a run that will not recover.

    Args:
        max_consecutive: Number of such steps in a row, over whole log windows, that ends the run.
    """

    def __init__(self, max_consecutive: int = 100) -> None:
        self._max_consecutive = max_consecutive
        self._skipped = self._consecutive = 0

    def log_values(self, trainer: Trainer, window: LogWindow) -> Mapping[str, float]:
        """Counts the skipped steps of a window; the log has their number since the run began."""
        skipped = round(window.totals["skipped_steps"])
        self._skipped += skipped
        # Only the sum of a window is known: it continues a row if all of its steps were skipped.
        self._consecutive = self._consecutive + skipped if skipped == window.steps else 0
        return {"skipped_steps": float(self._skipped)}

    def on_log(self, trainer: Trainer, step: int, metrics: Mapping[str, float]) -> None:
        """Ends the run after too many skipped steps.

        Raises:
            FloatingPointError: No update was finite for a long time.
        """
        if self._consecutive >= self._max_consecutive:
            raise FloatingPointError(
                f"Loss or gradient of the last {self._consecutive} steps was not finite; lower "
                "the learning rate, or look at the data."
            )

    def state(self) -> Mapping[str, Any]:
        """Returns the counts."""
        return {"skipped_steps": self._skipped, "consecutive": self._consecutive}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores the counts."""
        self._skipped = int(state.get("skipped_steps", 0))
        self._consecutive = int(state.get("consecutive", 0))
