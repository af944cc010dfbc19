"""TTS4Pretrain 2.0: its terms against other code, by hand, and where nothing was spoken."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax import tree

from maestro_jax.batches import synthetic_batch
from maestro_jax.errors import UserError
from maestro_jax.losses.similarity import standardize
from maestro_jax.objectives.base import bind
from maestro_jax.objectives.decoder_losses import TargetLabels, best_path
from maestro_jax.objectives.maestro import MaestroPretraining
from maestro_jax.objectives.self_supervised import W2vBert
from maestro_jax.objectives.speech_recognition import SpeechRecognition
from maestro_jax.objectives.tts4pretrain import Tts4Pretrain, transcribed_speech
from maestro_jax.speech_synthesis import SpeechSynthesis

OBJECTIVE = Tts4Pretrain(self_supervised=W2vBert(distractors=5))
RNG = jax.random.key(1)
SUPERVISED = {
    "paired": "transducer",
    "synthetic_paired": "synthetic_transducer",
    "synthetic_text": "text_transducer",
}


@pytest.fixture(scope="module")
def spoken(tiny):
    """Batches with synthesised speech, and their terms."""
    samples = tiny.streams["speech"].audio_samples
    synthesis = SpeechSynthesis(audio_samples=samples, workers=0)
    streams = {
        name: dataclasses.replace(
            config, batch_size=4, synthesis=None if name == "speech" else synthesis
        )
        for name, config in tiny.streams.items()
        if name in OBJECTIVE.streams
    }
    return Spoken(tiny, streams)


class Spoken:
    """A model with parameters, and one compiled program for all batches of one shape."""

    def __init__(self, tiny, streams):
        self.model, self.params = tiny.model, tiny.params_of(tiny.model)
        self.batch = synthetic_batch(streams, 0, 12)
        self._terms = jax.jit(
            functools.partial(self.uncompiled, objective=OBJECTIVE, model=self.model)
        )

    @staticmethod
    def uncompiled(params, batch, *, objective, model):
        """Terms and metrics, without dropout."""
        return objective.loss_terms(model, params, None, batch, rng=RNG, step=0, train=False)

    def terms(self, batch):
        """Terms and metrics of a batch."""
        return self._terms(self.params, batch)

    def changed(self, **changes):
        """The batch with other features of some streams."""
        return {name: {**self.batch[name], **changes.get(name, {})} for name in self.batch}


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=2e-5, atol=1e-5)


@pytest.mark.extended
def test_transducer_terms_are_those_of_recognition(spoken):
    terms, metrics = spoken.terms(spoken.batch)
    recognition = SpeechRecognition(augment=False)
    for name, stream in transcribed_speech(spoken.batch).items():
        expected, _ = spoken.uncompiled(
            spoken.params, {"paired": stream}, objective=recognition, model=spoken.model
        )
        close(terms[SUPERVISED[name]], expected["transducer"])
        assert float(metrics[f"{name}/examples"].total) == 4
    seconds = spoken.batch["text"]["synthetic_audio_length"].sum() / 16_000
    assert float(metrics["synthetic_text/audio_seconds"].total) == pytest.approx(seconds)


@pytest.mark.extended
def test_synthesised_speech_learns_what_real_speech_learns(spoken):
    """All terms are the same whether a waveform is real or synthesised."""
    text = spoken.batch["text"]
    heard = transcribed_speech({"text": text})["synthetic_text"]
    heard = {name: heard[name] for name in heard if not name.startswith("synthetic")}
    real = {name: heard[name] for name in ("audio", "audio_length", "language")}
    # What stands in the place of masked frames is drawn for the whole pass: both have two streams.
    batches = {"real": {"speech": real, "paired": heard}, "synthesised": {"text": text}}
    terms = {
        name: spoken.uncompiled(spoken.params, batch, objective=OBJECTIVE, model=spoken.model)[0]
        for name, batch in batches.items()
    }
    names = {name: f"synthetic_{name}" for name in OBJECTIVE.self_supervised.term_names}
    names["transducer"] = "text_transducer"
    assert set(terms["real"]) == set(names)
    assert set(terms["synthesised"]) == set(names.values())
    for name, synthesised in names.items():
        close(terms["synthesised"][synthesised], terms["real"][name])


@pytest.mark.extended
def test_consistency_terms_by_hand(spoken):
    terms, metrics = spoken.terms(spoken.batch)
    model = bind(spoken.model, spoken.params)
    paired = spoken.batch["paired"]
    labels = TargetLabels(paired["text"], paired["text_length"])
    contexts, paths, lattices = {}, {}, {}
    for name, prefix in (("real", ""), ("synthetic", "synthetic_")):
        features, mask = model.features(
            paired[f"{prefix}audio"], paired[f"{prefix}audio_length"], augment=False
        )
        encoded = model.encode_speech(features, mask, paired["language"])
        contexts[name] = np.asarray(model.encode_shared(encoded, mask, None, paired["language"]))
        paths[name], _ = best_path(model, encoded, mask, labels, paired["language"])
        predictions = model.prediction_network(paired["text"])
        # [batch, frames, labels + 1, vocab]: all of it.
        logits = model.joint(model.project_frames(contexts[name])[:, :, None], predictions[:, None])
        lattices[name] = np.asarray(jax.nn.softmax(logits))
    divergences, distances = [], []
    for row, length in enumerate(paired["text_length"].tolist()):
        for label in range(length):
            real, synthetic = (
                lattices[name][row, int(paths[name].frames[row, label]), label]
                for name in ("real", "synthetic")
            )
            divergences.append(scipy.stats.entropy(real, synthetic))
        durations = {name: np.asarray(path.durations[row]) for name, path in paths.items()}
        begins = {name: np.cumsum(each) - each for name, each in durations.items()}
        standard = {name: np.asarray(standardize(c[row])) for name, c in contexts.items()}
        for token in range(length):
            for position in range(durations["real"][token]):
                if not durations["synthetic"][token]:
                    continue
                passed = (2 * position + 1) * int(durations["synthetic"][token])
                other = passed // (2 * int(durations["real"][token]))
                real = standard["real"][begins["real"][token] + position]
                synthetic = standard["synthetic"][begins["synthetic"][token] + other]
                distances.append(np.mean((real - synthetic) ** 2))
    close(terms["decoder_consistency"], (sum(divergences), len(divergences)))
    close(terms["encoder_consistency"], (sum(distances), len(distances)))
    assert len(distances) > 20 and min(divergences) > 0
    assert float(metrics["synthetic_paired/alignment_entropy"][0]) > 0


def test_the_same_recording_twice_is_consistent(spoken):
    paired = spoken.batch["paired"]
    twice = {
        "synthetic_audio": paired["audio"],
        "synthetic_audio_length": paired["audio_length"],
    }
    terms, _ = spoken.terms(spoken.changed(paired=twice))
    close(terms["synthetic_transducer"], terms["transducer"])
    for name in ("encoder_consistency", "decoder_consistency"):
        total, count = terms[name]
        assert float(count) > 0 and abs(float(total)) < 1e-4


def test_what_was_not_spoken_counts_nowhere(spoken):
    """The terms of a batch of which half was not spoken are those of the other half."""
    silent = np.array([False, True, False, True])
    halves = {}
    for kept in (silent, ~silent):
        changes = {
            name: {
                "synthetic_audio_length": np.where(
                    kept, spoken.batch[name]["synthetic_audio_length"], 0
                )
            }
            for name in ("text", "paired")
        }
        halves[kept.sum(), bool(kept[0])], _ = spoken.terms(spoken.changed(**changes))
    whole, _ = spoken.terms(spoken.batch)
    names = ("synthetic_transducer", "text_transducer", "encoder_consistency")
    for name in (*names, "decoder_consistency"):
        summed = tree.map(lambda *parts: sum(parts), *(half[name] for half in halves.values()))
        close(summed, whole[name])
        assert all(float(half[name][1]) > 0 for half in halves.values())


@pytest.mark.extended
def test_gradients_reach_the_encoder_and_not_the_text_encoder(spoken):
    def loss(params):
        terms, _ = spoken.uncompiled(params, spoken.batch, objective=OBJECTIVE, model=spoken.model)
        return OBJECTIVE.weighted_loss(terms, params, step=0)[0]

    largest = tree.map(lambda x: float(jnp.abs(x).max()), jax.jit(jax.grad(loss))(spoken.params))
    for part in ("speech_encoder", "shared_encoder", "decoder", "quantizer"):
        assert max(tree.leaves(largest[part])) > 0
    for part in ("text_encoder", "duration_model", "refiner"):
        assert max(tree.leaves(largest[part])) == 0


def test_unspoken_text_needs_a_synthesiser(spoken):
    text = {k: v for k, v in spoken.batch["text"].items() if not k.startswith("synthetic")}
    with pytest.raises(UserError, match=r"text/StreamConfig\.synthesis"):
        transcribed_speech({"text": text})
    # Pairs alone will do without: recognition is left of it.
    paired = {k: v for k, v in spoken.batch["paired"].items() if not k.startswith("synthetic")}
    assert set(transcribed_speech({"paired": paired})) == {"paired"}


def test_terms_have_weights_and_units():
    weights = OBJECTIVE.term_weights
    assert set(weights) == set(OBJECTIVE.term_units)
    assert weights["synthetic_diversity"] == weights["diversity"] == 0.1
    assert set(OBJECTIVE.streams) < set(MaestroPretraining().streams)


@pytest.mark.extended
def test_maestro_hears_text_as_recognition_does(spoken):
    """Adaptation by both: the same text is read, and heard as synthesised speech."""
    text = {"text": spoken.batch["text"]}
    settings = {"max_text_frames": 15, "augment_paired": False}
    both, _ = spoken.uncompiled(
        spoken.params,
        text,
        objective=MaestroPretraining(synthetic_weight=1.0, **settings),
        model=spoken.model,
    )
    heard, _ = spoken.uncompiled(
        spoken.params,
        text,
        objective=MaestroPretraining(synthetic_weight=1.0, text_weight=0.0, **settings),
        model=spoken.model,
    )
    assert set(both) == {"aligned_masked_lm", "text_transducer"}
    assert set(heard) == {"text_transducer"}
    expected, _ = spoken.uncompiled(
        spoken.params,
        {"paired": transcribed_speech(text)["synthetic_text"]},
        objective=SpeechRecognition(augment=False),
        model=spoken.model,
    )
    for terms in (both, heard):
        close(terms["text_transducer"], expected["transducer"])
    read, _ = spoken.uncompiled(
        spoken.params, text, objective=MaestroPretraining(**settings), model=spoken.model
    )
    close(both["aligned_masked_lm"], read["aligned_masked_lm"])


def test_only_what_asks_for_speech_needs_it(spoken):
    silent = {k: v for k, v in spoken.batch["text"].items() if not k.startswith("synthetic")}
    with pytest.raises(UserError, match=r"text/StreamConfig\.synthesis"):
        spoken.uncompiled(
            spoken.params,
            {"text": silent},
            objective=MaestroPretraining(synthetic_weight=1.0, max_text_frames=15),
            model=spoken.model,
        )
    assert "text_transducer" not in MaestroPretraining().term_weights
