"""Texts that a corpus publishes normalised: words between spaces, in upper or lower case."""

from __future__ import annotations


def plain_text(published: str) -> str:
    """A normalised text as models read and write it.

    Apostrophes at the ends of words (`'tis`) and hyphens within them stay: what the corpus has
    decided about them is what its published error rates were counted on.

    Args:
        published: Without punctuation, in upper or lower case.

    Returns:
        Lower case, single spaces between the words.
    """
    return " ".join(published.lower().split())
