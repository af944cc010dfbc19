"""The probe against plain definitions, on a model whose parts are tables."""

from __future__ import annotations

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.modules.resampler import frame_index
from maestro_jax.objectives.metrics import probe_pairs

FRAMES, LABELS, WIDTH, CODES = 6, 3, 4, 5
FRAME_LENGTHS, LABEL_LENGTHS = [6, 4, 0, 5], [3, 2, 2, 1]
ROWS = len(FRAME_LENGTHS)
ROW = 1


class Tables:
    """Answers as a `Maestro` does, from arrays that were drawn once."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.speech = rng.normal(size=(ROWS, FRAMES, WIDTH)).astype(np.float32)
        self.text = (self.speech + 0.7 * rng.normal(size=self.speech.shape)).astype(np.float32)
        self.shared = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32)
        self.predicted = rng.integers(0, 4, (ROWS, LABELS))
        self.ids = rng.integers(0, CODES, (ROWS, FRAMES))
        self.blank = rng.uniform(-3, 0, (ROWS, FRAMES, LABELS + 1)).astype(np.float32)
        self.label = rng.uniform(-3, 0, (ROWS, FRAMES, LABELS)).astype(np.float32)
        self.mel = rng.normal(size=(ROWS, 2 * FRAMES, 3)).astype(np.float32)
        self.decoder = types.SimpleNamespace(one_label_per_frame=False)
        self.quantizer = types.SimpleNamespace(codes=CODES)

    def bind(self, variables, rngs=None):
        del variables, rngs
        return self

    def log_mel(self, audio, lengths):
        return jnp.asarray(self.mel), None

    def features(self, audio, lengths):
        mask = jnp.arange(FRAMES) < jnp.asarray(FRAME_LENGTHS)[:, None]
        return jnp.zeros((ROWS, FRAMES, 1)), mask

    def encode_speech(self, features, mask, language):
        return jnp.asarray(self.speech)

    def encode_shared(self, x, mask, target_language, language):
        return x @ jnp.asarray(self.shared)

    def joint_log_probs(self, context, text):
        return jnp.asarray(self.blank), jnp.asarray(self.label)

    def encode_text(self, text, mask, language):
        return jnp.zeros((ROWS, LABELS, 1))

    def predict_durations(self, embedded, mask):
        return jnp.asarray(self.predicted)

    def round_durations(self, prediction, mask):
        return jnp.where(mask, prediction, 0)

    def upsample(self, embedded, durations, frames):
        return jnp.asarray(self.text), frame_index(durations, frames)

    def quantize(self, features):
        return types.SimpleNamespace(ids=jnp.asarray(self.ids))


def paths(model, row):
    """Every path of a row: its log-probability and the frames of its labels."""
    frames, labels = FRAME_LENGTHS[row], LABEL_LENGTHS[row]
    for emissions in itertools.combinations_with_replacement(range(frames), labels):
        score = sum(float(model.label[row, frame, u]) for u, frame in enumerate(emissions))
        for frame in range(frames):
            score += float(model.blank[row, frame, sum(e <= frame for e in emissions)])
        yield score, emissions


def owner(emissions, frame):
    """The label that owns a frame: the last one emitted, or else the first."""
    return max(sum(emission <= frame for emission in emissions) - 1, 0)


def cosines(a, b):
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    return a @ b.T


@pytest.fixture(scope="module")
def seen():
    """The tables, and what the probe says of them."""
    model = Tables(0)
    paired = {
        "audio": jnp.arange(ROWS)[:, None],
        "audio_length": jnp.asarray(FRAME_LENGTHS),
        "text": jnp.ones((ROWS, LABELS), jnp.int32),
        "text_length": jnp.asarray(LABEL_LENGTHS),
        "language": jnp.zeros((ROWS,), jnp.int32),
    }
    probe = jax.jit(lambda batch, row: probe_pairs(model, {}, batch, row))(paired, ROW)
    return model, jax.device_get(probe)


HEARD = [row for row in range(ROWS) if FRAME_LENGTHS[row]]


def test_likelihood_entropy_and_best_path(seen):
    model, probe = seen
    nats = entropy = 0.0
    for row in HEARD:
        scores, emissions = zip(*paths(model, row), strict=True)
        probabilities = np.exp(scores)
        nats -= np.log(probabilities.sum())
        best = emissions[int(np.argmax(scores))]
        durations = [sum(owner(best, t) == u for t in range(FRAME_LENGTHS[row])) for u in range(3)]
        assert probe.aligned[row].tolist() == durations
        posterior = np.zeros((FRAMES, LABELS))
        for probability, frames in zip(probabilities, emissions, strict=True):
            for u, frame in enumerate(frames):
                posterior[frame, u] += probability / probabilities.sum()
        entropy -= np.sum(posterior * np.log(np.where(posterior > 0, posterior, 1.0)))
        if row == ROW:
            np.testing.assert_allclose(probe.posterior, posterior, atol=1e-5)
            assert probe.emission_frames[: LABEL_LENGTHS[row]].tolist() == list(best)
    labels = sum(LABEL_LENGTHS[row] for row in HEARD)
    np.testing.assert_allclose(probe.metrics["transducer_loss"], (nats, labels), rtol=1e-5)
    np.testing.assert_allclose(probe.metrics["alignment_entropy"], (entropy, labels), rtol=1e-5)
    assert probe.label_mask.sum() == labels and not probe.label_mask[2].any()


def test_durations(seen):
    model, probe = seen
    error = constant = predicted = 0.0
    for row in HEARD:
        for u in range(LABEL_LENGTHS[row]):
            error += abs(int(model.predicted[row, u]) - int(probe.aligned[row, u]))
            constant += abs(FRAME_LENGTHS[row] / LABEL_LENGTHS[row] - int(probe.aligned[row, u]))
            predicted += int(model.predicted[row, u])
    labels = sum(LABEL_LENGTHS[row] for row in HEARD)
    assert probe.metrics["duration_error"] == (error, labels)
    np.testing.assert_allclose(probe.metrics["duration_error_constant"], (constant, labels))
    assert probe.metrics["duration_ratio"] == (predicted, sum(FRAME_LENGTHS))


@pytest.mark.parametrize("top", [False, True])
def test_cosine_and_retrieval_by_definition(seen, top):
    model, probe = seen
    speech, text = (side @ model.shared if top else side for side in (model.speech, model.text))
    prefix = "top_" if top else ""
    matched, elsewhere, found = [], [], dict.fromkeys(("own", "back", "token", "by_chance"), 0.0)
    for row in HEARD:
        frames = FRAME_LENGTHS[row]
        matrix = cosines(speech[row, :frames], text[row, :frames])
        matched += list(np.diagonal(matrix))
        elsewhere += list(matrix[~np.eye(frames, dtype=bool)])
        tokens = np.repeat(np.arange(LABELS), probe.aligned[row])
        for t in range(frames):
            best = int(np.argmax(matrix[t]))
            found["own"] += best == t
            found["back"] += int(np.argmax(matrix[:, t])) == t
            found["token"] += tokens[best] == tokens[t]
            found["by_chance"] += 1 / frames
        if row == ROW:
            shown = probe.top_similarity if top else probe.similarity
            np.testing.assert_allclose(shown[:frames, :frames], matrix, atol=1e-5)
    counts = sum(FRAME_LENGTHS)
    metrics = probe.metrics
    np.testing.assert_allclose(metrics[f"{prefix}cosine"], (sum(matched), counts), rtol=1e-5)
    np.testing.assert_allclose(
        metrics[f"{prefix}cosine_unmatched"], (sum(elsewhere), len(elsewhere)), rtol=1e-4
    )
    for name, key in (
        ("speech_to_text", "own"),
        ("text_to_speech", "back"),
        ("token_speech_to_text", "token"),
        ("chance", "by_chance"),
    ):
        np.testing.assert_allclose(metrics[f"retrieval/{prefix}{name}"], (found[key], counts))


def test_codes_and_spectrogram(seen):
    model, probe = seen
    used = np.concatenate([model.ids[row, : FRAME_LENGTHS[row]] for row in HEARD])
    np.testing.assert_array_equal(probe.code_counts, [np.bincount(used, minlength=CODES)])
    np.testing.assert_array_equal(probe.mel, model.mel[ROW])
