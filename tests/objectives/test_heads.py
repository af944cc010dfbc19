"""CTC and the attention decoder as objectives: their terms, and whether they learn and write."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maestro_jax.decoding.speech import decode_speech, decode_text
from maestro_jax.errors import UserError
from maestro_jax.losses.ctc import ctc_alignment
from maestro_jax.modules.ctc_head import CtcHead
from maestro_jax.modules.transformer_decoder import TransformerDecoder
from maestro_jax.objectives.base import bind
from maestro_jax.objectives.curriculum import Schedule
from maestro_jax.objectives.decoder_losses import TargetLabels, attention_losses, shift_right
from maestro_jax.objectives.forward import EncoderInput
from maestro_jax.objectives.speech_recognition import SpeechRecognition
from maestro_jax.objectives.speech_translation import SpeechTranslation
from maestro_jax.objectives.text_losses import TextMasks
from maestro_jax.training import parameter_trees

ROWS, SAMPLES, MAX_TEXT_FRAMES = 4, 9600, 15
CTC = SpeechRecognition(ctc_weight=1.0, transducer_weight=0.0, augment=False)
ATTENTION = SpeechTranslation(
    decoder="attention",
    mt_weight=5.0,
    label_smoothing=0.2,
    augment=False,
    max_text_frames=MAX_TEXT_FRAMES,
    text_masks=TextMasks(probability=0.0, feature_masks=0),
)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


@pytest.fixture(scope="module")
def model(tiny):
    """The tiny model with both heads, without dropout; every token of a text lasts."""
    without = tiny.maestro(dropout=0.0)
    vocabulary = without.vocab_size
    return without.clone(
        duration_model=without.duration_model.clone(zero_threshold=1e-9),
        ctc_head=CtcHead(vocab_size=vocabulary),
        translation_decoder=TransformerDecoder(
            vocab_size=vocabulary,
            layers=1,
            features=16,
            heads=2,
            hidden=32,
            languages=2,
            dropout=0.0,
        ),
    )


@pytest.fixture(scope="module")
def params(tiny, model):
    return tiny.params_of(model)


class Learner:
    """Loss, metrics and gradients of an objective, and steps of Adam: one program for all."""

    def __init__(self, model, objective):
        def step(params, state, batch):
            (loss, metrics), gradients = jax.value_and_grad(
                lambda p: objective.loss(model, p, p, batch, rng=jax.random.key(0), step=0),
                has_aux=True,
            )(params)
            updates, state = OPTIMIZER.update(gradients, state)
            return optax.apply_updates(params, updates), state, (loss, metrics, gradients)

        self._step = jax.jit(step)

        self._loss = jax.jit(
            lambda params, batch: objective.loss(
                model, params, params, batch, rng=jax.random.key(0), step=0
            )
        )

    def loss(self, params, batch):
        """Loss and metrics alone, which compile in a fraction of the time."""
        return self._loss(params, batch)

    def gradients(self, params, batch):
        *_, (_, _, gradients) = self._step(params, OPTIMIZER.init(params), batch)
        return gradients

    def learn(self, params, batch, steps):
        state = OPTIMIZER.init(params)
        for _ in range(steps):
            params, state, (loss, *_) = self._step(params, state, batch)
        return params, float(loss)


@pytest.fixture(scope="module")
def ctc(model):
    return Learner(model, CTC)


@pytest.fixture(scope="module")
def attention(model):
    return Learner(model, ATTENTION)


def modules_with_gradient(gradients):
    found = set()
    for name, leaf in parameter_trees.named_leaves(gradients):
        assert np.isfinite(leaf).all(), name
        if np.abs(leaf).max() > 0:
            found.add(name.split("/")[0])
    return found


def first_rows(stream):
    return {name: feature[:ROWS].copy() for name, feature in stream.items()}


def means_of(metrics):
    return {name: float(total) / max(float(count), 1.0) for name, (total, count) in metrics.items()}


def tones():
    """Four utterances of three tones each, in an order of their own."""
    time = np.arange(SAMPLES // 3) / 16_000
    orders = [(300, 900, 2500), (2500, 300, 900), (900, 2500, 300), (300, 2500, 900)]
    audio = [
        np.concatenate([np.sin(2 * np.pi * hertz * time) for hertz in order]) for order in orders
    ]
    return (8000 * np.stack(audio)).astype(np.int16)


TEXTS = np.zeros((ROWS, 6), np.int32)
TEXTS[:, :4] = [[3, 4, 5, 0], [5, 5, 4, 0], [4, 6, 6, 3], [7, 0, 0, 0]]
LENGTHS = np.asarray([3, 3, 4, 1], np.int32)


def test_heads_add_parameters_and_change_none(tiny, params):
    """A checkpoint of the model without them is one of the model with them, but for the heads."""
    names = {name for name, _ in parameter_trees.named_leaves(params)}
    without = {
        name
        for name, _ in parameter_trees.named_leaves(parameter_trees.unbox(tiny.abstract.params))
    }
    assert without < names
    assert {name.split("/")[0] for name in names - without} == {"ctc_head", "translation_decoder"}


def test_a_translation_without_a_language_to_write_is_refused(model):
    values, mask = jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool)
    inputs = EncoderInput(values, mask)
    labels = TargetLabels(jnp.ones((1, 3), jnp.int32), jnp.ones(1, int))
    bound = bind(model, {})
    with pytest.raises(ValueError, match="'st' have no target_language"):
        attention_losses(
            bound,
            {"st": values},
            {"st": inputs},
            {"st": labels},
            smoothing=0.0,
            deterministic=True,
        )


class TestRecognitionByCtc:
    @pytest.fixture
    def odd(self, tiny):
        """Absent, without text, longer text than speech; silence whose labels just fit."""
        paired = first_rows(tiny.batch()["paired"])
        paired["audio_length"][0] = 0
        paired["text_length"][1] = 0
        paired["audio_length"][2] = 1000  # two frames
        paired["text_length"][2] = 5
        # Five equal labels need nine of the 15 frames.
        paired["audio"][3], paired["audio_length"][3] = 0, SAMPLES
        paired["text"][3, :5], paired["text_length"][3] = 7, 5
        return paired

    def test_rows_without_a_path_are_left_out_and_counted(self, model, params, odd):
        """And a hybrid is the weighted sum of both terms."""
        objective = SpeechRecognition(ctc_weight=0.5, transducer_weight=2.0)
        assert objective.decoders == ("transducer", "ctc")
        loss, metrics = jax.jit(
            lambda p: objective.loss(model, p, None, {"paired": odd}, rng=jax.random.key(0), step=0)
        )(params)
        assert metrics["paired/num_ctc_infeasible"] == (1.0, 1.0)
        lengths = odd["text_length"]
        assert metrics["loss/ctc"][1] == lengths.sum() - lengths[0] - lengths[2]
        # The transducer may write several labels on a frame.
        assert metrics["loss/transducer"][1] == lengths.sum() - lengths[0]
        means = means_of(metrics)
        expected = 2.0 * means["loss/transducer"] + 0.5 * means["loss/ctc"]
        assert float(loss) == pytest.approx(expected, rel=1e-6)

    def test_a_transducer_that_comes_later_leaves_the_encoder_to_ctc(self, tiny, model, params):
        """Its terms are logged from the first step; its gradient begins with its schedule."""
        batch = {"paired": first_rows(tiny.batch()["paired"])}
        schedule = Schedule(points=((10, 0.0), (20, 2.0)))
        late = SpeechRecognition(ctc_weight=1.0, transducer_weight=schedule, augment=False)

        def gradients(objective):
            def loss(p, step):
                return objective.loss(model, p, None, batch, rng=jax.random.key(0), step=step)[0]

            return jax.jit(jax.grad(loss))

        gradients_of_late = gradients(late)
        for step, weight in ((5, 0.0), (15, 1.0)):
            fixed = dataclasses.replace(CTC, transducer_weight=weight)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                gradients_of_late(params, step),
                gradients(fixed)(params, 0),
            )

    def test_spec_augment_begins_at_its_step(self, tiny, model, params):
        batch = {"paired": first_rows(tiny.batch()["paired"])}

        def losses(**settings):
            objective = dataclasses.replace(CTC, **settings)
            return jax.jit(
                lambda p, step: objective.loss(
                    model, p, None, batch, rng=jax.random.key(0), step=step
                )[0]
            )

        late = losses(augment=True, augment_start_step=10)
        never, always = (losses(augment=each)(params, 0) for each in (False, True))
        assert abs(float(never) - float(always)) > 1e-3
        assert float(late(params, 9)) == pytest.approx(float(never), rel=1e-6)
        assert float(late(params, 10)) == pytest.approx(float(always), rel=1e-6)
        with pytest.raises(UserError, match="augment_start_step is -1"):
            dataclasses.replace(CTC, augment_start_step=-1)

    def test_bad_settings_are_one_line(self, tiny):
        with pytest.raises(UserError, match="one must be above 0"):
            SpeechRecognition(transducer_weight=0.0)
        with pytest.raises(UserError, match="ctc_weight=-1"):
            SpeechRecognition(ctc_weight=-1.0)
        batch = {"paired": tiny.batch()["paired"]}
        with pytest.raises(UserError, match=r"models/heads/ctc\.gin"):
            jax.eval_shape(
                lambda p: CTC.loss(tiny.model, p, None, batch, rng=tiny.step_rng(), step=0),
                parameter_trees.unbox(tiny.abstract.params),
            )

    @pytest.mark.slow
    def test_it_learns_to_write(self, model, ctc, params, odd):
        """Whatever is wrong on the way from loss to tokens, four texts do not come out right."""
        assert modules_with_gradient(ctc.gradients(params, {"paired": odd})) == {
            "subsampling",
            "speech_encoder",
            "shared_encoder",
            "ctc_head",
        }
        audio, full = tones(), np.full(ROWS, SAMPLES, np.int32)
        paired = {
            "audio": audio,
            "audio_length": full,
            "text": TEXTS,
            "text_length": LENGTHS,
            "language": np.zeros(ROWS, np.int32),
        }
        _, metrics = ctc.loss(params, {"paired": paired})
        # The transducer is not even run.
        assert {name for name in metrics if name.startswith("loss")} == {"loss", "loss/ctc"}
        learned, loss = ctc.learn(params, {"paired": paired}, 80)
        assert loss < 0.3

        @jax.jit
        def decode(params):
            call = functools.partial(model.apply, {"params": params})
            features, mask = call(audio, full, method="features")
            encoded = call(features, mask, method="encode_speech")
            context = call(encoded, mask, method="encode_shared")
            log_probs = jax.nn.log_softmax(call(context, method="ctc_logits"))
            path = ctc_alignment(log_probs, TEXTS, mask.sum(axis=1), LENGTHS)
            greedy = decode_speech(model, params, audio, full, max_labels=8, decoder="ctc")
            beam = decode_speech(
                model, params, audio, full, max_labels=8, decoder="ctc", beam_size=3
            )
            return path, greedy, beam

        path, greedy, beam = decode(learned)
        for found in (greedy, beam):
            np.testing.assert_array_equal(found.lengths[:, 0], LENGTHS)
            np.testing.assert_array_equal(found.tokens[:, 0, :6], TEXTS)
        # The likeliest path of all is the likeliest path of its own text.
        np.testing.assert_array_equal(path.frames, greedy.frames[:, 0, :6])
        np.testing.assert_allclose(path.scores, greedy.scores[:, 0], atol=1e-4)


class TestTranslationByAttention:
    def test_what_is_read_and_what_is_to_be_said(self):
        labels = TargetLabels(
            jnp.asarray([[5, 6, 7], [8, 0, 0], [0, 0, 0]]), jnp.asarray([3, 1, 0])
        )
        inputs, targets, counts = shift_right(labels)
        np.testing.assert_array_equal(inputs, [[0, 5, 6, 7], [0, 8, 0, 0], [0, 0, 0, 0]])
        np.testing.assert_array_equal(targets, [[5, 6, 7, 1], [8, 1, 0, 0], [1, 0, 0, 0]])
        np.testing.assert_array_equal(counts.sum(axis=1), [4, 2, 1])

    @pytest.fixture
    def odd(self, tiny):
        """Absent rows, and one that is there and says nothing: an end alone."""
        batch = {name: first_rows(tiny.batch()[name]) for name in ("st", "mt")}
        for feature in ("audio_length", "translation_length"):
            batch["st"][feature][0] = 0
        for feature in ("text_length", "translation_length"):
            batch["mt"][feature][1] = 0
        batch["st"]["translation_length"][2] = 0
        return batch

    def test_terms_are_cross_entropies_of_the_translations(self, model, attention, params, odd):
        """Token by token from the decoder's own logits, in float64; absent rows count nothing."""
        batch, st, mt = odd, odd["st"], odd["mt"]
        loss, metrics = attention.loss(params, batch)
        means = means_of(metrics)
        assert float(loss) == pytest.approx(means["loss/st"] + 5.0 * means["loss/mt"], rel=1e-6)

        @jax.jit
        def logits_of(params):
            call = functools.partial(model.apply, {"params": params})
            features, mask = call(st["audio"], st["audio_length"], method="features")
            encoded = call(features, mask, method="encode_speech")
            target = st["target_language"]
            context = call(encoded, mask, target, method="encode_shared")
            inputs = jnp.pad(st["translation"], ((0, 0), (1, 0)))
            return call(inputs, context, mask, target, method="translation_logits")

        logits = np.asarray(logits_of(params), np.float64)
        log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        smoothed, nats, count = 0.0, 0.0, 0
        for row in range(1, ROWS):
            length = int(st["translation_length"][row])
            for u, token in enumerate([*st["translation"][row, :length], 1]):
                nats -= log_p[row, u, token]
                smoothed -= 0.8 * log_p[row, u, token] + 0.2 * log_p[row, u].mean()
                count += 1
        np.testing.assert_allclose(metrics["loss/st"], (smoothed, count), rtol=1e-5)
        np.testing.assert_allclose(metrics["st/nll_per_token"], (nats, count), rtol=1e-5)
        assert metrics["loss/mt"][1] == mt["translation_length"].sum() + ROWS - 1

    def test_bad_settings_are_one_line(self, tiny):
        with pytest.raises(UserError, match="Did you mean 'attention'"):
            SpeechTranslation(decoder="atention")
        with pytest.raises(UserError, match="label_smoothing is 1"):
            SpeechTranslation(label_smoothing=1.0)
        with pytest.raises(UserError, match="mt_weight is -1"):
            SpeechTranslation(mt_weight=-1.0)
        batch = {"st": tiny.batch()["st"]}
        with pytest.raises(UserError, match=r"models/heads/attention\.gin"):
            jax.eval_shape(
                lambda p: ATTENTION.loss(tiny.model, p, None, batch, rng=tiny.step_rng(), step=0),
                parameter_trees.unbox(tiny.abstract.params),
            )

    @pytest.mark.slow
    def test_it_learns_to_translate_speech_and_text(self, model, attention, params, odd):
        trained = modules_with_gradient(attention.gradients(params, odd))
        assert {"translation_decoder", "text_encoder", "refiner", "speech_encoder"} <= trained
        assert not trained & {"decoder", "ctc_head", "duration_model"}
        audio, full = tones(), np.full(ROWS, SAMPLES, np.int32)
        language = np.asarray([0, 1, 0, 1], np.int32)
        source = np.zeros((ROWS, 6), np.int32)
        source[:, :3] = [[8, 9, 0], [9, 9, 8], [10, 8, 0], [10, 0, 0]]
        source_length = np.asarray([2, 3, 2, 1], np.int32)
        both = {"language": language, "target_language": language}
        st = {"audio": audio, "audio_length": full, **both}
        mt = {"text": source, "text_length": source_length, **both}
        st |= {"translation": TEXTS, "translation_length": LENGTHS}
        mt |= {"translation": TEXTS[::-1].copy(), "translation_length": LENGTHS[::-1].copy()}
        learned, _ = attention.learn(params, {"st": st, "mt": mt}, 120)
        options = {"max_labels": 6, "beam_size": 3, "decoder": "attention"}

        @jax.jit
        def decode(params):
            heard = decode_speech(model, params, audio, full, language, **options)
            read = decode_text(
                model,
                params,
                source,
                source_length,
                language,
                language,
                max_text_frames=MAX_TEXT_FRAMES,
                **options,
            )
            return heard, read

        heard, read = decode(learned)
        np.testing.assert_array_equal(heard.tokens[:, 0], TEXTS)
        np.testing.assert_array_equal(heard.lengths[:, 0], LENGTHS)
        np.testing.assert_array_equal(read.tokens[:, 0], TEXTS[::-1])
        np.testing.assert_array_equal(read.lengths[:, 0], LENGTHS[::-1])
