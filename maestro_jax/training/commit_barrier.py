"""The barrier of Orbax's threads, which ends when another process could not write its part.

Orbax commits a checkpoint when all processes have written their parts. With its own barrier, a
process that cannot write and those that wait for it notice each other after 20 minutes.
"""

from __future__ import annotations

import collections
import itertools
import time
from typing import Any

import jax
from jax._src import distributed  # There is no public way to the client.

_POLL_SECONDS = 0.05
# What Orbax calls the end of a commit, and the value that it sets before and after saving.
_COMMITTED, _PROGRESS = "async_commit_complete", "set_value"


class CommitBarrier:
    """Lets threads of several processes wait for each other while a checkpoint is written.

    An object of it is the `barrier_sync_fn` of Orbax's `AsyncOptions`.
    """

    _numbers = itertools.count()

    def __init__(self) -> None:
        # The same on all processes, which make their objects in the same order.
        self._number = next(self._numbers)
        self._attempt = 0
        self._uses: collections.Counter[str] = collections.Counter()
        self._is_committed = False

    def begin(self) -> None:
        """Begins another checkpoint; to be called by all processes, when none is being written."""
        if jax.process_index() == 0 and self._attempt > 1 and jax.process_count() > 1:
            _client().key_value_delete(f"{self._place(self._attempt - 1)}/")
        self._attempt += 1
        self._uses.clear()
        self._is_committed = False

    def fail(self) -> None:
        """Tells the threads of other processes that this one will not come."""
        if jax.process_count() > 1:
            process = jax.process_index()
            _client().key_value_set(f"{self._failed()}{process}", "", allow_overwrite=True)

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits until all processes have called this with the same key, as often.

        Raises:
            TimeoutError: They have not in time, or one of them failed.
        """
        if jax.process_count() == 1:
            return
        number = self._uses[key]
        self._uses[key] += 1
        if _PROGRESS in key and number > 0 and not self._is_committed:
            # After saving, and it was not committed: this process failed, or saw another one fail.
            self.fail()
            return
        place = f"{self._place(self._attempt)}/{key}/{number}/"
        _client().key_value_set(f"{place}{jax.process_index()}", "", allow_overwrite=True)
        deadline = time.monotonic() + timeout_ms / 1000
        while len(_client().key_value_dir_get(place)) < jax.process_count():
            if failed := _client().key_value_dir_get(self._failed()):
                process = failed[0][0].rsplit("/", 1)[1]
                raise TimeoutError(f"process {process} could not write its part; its log says why")
            if time.monotonic() > deadline:
                raise TimeoutError("a process has not written its part; its log may say why")
            time.sleep(_POLL_SECONDS)
        if _COMMITTED in key:
            self._is_committed = True

    def _failed(self) -> str:
        return f"{self._place(self._attempt)}/failed/"

    def _place(self, attempt: int) -> str:
        return f"maestro_checkpoint/{self._number}/{attempt}"


def _client() -> Any:
    return distributed.global_state.client
