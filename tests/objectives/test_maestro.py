"""Which term trains which part, when a stream begins, and batches that lack something.

The expectations follow from the method (arXiv 2204.03409, section 2; w2v-BERT, section 3.3), not
from the code: the table below says for each term what its gradient must reach, and that it must be
exactly zero everywhere else.
"""

from __future__ import annotations

import copy

import jax
import numpy as np
import pytest

from maestro_jax.objectives.curriculum import paper_curriculum
from maestro_jax.objectives.maestro import MaestroPretraining
from maestro_jax.objectives.self_supervised import W2vBert
from maestro_jax.objectives.text_losses import Matching, TextMasks
from maestro_jax.training import parameter_trees

# Heads that hang on a module but serve one term only are parts of their own.
PARTS = (
    "subsampling",
    "quantizer/logits",
    "quantizer/codebook",
    "speech_encoder/contrastive_projection",
    "speech_encoder",
    "text_encoder",
    "duration_model",
    "resampler",
    "refiner",
    "shared_encoder/code_head",
    "shared_encoder/language_embedding",
    "shared_encoder",
    "decoder",
)
SPEECH_IN = {"subsampling", "speech_encoder"}
TEXT_IN = {"text_encoder", "resampler", "refiner"}
TRANSDUCER = {"shared_encoder", "decoder"}
TABLE = {
    "contrastive": SPEECH_IN
    | {"speech_encoder/contrastive_projection", "quantizer/logits", "quantizer/codebook"},
    "diversity": {"subsampling", "quantizer/logits"},
    # The codes are targets: what made them is not trained to be predictable.
    "masked_prediction": SPEECH_IN | {"shared_encoder", "shared_encoder/code_head"},
    "transducer": SPEECH_IN | TRANSDUCER,
    # Durations come from the alignment, and the speech side is the teacher.
    "matching": TEXT_IN,
    "duration": {"text_encoder", "duration_model"},
    # Durations are rounded, so nothing reaches the model that predicts them.
    "text": TEXT_IN | TRANSDUCER,
    "mt": TEXT_IN | TRANSDUCER | {"shared_encoder/language_embedding"},
    "st": SPEECH_IN | TRANSDUCER | {"shared_encoder/language_embedding"},
}
LOSS_OF_TERM = {"text": "aligned_masked_lm"}
TERMS_OF_STREAM = {
    "speech": ("contrastive", "diversity", "masked_prediction"),
    "paired": ("transducer", "matching", "duration"),
    "text": ("text",),
    "mt": ("mt",),
    "st": ("st",),
}


def part_of(name):
    """The first part that a parameter belongs to, heads before their modules."""
    return next(part for part in PARTS if name.startswith(part + "/") or name == part)


def largest_by_part(gradients):
    largest = dict.fromkeys(PARTS, 0.0)
    for name, gradient in gradients.items():
        largest[part_of(name)] = max(largest[part_of(name)], float(np.abs(gradient).max()))
    return largest


def all_ones(tiny):
    return dict.fromkeys(tiny.weights, 1.0)


def value(metrics, name):
    total, count = metrics[name]
    return total / max(count, 1.0)


@pytest.fixture(scope="module")
def state(tiny):
    return tiny.state()


@pytest.fixture(scope="module")
def everything(tiny, state):
    """Gradients and metrics with all weights 1."""
    return tiny.run(state, tiny.batch(), **all_ones(tiny))


@pytest.mark.extended
@pytest.mark.parametrize("term", TABLE)
def test_a_term_trains_its_parts_and_no_other(tiny, state, term):
    gradients, metrics = tiny.run(state, tiny.batch(), **{term: 1.0})
    largest = largest_by_part(gradients)
    assert {part for part, size in largest.items() if size > 0.0} == TABLE[term]
    # Not merely the noise of an activation that cancels out.
    assert min(largest[part] for part in TABLE[term]) > 1e-6
    assert value(metrics, "loss") == pytest.approx(
        value(metrics, f"loss/{LOSS_OF_TERM.get(term, term)}"), rel=1e-6
    )


def test_every_parameter_is_trained_by_some_term(everything):
    gradients, _ = everything
    assert [name for name, gradient in gradients.items() if not np.any(gradient)] == []


def test_the_loss_is_the_weighted_sum_of_its_terms(tiny, state):
    weights = {name: 0.3 * (index + 1) for index, name in enumerate(tiny.weights)}
    _, metrics = tiny.run(state, tiny.batch(), **weights)
    expected = sum(
        weight * value(metrics, f"loss/{LOSS_OF_TERM.get(name, name)}")
        for name, weight in weights.items()
    )
    assert value(metrics, "loss") == pytest.approx(expected, rel=1e-5)


def test_counts_of_a_batch(tiny, everything):
    """What is counted can be counted by hand: labels, tokens, frames, examples."""
    _, metrics = everything
    batch = tiny.batch()
    labels = {
        "transducer": batch["paired"]["text_length"],
        "duration": batch["paired"]["text_length"],
        "aligned_masked_lm": batch["text"]["text_length"],
        "mt": batch["mt"]["translation_length"],
        "st": batch["st"]["translation_length"],
    }
    for name in ("transducer", "duration", "st"):
        assert metrics[f"loss/{name}"][1] == labels[name].sum()
    for name in ("aligned_masked_lm", "mt"):
        # A text all of whose tokens are predicted silent has no frames and does not count.
        assert 0 < metrics[f"loss/{name}"][1] <= labels[name].sum()
    # 10 ms frames that fit wholly, then halved twice, rounding up.
    mel = 1 + (batch["paired"]["audio_length"] - 400) // 160
    assert metrics["loss/matching"][1] == (-(-mel // 4)).sum()
    for stream in ("speech", "paired", "text", "mt", "st"):
        assert metrics[f"{stream}/examples"] == (8.0, 1.0)


@pytest.mark.parametrize(
    ("step", "streams"),
    [
        (0, {"speech"}),
        (499_999, {"speech"}),
        (500_000, {"speech", "paired"}),
        (514_999, {"speech", "paired"}),
        (515_000, {"speech", "paired", "text"}),
        (520_000, {"speech", "paired", "text", "mt", "st"}),
    ],
)
def test_curriculum(step, streams):
    """The paper's: paired speech from 500k steps on, unspoken text from 515k."""
    objective = MaestroPretraining(curriculum=paper_curriculum(500_000, 515_000, 520_000))
    assert set(objective.active_streams(step)) == streams


class TestAveragedParameters:
    @pytest.mark.extended
    def test_predicted_durations_are_those_of_the_average(self, tiny, state, everything):
        """The bias of the duration head moves the resampled length, the average's alone."""

        def with_longer_tokens(params):
            longer = copy.deepcopy(params)
            longer["duration_model"]["frames"]["bias"] += 3.0
            return longer

        before = value(everything[1], "text/frames_per_token")
        _, metrics = tiny.run(
            state.replace(params=with_longer_tokens(state.params)), tiny.batch(), text=1.0
        )
        assert value(metrics, "text/frames_per_token") == before
        _, metrics = tiny.run(
            state.replace(ema_params=with_longer_tokens(state.ema_params)), tiny.batch(), text=1.0
        )
        # Only tokens that the other head lets last grow longer, each by about three frames.
        assert value(metrics, "text/frames_per_token") > 2 * before

    @pytest.mark.extended
    def test_alignments_are_those_of_the_average(self, tiny, state, everything):
        """Blank made unlikely in the averaged decoder moves every label to the first frame."""
        eager = copy.deepcopy(state.ema_params)
        eager["decoder"]["output"]["bias"][0] -= 50.0
        _, metrics = tiny.run(state.replace(ema_params=eager), tiny.batch(), duration=1.0)
        assert metrics["loss/transducer"] == everything[1]["loss/transducer"]
        assert metrics["loss/duration"] != everything[1]["loss/duration"]

    @pytest.mark.extended
    def test_the_loss_is_piecewise_constant_in_the_average(self, tiny, state, everything):
        """A change too small to move a best path or a rounded duration has no effect at all."""
        nudged = jax.tree.map(lambda leaf: leaf * np.float32(1.0 + 1e-6), state.ema_params)
        gradients, metrics = tiny.run(
            state.replace(ema_params=nudged), tiny.batch(), **all_ones(tiny)
        )
        # How sharp the alignments are is the one number that shows it.
        smooth = {"paired/alignment_entropy"}
        assert {n: m for n, m in metrics.items() if n not in smooth} == {
            n: m for n, m in everything[1].items() if n not in smooth
        }
        for name, gradient in everything[0].items():
            np.testing.assert_array_equal(gradients[name], gradient)


class TestPairedAlone:
    """The paired stream without the others, with the two switches of what it trains."""

    @pytest.fixture(scope="class")
    def gradients(self, tiny, state):
        """Of each term with respect to the parameters and to their average."""
        batch = {"paired": tiny.batch()["paired"]}

        def compute(params, ema_params, weights):
            objective = tiny.objective(
                weights, matching=Matching(stop_gradient="none"), duration_trains_text_encoder=False
            )

            def loss(params, ema_params):
                return objective.loss(
                    tiny.model, params, ema_params, batch, rng=tiny.step_rng(), step=tiny.later
                )

            return jax.grad(loss, (0, 1), has_aux=True)(params, ema_params)

        compiled = jax.jit(compute)

        def of(term):
            weights = {name: float(name == term) for name in tiny.weights}
            (trained, averaged), metrics = compiled(state.params, state.ema_params, weights)
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(averaged))
            largest = largest_by_part(dict(parameter_trees.named_leaves(trained)))
            return {part for part, size in largest.items() if size > 0.0}, metrics

        return of

    @pytest.mark.extended
    def test_matching_without_stop_gradient_trains_the_speech_side(self, gradients):
        assert gradients("matching")[0] == TEXT_IN | SPEECH_IN

    def test_duration_need_not_train_the_text_encoder(self, gradients):
        assert gradients("duration")[0] == {"duration_model"}

    def test_it_needs_no_other_stream(self, gradients):
        trained, metrics = gradients("transducer")
        assert trained == TABLE["transducer"]
        assert not any(name.startswith(("speech/", "text/", "mt/", "st/")) for name in metrics)


@pytest.mark.extended
@pytest.mark.parametrize("missing", TERMS_OF_STREAM)
def test_a_batch_may_lack_any_stream(tiny, state, missing):
    batch = {stream: part for stream, part in tiny.batch().items() if stream != missing}
    objective = tiny.objective(all_ones(tiny))
    gradients, metrics = jax.eval_shape(
        jax.grad(
            lambda params: objective.loss(
                tiny.model, params, state.ema_params, batch, rng=tiny.step_rng(), step=tiny.later
            ),
            has_aux=True,
        ),
        state.params,
    )
    assert jax.tree.structure(gradients) == jax.tree.structure(state.params)
    lost = {f"loss/{LOSS_OF_TERM.get(term, term)}" for term in TERMS_OF_STREAM[missing]}
    assert not lost & set(metrics)
    assert not any(name.startswith(f"{missing}/") for name in metrics)


def absent(batch, stream, *features):
    """The batch with the stream's features of length 0, as the loader pads."""
    changed = dict(batch[stream])
    for feature in features:
        changed[feature] = np.zeros_like(changed[feature])
        changed[f"{feature}_length"] = np.zeros_like(changed[f"{feature}_length"])
    return {**batch, stream: changed}


def finite(tiny, state, batch):
    """Runs the step with all weights 1; the loss and all gradients are finite."""
    gradients, metrics = tiny.run(state, batch, **all_ones(tiny))
    assert metrics["skipped_steps"] == (0.0, 1.0)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    return gradients, metrics


SEQUENCES = {
    "speech": ("audio",),
    "paired": ("audio", "text"),
    "text": ("text",),
    "mt": ("text", "translation"),
    "st": ("audio", "translation"),
}


@pytest.mark.extended
@pytest.mark.parametrize("stream", SEQUENCES)
def test_a_stream_without_examples_adds_nothing(tiny, state, everything, stream):
    _, metrics = finite(tiny, state, absent(tiny.batch(), stream, *SEQUENCES[stream]))
    expected = 0.0
    for other, terms in TERMS_OF_STREAM.items():
        for term in terms:
            name = f"loss/{LOSS_OF_TERM.get(term, term)}"
            if other == stream:
                assert metrics[name][0] == 0.0
            else:
                np.testing.assert_allclose(metrics[name], everything[1][name], rtol=1e-6)
                expected += value(metrics, name)
    assert metrics[f"{stream}/examples"] == (0.0, 1.0)
    assert value(metrics, "loss") == pytest.approx(expected, rel=1e-6)


def test_a_batch_without_any_example_trains_nothing(tiny, state):
    batch = tiny.batch()
    for stream, features in SEQUENCES.items():
        batch = absent(batch, stream, *features)
    gradients, metrics = finite(tiny, state, batch)
    assert metrics["loss"] == (0.0, 1.0)
    assert not any(np.any(gradient) for gradient in gradients.values())


def test_one_absent_example_changes_no_other(tiny, state):
    """Padding rows carry no weight: with row 0 absent, nothing depends on its content."""
    batch = tiny.batch()
    for features in batch.values():
        for feature in features:
            if feature.endswith("_length"):
                features[feature] = features[feature].copy()
                features[feature][0] = 0
    gradients, metrics = finite(tiny, state, batch)
    other = copy.deepcopy(batch)
    for features in other.values():
        for feature in ("audio", "text", "translation"):
            if feature in features:
                features[feature][0] = features[feature][1]
        features["language"][0] = 1 - features["language"][0]
    again, other_metrics = finite(tiny, state, other)
    assert other_metrics == metrics
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(again[name], gradient, err_msg=name)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("stream", "feature"),
    [
        ("paired", "audio"),
        ("paired", "text"),
        ("mt", "text"),
        ("mt", "translation"),
        ("st", "audio"),
        ("st", "translation"),
    ],
)
def test_half_an_example_is_harmless(tiny, state, stream, feature):
    _, metrics = finite(tiny, state, absent(tiny.batch(), stream, feature))
    name = {"paired": "transducer"}.get(stream, stream)
    # No frames or no labels: no label is counted.
    assert metrics[f"loss/{name}"][1] == 0.0


@pytest.mark.extended
def test_silence(tiny, state):
    batch = tiny.batch()
    for stream in ("speech", "paired", "st"):
        batch[stream] = {**batch[stream], "audio": np.zeros_like(batch[stream]["audio"])}
    _, metrics = finite(tiny, state, batch)
    assert value(metrics, "loss/transducer") > 0.0


@pytest.mark.extended
@pytest.mark.parametrize("samples", [399, 400, 1000])
def test_texts_longer_than_their_speech(tiny, state, samples):
    """Less than a frame, one frame, and one encoder frame for all labels."""
    batch = tiny.batch()
    for stream in ("paired", "st"):
        batch[stream] = {
            **batch[stream],
            "audio_length": np.full_like(batch[stream]["audio_length"], samples),
        }
    _, metrics = finite(tiny, state, batch)
    labels = batch["paired"]["text_length"].sum() if samples >= 400 else 0
    assert metrics["loss/transducer"][1] == labels
    assert metrics["loss/matching"][1] == (8 if samples >= 400 else 0)


@pytest.mark.slow
def test_streams_share_a_pass_without_touching_each_other(tiny, state):
    """Streams of equal length are joined; padded to lengths of their own they are not."""
    weights = all_ones(tiny)
    objective = tiny.objective(
        weights,
        self_supervised=W2vBert(mask_probability=0.0, distractors=5),
        text_masks=TextMasks(probability=0.0, feature_masks=0),
    )

    @jax.jit
    def metrics_of(batch):
        rng = tiny.step_rng()
        return objective.loss(
            tiny.model, state.params, state.ema_params, batch, rng=rng, step=0, train=False
        )[1]

    joined = tiny.batch()
    apart = tiny.batch()
    for stream, feature, more in (
        ("paired", "audio", 1600),
        ("st", "audio", 3300),
        ("text", "text", 1),
        ("mt", "text", 2),
        ("mt", "translation", 1),
        ("st", "translation", 2),
    ):
        apart[stream][feature] = np.pad(apart[stream][feature], ((0, 0), (0, more)))
    expected, found = metrics_of(joined), metrics_of(apart)
    assert set(found) == set(expected)
    for name, pair in expected.items():
        np.testing.assert_allclose(found[name], pair, rtol=2e-5, atol=1e-6, err_msg=name)
