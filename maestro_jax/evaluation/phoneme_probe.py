"""How well phonemes can be read from the frames of an encoder that is not trained for it.

Each frame is labelled with the phoneme that sounds at its centre. A linear map from features to
phonemes is fitted to the frames of some utterances by least squares, the encoder being frozen, and
judged on utterances of other voices: the share of frames whose phoneme it names. What an encoder
with random weights gives, and what log-mel features give, are the floors: a linear map reads much
from either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from maestro_jax.modules.frontend import stack_frames
from maestro_jax.modules.maestro import Maestro

if TYPE_CHECKING:
    from maestro_jax.minivox.corpus import Example

LAYERS = ("log-mel", "speech encoder", "shared encoder")
"""What is probed: log-mel frames stacked to the encoder's rate, e_s, and the shared encoder's."""
_RIDGE = 1e-3


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """What a probe got right.

    Attributes:
        share: Of the test frames, those whose phoneme was named.
        majority: Of the test frames, those of the training frames' most frequent phoneme.
        frames: Number of test frames.
        phonemes: Number of phonemes told apart, the pause included.
    """

    share: float
    majority: float
    frames: int
    phonemes: int


def frame_phonemes(example: Example, model: Maestro) -> list[str]:
    """The phoneme at the centre of each encoder frame of an utterance.

    Args:
        example: With `audio` and the `phonemes` in it.
        model: A `Maestro`, whose frames these are.

    Returns:
        IPA symbols, empty for a pause; as many as the encoder has frames.
    """
    frontend, factor = model.frontend, model.subsampling.factor
    count = model.subsampling.frame_count(frontend.frame_count(len(example.audio)))
    # The middle of the stretch that the windows of a frame's log-mel features cover.
    first = (frontend.window + (factor - 1) * frontend.hop) / 2
    centres = first + factor * frontend.hop * np.arange(count)
    ends = [phoneme.end for phoneme in example.phonemes]
    places = np.minimum(np.searchsorted(ends, centres, side="right"), len(ends) - 1)
    return [example.phonemes[place].symbol for place in places]


def frame_features(
    model: Maestro, params: Any, examples: Sequence[Example], *, samples: int, batch: int = 16
) -> dict[str, np.ndarray]:
    """What each of `LAYERS` gives for the frames of utterances, without masks or dropout.

    Args:
        model: A `Maestro`.
        params: Its parameters.
        examples: The utterances.
        samples: The padded length of their audio; none is longer.
        batch: Utterances at a time.

    Returns:
        `[frames, features]` by layer, the frames of all utterances one after the other.
    """

    @jax.jit
    def encode(audio: jax.Array, lengths: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        bound = model.bind({"params": params})
        mel, mel_lengths = bound.log_mel(audio, lengths)
        features, mask = bound.subsample(mel, mel_lengths)
        unknown = jnp.full(lengths.shape, -1, jnp.int32)
        encoded = bound.encode_speech(features, mask, unknown)
        context = bound.encode_shared(encoded, mask, None, unknown)
        stacked = stack_frames(mel, model.subsampling.factor)
        return mask, (stacked, encoded, context)

    found: dict[str, list[np.ndarray]] = {layer: [] for layer in LAYERS}
    for start in range(0, len(examples), batch):
        some = examples[start : start + batch]
        audio = np.zeros((batch, samples), np.int16)
        lengths = np.zeros(batch, np.int32)
        for row, example in enumerate(some):
            audio[row, : len(example.audio)] = example.audio
            lengths[row] = len(example.audio)
        mask, layers = encode(audio, lengths)
        valid = np.asarray(mask)
        for layer, values in zip(LAYERS, layers, strict=True):
            found[layer].append(np.asarray(values)[valid])
    return {layer: np.concatenate(parts) for layer, parts in found.items()}


def linear_probe(
    train: np.ndarray,
    train_labels: Sequence[str],
    test: np.ndarray,
    test_labels: Sequence[str],
) -> Accuracy:
    """Fit a linear map to one-hot labels by ridge regression, in float64, and judge it.

    Args:
        train: `[frames, features]` to fit to.
        train_labels: The phoneme of each.
        test: `[frames, features]` to judge by.
        test_labels: The phoneme of each; one that does not occur in training counts as missed.

    Returns:
        What it got right.
    """
    symbols, labels = np.unique(train_labels, return_inverse=True)
    mean, deviation = train.mean(0, np.float64), train.std(0, dtype=np.float64) + 1e-6

    def inputs(features: np.ndarray) -> np.ndarray:
        scaled = (features.astype(np.float64) - mean) / deviation
        return np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)

    x = inputs(train)
    penalty = _RIDGE * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(x.T @ x + penalty, x.T @ np.eye(len(symbols))[labels])
    named = symbols[np.argmax(inputs(test) @ weights, axis=1)]
    wanted = np.asarray(test_labels)
    return Accuracy(
        share=float(np.mean(named == wanted)),
        majority=float(np.mean(symbols[np.bincount(labels).argmax()] == wanted)),
        frames=len(wanted),
        phonemes=len(symbols),
    )


def probe_encoder(
    model: Maestro,
    params: Any,
    train: Sequence[Example],
    test: Sequence[Example],
    *,
    samples: int,
) -> Mapping[str, Accuracy]:
    """The accuracy of a linear probe of each of `LAYERS`.

    Args:
        model: A `Maestro`.
        params: Its parameters.
        train: Utterances that the probe is fitted to.
        test: Utterances, best of other voices, that it is judged by.
        samples: The padded length of their audio; none is longer.
    """
    features = [frame_features(model, params, each, samples=samples) for each in (train, test)]
    labels = [
        [symbol for example in each for symbol in frame_phonemes(example, model)]
        for each in (train, test)
    ]
    return {
        layer: linear_probe(features[0][layer], labels[0], features[1][layer], labels[1])
        for layer in LAYERS
    }
