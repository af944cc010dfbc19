"""A transducer whose logits are a table of arbitrary numbers, and slow searches of it in float64.

Every pair of a frame and a label sequence has logits of its own, so nothing about a search follows
from structure that a network happens to have.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class TableTransducer:
    """Logits `[batch, frames, codes, vocab]`; the code of labels is the number that they spell."""

    logits: np.ndarray
    blank_id: int = 0
    hat: bool = False
    one_label_per_frame: bool = False

    @classmethod
    def random(cls, seed, batch=2, frames=4, vocab=3, labels=3, scale=1.5, bias=0.0, **options):
        rng = np.random.default_rng(seed)
        logits = scale * rng.normal(size=(batch, frames, vocab ** (labels + 1), vocab))
        logits[..., options.get("blank_id", 0)] += bias
        return cls(logits.astype(np.float32), **options)

    @property
    def encoded(self):
        """Frames that name themselves: `[batch, frames, 1]`."""
        batch, frames = self.logits.shape[:2]
        return jnp.arange(batch * frames, dtype=jnp.float32).reshape(batch, frames, 1)

    @functools.cached_property
    def networks(self):
        """The prediction network, the joint network and the first state."""
        batch, frames, codes, vocab = self.logits.shape
        table = jnp.asarray(self.logits.reshape(batch * frames, codes, vocab))

        def predict(state, labels):
            code = (state["code"] * vocab + labels) % codes
            return code[:, None], {"code": code}

        def joint(frame, outputs):
            return table[frame[:, 0].astype(int), outputs[:, 0]]

        return predict, joint, {"code": jnp.zeros(batch, jnp.int32)}

    def code(self, labels):
        vocab = self.logits.shape[-1]
        return functools.reduce(lambda code, label: code * vocab + label, labels, self.blank_id)

    def arcs(self, row, frame, labels):
        """Log-probabilities `[vocab]` in float64."""
        z = self.logits[row, frame, self.code(labels)].astype(np.float64)
        if not self.hat:
            return z - np.logaddexp.reduce(z)
        blank = z[self.blank_id]
        z = np.where(np.arange(len(z)) == self.blank_id, -np.inf, z)
        z = z - np.logaddexp.reduce(z) - np.logaddexp(0.0, blank)
        z[self.blank_id] = -np.logaddexp(0.0, -blank)
        return z

    def extensions(self, row, frame, labels, max_labels):
        """Next frame, next labels and score of every arc."""
        scores = self.arcs(row, frame, labels)
        yield frame + 1, labels, scores[self.blank_id]
        if len(labels) < max_labels:
            for v in range(len(scores)):
                if v != self.blank_id:
                    yield frame + self.one_label_per_frame, (*labels, v), scores[v]

    def paths(self, row, frames, max_labels):
        """Every path: labels, score, and frame and score of each label."""

        def walk(frame, labels, score, emissions):
            if frame == frames:
                yield labels, score, emissions
                return
            for to, longer, gain in self.extensions(row, frame, labels, max_labels):
                emitted = emissions + ((frame, gain),) * (len(longer) > len(labels))
                yield from walk(to, longer, score + gain, emitted)

        yield from walk(0, (), 0.0, ())

    def beam_search(self, row, frames, max_labels, beam_size, *, merge_first=True, extra=None):
        """Alignment-synchronous search with dictionaries; label sequence to score, best first.

        `extra` is what fusion adds to a label sequence. Without `merge_first`, the beam is pruned
        before equal label sequences are added up.
        """
        extra = extra or (lambda labels, ended: 0.0)
        active, finished = [((), 0, 0.0)] if frames else [], [] if frames else [((), 0.0)]
        while active:
            grown = [
                (longer, to, score + gain)
                for labels, frame, score in active
                for to, longer, gain in self.extensions(row, frame, labels, max_labels)
            ]
            rank = lambda item: -item[2] - extra(item[0], False)  # noqa: E731
            if not merge_first:
                grown = sorted(grown, key=rank)[:beam_size]
            merged = {}
            for labels, frame, score in grown:
                known = merged.get((labels, frame), -math.inf)
                merged[labels, frame] = float(np.logaddexp(known, score))
            kept = sorted(((*key, score) for key, score in merged.items()), key=rank)[:beam_size]
            active = [item for item in kept if item[1] < frames]
            finished += [(labels, score) for labels, frame, score in kept if frame == frames]
        finished.sort(key=lambda item: -item[1] - extra(item[0], True))
        return finished[:beam_size]


def listed(found, row, place=None):
    """The tokens, frames, token scores of a hypothesis without what is after the end."""
    at = (row,) if place is None else (row, place)
    length = int(found.lengths[at])
    assert not np.any(found.frames[at][length:])
    assert not np.any(found.token_scores[at][length:])
    return (
        tuple(found.tokens[at][:length].tolist()),
        found.frames[at][:length].tolist(),
        found.token_scores[at][:length].tolist(),
    )
