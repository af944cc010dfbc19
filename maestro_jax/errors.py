"""Errors that a user can cause, and the near misses that help to mend them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one line that names the input and the remedy.

    The command line prints it as ``error: ...`` without a traceback and exits with status 2.
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
