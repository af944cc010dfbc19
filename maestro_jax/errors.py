"""Errors that a user can cause, and the near misses that help to mend them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one line that names the input and the remedy.

    The command line prints it as ``error: ...`` without a traceback and exits with status 2.
    """


RESTART_EXIT_CODE = 75
"""Exit status after a `RestartableError`: EX_TEMPFAIL of sysexits.h, "try again later"."""


class RestartableError(Exception):
    """A trouble of the machine, the network or the storage, not of the input.

    The command line prints it as ``error: ...`` without a traceback and exits with status 75: the
    same command continues, and supervisors start it again. They give up on a `UserError`.
    """


def near_misses(word: str, candidates: Iterable[str], limit: int = 3) -> str:
    """A clause that names the candidates spelt most like a word.

    Args:
        word: What the user wrote.
        candidates: What would have been understood.
        limit: At most so many names.

    Returns:
        `` Did you mean 'x', 'y' or 'z'?`` with a leading space; empty if nothing is near.
    """
    matches = difflib.get_close_matches(word, list(candidates), n=limit, cutoff=0.5)
    if not matches:
        return ""
    *others, last = map(repr, matches)
    return f" Did you mean {', '.join(others)} or {last}?" if others else f" Did you mean {last}?"
