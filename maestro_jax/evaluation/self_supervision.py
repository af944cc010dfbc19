"""What self-supervised pretraining is worth, seen on utterances of voices that it has not heard.

The accuracies of its own objective on masked speech, how many codes are in use, and how well
phonemes can be read from the frozen encoder (`maestro_jax.evaluation.phoneme_probe`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from maestro_jax.evaluation.phoneme_probe import Accuracy, probe_encoder
from maestro_jax.training.run import TrainRun

if TYPE_CHECKING:
    from maestro_jax.minivox.corpus import Example


@dataclasses.dataclass(frozen=True)
class SelfSupervision:
    """How far a model has come.

    Attributes:
        metrics: Those that the objective has of untranscribed speech, as in a run's metrics but
            without `speech/`: `masked_accuracy`, `masked_chance`, `code_usage` and so on.
        probes: The accuracy of a linear probe by layer, of `phoneme_probe.layers`.
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
    """Judge the encoder of a run by utterances whose phonemes are known.

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
    return SelfSupervision(
        metrics=masked_metrics(run, params, test, samples=samples),
        probes=probe_encoder(run.model, params, train, validation, test, samples=samples),
    )


def masked_metrics(
    run: TrainRun, params: Any, examples: Sequence[Example], *, samples: int, batch: int = 40
) -> dict[str, float]:
    """The objective's metrics of untranscribed speech, masked but without dropout or noise.

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
