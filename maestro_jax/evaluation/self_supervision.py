"""What self-supervised pretraining is worth, seen on utterances of voices that it has not heard.

Measured are the accuracies of the objective itself on masked speech, how many codes are in use, and
how well phonemes can be read from the frozen encoder. For that, each frame is labelled with the
phoneme that sounds at its centre. For the output of every Conformer block a linear classifier,
multinomial logistic regression, is fitted to the frames of some utterances, and judged on
utterances of other voices: the share of frames whose phoneme it names. What an encoder with random
weights gives, and what log-mel features give, are the floors: a linear map reads much from either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special

from maestro_jax.modules.frontend import stack_frames
from maestro_jax.modules.maestro import Maestro
from maestro_jax.modules.shared_encoder import SharedEncoder
from maestro_jax.modules.speech_encoder import SpeechEncoder
from maestro_jax.training.run import TrainRun

if TYPE_CHECKING:
    from maestro_jax.minivox.corpus import Example

LOG_MEL = "log-mel"
"""The layer below all others: log-mel frames stacked to the encoder's rate."""
_PENALTY = 1e-4
_ITERATIONS = 100


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """What a probe got right.

    Attributes:
        validation: The share of the validation frames whose phoneme was named, to choose a layer
            by.
        share: The same of the test frames.
        majority: Of the test frames, those of the training frames' most frequent phoneme.
        frames: Number of test frames.
        phonemes: Number of phonemes told apart, the pause included.
    """

    validation: float
    share: float
    majority: float
    frames: int
    phonemes: int


def layers(model: Maestro) -> tuple[str, ...]:
    """Names what is probed of a `Maestro`: log-mel frames, then each block from the bottom up."""
    return (
        LOG_MEL,
        *(f"speech {block}" for block in _blocks(model.speech_encoder)),
        *(f"shared {block}" for block in _blocks(model.shared_encoder)),
    )


def best_layer(probes: Mapping[str, Accuracy]) -> str:
    """Names the block with the highest accuracy on the validation frames."""
    return max(
        (layer for layer in probes if layer != LOG_MEL), key=lambda layer: probes[layer].validation
    )


def _blocks(encoder: SpeechEncoder | SharedEncoder) -> range:
    return range(1, encoder.stack.layers + 1)


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
    """What each of `layers` gives for the frames of utterances, without masks or dropout.

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
    def encode(audio: jax.Array, lengths: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        bound = model.bind({"params": params})
        mel, mel_lengths = bound.log_mel(audio, lengths)
        features, mask = bound.subsample(mel, mel_lengths)
        unknown = jnp.full(lengths.shape, -1, jnp.int32)
        found = [stack_frames(mel, model.subsampling.factor)]
        # One call for each block: XLA merges the equal parts of these calls.
        encoded = features
        for block in _blocks(model.speech_encoder):
            encoded, output = bound.speech_encoder(
                features, mask, unknown, intermediate_layer=block
            )
            found.append(output)
        for block in _blocks(model.shared_encoder):
            _, output = bound.shared_encoder(encoded, mask, None, unknown, intermediate_layer=block)
            found.append(output)
        return mask, found

    names = layers(model)
    found: dict[str, list[np.ndarray]] = {layer: [] for layer in names}
    for start in range(0, len(examples), batch):
        some = examples[start : start + batch]
        audio = np.zeros((batch, samples), np.int16)
        lengths = np.zeros(batch, np.int32)
        for row, example in enumerate(some):
            audio[row, : len(example.audio)] = example.audio
            lengths[row] = len(example.audio)
        mask, values = encode(audio, lengths)
        valid = np.asarray(mask)
        for layer, each in zip(names, values, strict=True):
            found[layer].append(np.asarray(each)[valid])
    return {layer: np.concatenate(parts) for layer, parts in found.items()}


def linear_probe(
    train: np.ndarray, train_labels: Sequence[str] | np.ndarray, judged: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Fits multinomial logistic regression, and names the phonemes of other frames.

    Features are standardised by the training frames. The mean cross entropy in nats and 1e-4 of the
    squared norm of the weights are minimised by 100 iterations of L-BFGS at most, from zero.

    Args:
        train: `[frames, features]` to fit to.
        train_labels: The phoneme of each.
        judged: Several `[frames, features]` to name the phonemes of.

    Returns:
        The names, `[frames]` of each of `judged`.
    """
    symbols, labels = np.unique(np.asarray(train_labels), return_inverse=True)
    mean, deviation = train.mean(0, np.float64), train.std(0, dtype=np.float64) + 1e-6

    def inputs(features: np.ndarray) -> np.ndarray:
        return ((features - mean) / deviation).astype(np.float32)

    x = inputs(train)
    wanted = np.eye(len(symbols), dtype=np.float32)[labels]
    shape = (x.shape[1] + 1, len(symbols))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        # The products in float32, which takes half the time; what they are added up to is float64.
        weights = flat.reshape(shape).astype(np.float32)
        log_shares = special.log_softmax(x @ weights[:-1] + weights[-1], axis=1)
        error = (np.exp(log_shares) - wanted) / np.float32(len(x))
        gradient = np.concatenate([x.T @ error, error.sum(0, keepdims=True)]).astype(np.float64)
        gradient[:-1] += 2.0 * _PENALTY * flat.reshape(shape)[:-1]
        fit = -np.mean(log_shares[np.arange(len(x)), labels], dtype=np.float64)
        return fit + _PENALTY * np.sum(flat.reshape(shape)[:-1] ** 2), gradient.ravel()

    found = optimize.minimize(
        loss,
        np.zeros(shape).ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _ITERATIONS},
    )
    weights = found.x.reshape(shape)
    return [
        symbols[np.argmax(inputs(each) @ weights[:-1] + weights[-1], axis=1)] for each in judged
    ]


def probe_encoder(
    model: Maestro,
    params: Any,
    train: Sequence[Example],
    validation: Sequence[Example],
    test: Sequence[Example],
    *,
    samples: int,
) -> dict[str, Accuracy]:
    """Computes the accuracy of a linear probe of each of `layers`.

    Args:
        model: A `Maestro`.
        params: Its parameters.
        train: Utterances that the probes are fitted to.
        validation: Utterances of other voices, to choose a layer by.
        test: Utterances of still other voices, that the probes are judged by.
        samples: The padded length of their audio; none is longer.

    Returns:
        By layer. A phoneme that does not occur in training counts as missed.
    """
    features, labels = [], []
    for examples in (train, validation, test):
        features.append(frame_features(model, params, examples, samples=samples))
        labels.append(
            np.array([symbol for each in examples for symbol in frame_phonemes(each, model)])
        )
    symbols, counts = np.unique(labels[0], return_counts=True)
    found = {}
    for layer in layers(model):
        fitted, *judged = (each[layer] for each in features)
        shares = [
            float(np.mean(named == wanted))
            for named, wanted in zip(
                linear_probe(fitted, labels[0], judged), labels[1:], strict=True
            )
        ]
        found[layer] = Accuracy(
            validation=shares[0],
            share=shares[1],
            majority=float(np.mean(symbols[np.argmax(counts)] == labels[2])),
            frames=len(labels[2]),
            phonemes=len(symbols),
        )
    return found


@dataclasses.dataclass(frozen=True)
class SelfSupervision:
    """How far a model has come.

    Attributes:
        metrics: Those that the objective has of untranscribed speech, as in a run's metrics but
            without `speech/`: `masked_accuracy`, `masked_chance`, `code_usage` and so on.
        probes: The accuracy of a linear probe by layer, of `layers`.
    """

    metrics: Mapping[str, float]
    probes: Mapping[str, Accuracy]


def evaluate_self_supervision(
    run: TrainRun,
    params: Any,
    train: Sequence[Example],
    validation: Sequence[Example],
    test: Sequence[Example],
) -> SelfSupervision:
    """Judges the encoder of a run by utterances whose phonemes are known.

    Args:
        run: The run, whose objective learns from untranscribed speech.
        params: The model's parameters.
        train: Utterances that probes are fitted to.
        validation: Utterances that a layer is chosen by.
        test: Utterances that it is judged by.

    Returns:
        Metrics and probes on the test utterances.
    """
    samples = max(len(example.audio) for example in (*train, *validation, *test))
    model = cast(Maestro, run.model)
    return SelfSupervision(
        metrics=masked_metrics(run, params, test, samples=samples),
        probes=probe_encoder(model, params, train, validation, test, samples=samples),
    )


def masked_metrics(
    run: TrainRun, params: Any, examples: Sequence[Example], *, samples: int, batch: int = 40
) -> dict[str, float]:
    """Computes the metrics of the objective on masked speech, without dropout or noise.

    Args:
        run: The run.
        params: The model's parameters.
        examples: The utterances.
        samples: The padded length of their audio; none is longer.
        batch: Utterances at a time; code usage is the average of that of batches.
    """
    # Imported here, as all that reads data is.
    from maestro_jax.data.padding import empty_batch, pad_example

    @jax.jit
    def metrics(params: Any, stream: Any, rng: jax.Array) -> Any:
        return run.objective.loss_terms(
            run.model, params, params, {"speech": stream}, rng=rng, step=run.steps, train=False
        )[1]

    totals: dict[str, np.ndarray] = {}
    for start in range(0, len(examples), batch):
        some = examples[start : start + batch]
        stream = empty_batch({"audio": samples}, ("language",), batch)
        for row, example in enumerate(some):
            spoken = {"audio": example.audio, "language": 0}
            pad_example(stream, row, spoken, {"audio": samples}, ("language",))
        found = metrics(params, stream, jax.random.fold_in(jax.random.key(run.seed), start))
        for name, pair in found.items():
            if name.startswith("speech/"):
                name = name.removeprefix("speech/")
                totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
    return {name: float(total / max(count, 1.0)) for name, (total, count) in totals.items()}
