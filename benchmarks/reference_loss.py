"""Reference of the transducer loss and its gradient in float64, node by node.

It is an independent implementation of the definition (Graves 2012, equations 16 to 20).
"""

from __future__ import annotations

import itertools

import numpy as np


def reference(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes loss and gradient of full-length examples.

    Args:
        logits: `[batch, frames, labels + 1, vocab]`, blank 0.
        labels: `[batch, labels]`.

    Returns:
        Nats `[batch]`, and the gradient of their sum, `[batch, frames, labels + 1, vocab]`, both
        float64.
    """
    batch, frames, width, _ = logits.shape
    log_softmax = logits.astype(np.float64)
    log_softmax -= np.logaddexp.reduce(log_softmax, axis=-1, keepdims=True)
    index = labels[:, None, :, None]
    blank = log_softmax[..., 0]
    label = np.take_along_axis(log_softmax[:, :, :-1], index, axis=-1)[..., 0]

    alpha = np.full((batch, frames, width), -np.inf)
    alpha[:, 0, 0] = 0.0
    beta = np.full((batch, frames + 1, width + 1), -np.inf)
    beta[:, frames, width - 1] = 0.0
    for t, u in itertools.product(range(frames), range(width)):
        if t:
            alpha[:, t, u] = alpha[:, t - 1, u] + blank[:, t - 1, u]
        if u:
            alpha[:, t, u] = np.logaddexp(alpha[:, t, u], alpha[:, t, u - 1] + label[:, t, u - 1])
    for t, u in itertools.product(reversed(range(frames)), reversed(range(width))):
        beta[:, t, u] = beta[:, t + 1, u] + blank[:, t, u]
        if u < width - 1:
            beta[:, t, u] = np.logaddexp(beta[:, t, u], beta[:, t, u + 1] + label[:, t, u])
    log_likelihood = beta[:, 0, 0]

    rest = alpha - log_likelihood[:, None, None]
    by_blank = np.exp(rest + blank + beta[:, 1:, :-1])
    by_label = np.exp(rest[:, :, :-1] + label + beta[:, :-1, 1:-1])
    through = by_blank.copy()
    through[:, :, :-1] += by_label
    gradient = np.exp(log_softmax)
    gradient *= through[..., None]
    gradient[..., 0] -= by_blank
    picked = np.take_along_axis(gradient[:, :, :-1], index, axis=-1)
    np.put_along_axis(gradient[:, :, :-1], index, picked - by_label[..., None], axis=-1)
    return -log_likelihood, gradient
