"""SLAM and mSLAM: each term against its definition, what it trains, and what can be learned."""

from __future__ import annotations

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maestro_jax.errors import UserError
from maestro_jax.inference.search_config import choose_decoder
from maestro_jax.losses.reduction import mean
from maestro_jax.modules.ctc_head import CtcHead
from maestro_jax.modules.speech_text import PairHead, TokenHead, TokenProjection
from maestro_jax.objectives import slam
from maestro_jax.objectives.forward import TokenBatch
from maestro_jax.objectives.self_supervised import W2vBert
from maestro_jax.objectives.slam import SlamPretraining, mismatch_half
from maestro_jax.training import parameter_trees
from maestro_jax.training.accumulation import accumulated_loss
from maestro_jax.training.partitioning import Partitioning, replicated
from maestro_jax.training.state import create_state
from maestro_jax.training.step import microbatched_terms

WIDTH = 16
SAMPLES = 9600
SPEECH = W2vBert(distractors=5)
# Both methods at once.
EVERYTHING = SlamPretraining(self_supervised=SPEECH, ctc_weight=1.0)
# All text is hidden and no speech is, so that nothing but the drawn pairs is random.
PLAIN = dataclasses.replace(
    EVERYTHING, text_mask_share=1.0, tlm_text_mask_share=1.0, tlm_speech_mask_share=0.0
)


def with_heads(model):
    """The model with all that SLAM and mSLAM need."""
    return model.clone(
        token_projection=TokenProjection(WIDTH),
        token_head=TokenHead(model.vocab_size),
        pair_head=PairHead(),
        ctc_head=CtcHead(model.vocab_size),
    )


@pytest.fixture(scope="module")
def model(tiny):
    return with_heads(tiny.maestro(dropout=0.0))


@pytest.fixture(scope="module")
def params(tiny, model):
    return tiny.params_of(model)


@pytest.fixture(scope="module")
def batch(tiny):
    """Rows of two lengths; an absent text, absent pairs, speech without text and the reverse."""
    whole = {name: tiny.batch()[name] for name in ("speech", "paired", "text", "mt")}
    batch = jax.tree.map(np.copy, whole)
    batch["text"]["text_length"] = np.array([0, 3, 6, 3, 6, 6, 3, 6], np.int32)
    batch["paired"]["text_length"] = np.array([6, 0, 3, 3, 0, 6, 3, 6], np.int32)
    batch["paired"]["audio_length"] = np.array([1, 0, 0, 1, 1, 0.7, 0.7, 0.7]) * SAMPLES
    batch["paired"]["audio_length"] = batch["paired"]["audio_length"].astype(np.int32)
    return batch


def terms_of(objective, model, **settings):
    return jax.jit(
        lambda params, batch: objective.loss_terms(
            model, params, None, batch, rng=jax.random.key(3), step=0, **settings
        )
    )


SWAPPED = np.array([False, False, False, True, False, False, True, True])
"""The pairs of the hand-computed terms whose text is that of the next row."""


@pytest.fixture(scope="module")
def found(model, params, batch):
    def next_text(rng, texts):
        def choose(array):
            mine = SWAPPED.reshape(-1, *(1 for _ in array.shape[1:]))
            return jnp.where(mine, jnp.roll(array, -1, axis=0), array)

        fields = (texts.tokens, texts.lengths, texts.language)
        return TokenBatch(*map(choose, fields)), jnp.asarray(~SWAPPED)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slam, "mismatch_half", next_text)
        return terms_of(PLAIN, model, train=False)(params, batch)


@pytest.fixture(scope="module")
def call(model, params):
    @functools.cache
    def jitted(method):
        return jax.jit(functools.partial(model.apply, {"params": params}, method=method))

    return lambda method, *arguments: jitted(method)(*arguments)


def shared(call, audio, tokens, languages):
    """The shared encoder's output of one row without padding, and the number of its frames.

    Of speech, if any, and of the text behind it, from the model's own parts.
    """
    parts, frames = [], 0
    told, spoken = (np.array([language], np.int32) for language in languages)
    if audio is not None:
        features, mask = call("features", audio[None], np.array([len(audio)]))
        parts.append(call("encode_speech", features, mask, spoken))
        frames = mask.shape[1]
    if tokens is not None:
        ids = np.array([[slam.CLS_ID, *tokens]], np.int32)
        mask = np.ones(ids.shape, bool)
        parts.append(call("project_tokens", call("encode_text", ids, mask, told), mask))
    values = jnp.concatenate(parts, axis=1)
    context = call("encode_shared", values, np.ones(values.shape[:2], bool), None, spoken)
    return context, frames


def nats(logits, tokens):
    logits = np.asarray(logits[0], np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return -sum(log_p[i, token] for i, token in enumerate(tokens))


@pytest.mark.extended
def test_span_lm(found, call, batch):
    text = batch["text"]
    total = 0.0
    for tokens, length, language in zip(
        text["text"], text["text_length"], text["language"], strict=True
    ):
        if length:
            hidden = [slam.MASK_ID] * length
            context, _ = shared(call, None, hidden, (language, language))
            total += nats(call("token_logits", context[:, 1:]), tokens[:length])
    count = text["text_length"].sum()
    np.testing.assert_allclose(found[0]["span_lm"], (total, count), rtol=1e-5)
    np.testing.assert_allclose(found[1]["text/masked_token_fraction"], (count, count))


@pytest.mark.extended
def test_tlm_and_ctc_of_pairs(found, call, batch):
    paired = batch["paired"]
    tlm, ctc, count = 0.0, 0.0, 0
    for row in range(8):
        samples, length = paired["audio_length"][row], paired["text_length"][row]
        language = (paired["language"][row],) * 2
        tokens = paired["text"][row, :length]
        audio = paired["audio"][row, :samples]
        if samples and not length:
            # Speech that says nothing: a blank on each frame.
            context, frames = shared(call, audio, None, language)
            ctc += nats(call("ctc_logits", context), [0] * frames)
        if not samples or not length:
            continue
        context, frames = shared(call, audio, [slam.MASK_ID] * length, language)
        tlm += nats(call("token_logits", context[:, frames + 1 :]), tokens)
        logits = call("ctc_logits", context[:, :frames])
        [loss] = optax.ctc_loss(
            logits, np.zeros((1, frames)), tokens[None], np.zeros((1, length)), blank_id=0
        )
        ctc, count = ctc + float(loss), count + length
    np.testing.assert_allclose(found[0]["ctc"], (ctc, count), rtol=1e-5)
    present = (paired["audio_length"] > 0) & (paired["text_length"] > 0)
    np.testing.assert_allclose(
        found[0]["tlm"], (tlm, paired["text_length"][present].sum()), rtol=1e-5
    )


@pytest.mark.extended
def test_speech_text_matching(found, call, batch):
    paired = batch["paired"]
    total, count, right = 0.0, 0, 0
    for row in range(8):
        source = (row + 1) % 8 if SWAPPED[row] else row
        samples, length = paired["audio_length"][row], paired["text_length"][source]
        if not samples or not length:
            continue
        context, frames = shared(
            call,
            paired["audio"][row, :samples],
            paired["text"][source, :length],
            (paired["language"][source], paired["language"][row]),
        )
        logit = float(call("pair_logit", context[:, frames])[0])
        # -log of the logistic function, of the logit of what is true.
        total += np.log1p(np.exp(logit if SWAPPED[row] else -logit))
        right += (logit > 0) != SWAPPED[row]
        count += 1
    np.testing.assert_allclose(found[0]["speech_text_matching"], (total, count), rtol=1e-5)
    np.testing.assert_allclose(found[1]["paired/pair_accuracy"], (right, count))


@pytest.mark.extended
def test_speech_of_pairs_is_that_of_w2v_bert(found):
    """No frame is hidden here, so that only the diversity of codes counts."""
    terms, metrics = found
    assert set(terms) == set(EVERYTHING.term_weights)
    assert terms["tlm_contrastive"] == terms["tlm_masked_prediction"] == (0.0, 0.0)
    assert terms["tlm_diversity"][1] == 1.0
    assert metrics["paired/masked_fraction"][0] == 0.0
    assert metrics["speech/masked_fraction"][0] > 0.0


class TestMismatches:
    def draw(self, texts, draws=64):
        def one(key):
            chosen, own = mismatch_half(key, texts)
            return chosen.tokens, chosen.lengths, chosen.language, own

        drawn = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), draws))
        return tuple(map(np.asarray, drawn))

    def test_half_of_the_rows_get_the_text_of_another(self):
        rows = 6
        tokens = np.arange(3, 3 + rows * 4, dtype=np.int32).reshape(rows, 4)
        texts = TokenBatch(tokens, np.full(rows, 4, np.int32), np.arange(rows, dtype=np.int32))
        found, _, languages, own = self.draw(texts, 200)
        assert abs(own.mean() - 0.5) < 0.05
        source = (found[..., 0] - 3) // 4  # [draws, rows]
        np.testing.assert_array_equal(found, tokens[source])
        np.testing.assert_array_equal(languages, source)
        np.testing.assert_array_equal(own, source == np.arange(rows))
        # Every other row occurs.
        assert {*source[:, 0]} == set(range(rows))

    def test_absent_and_equal_texts_are_no_mismatches(self):
        tokens = np.array([[5, 6, 7], [5, 6, 9], [5, 6, 0], [4, 4, 4]], np.int32)
        # The first three are the text 5 6; the last is absent.
        texts = TokenBatch(tokens, np.array([2, 2, 2, 0], np.int32), np.zeros(4, np.int32))
        *_, own = self.draw(texts)
        assert own[:, :3].all()
        # An absent row may be given a text; without speech it counts nowhere.
        alone = TokenBatch(tokens[:1], np.array([2], np.int32), np.zeros(1, np.int32))
        assert self.draw(alone)[-1].all()


# Heads that serve one term are parts of their own.
PARTS = (
    "subsampling",
    "quantizer/logits",
    "quantizer/codebook",
    "speech_encoder/contrastive_projection",
    "speech_encoder",
    "text_encoder",
    "token_projection",
    "token_head",
    "pair_head",
    "ctc_head",
    "shared_encoder/code_head",
    "shared_encoder",
)
SPEECH_IN = {"subsampling", "speech_encoder"}
TEXT_IN = {"text_encoder", "token_projection"}
PAIR_IN = SPEECH_IN | TEXT_IN | {"shared_encoder"}
CONTRASTIVE = SPEECH_IN | {
    "speech_encoder/contrastive_projection",
    "quantizer/logits",
    "quantizer/codebook",
}
DIVERSITY = {"subsampling", "quantizer/logits"}
TABLE = {
    "contrastive": CONTRASTIVE,
    "diversity": DIVERSITY,
    "masked_prediction": SPEECH_IN | {"shared_encoder", "shared_encoder/code_head"},
    "span_lm": TEXT_IN | {"shared_encoder", "token_head"},
    "tlm": PAIR_IN | {"token_head"},
    # Below the shared encoder speech does not see the text.
    "tlm_contrastive": CONTRASTIVE,
    "tlm_diversity": DIVERSITY,
    "tlm_masked_prediction": PAIR_IN | {"shared_encoder/code_head"},
    "speech_text_matching": PAIR_IN | {"pair_head"},
    "ctc": PAIR_IN | {"ctc_head"},
}


@pytest.mark.extended
def test_a_term_trains_its_parts_and_no_other(model, params, batch):
    def pull(params, cotangents):
        def totals(params):
            terms, _ = EVERYTHING.loss_terms(
                model, params, None, batch, rng=jax.random.key(3), step=0
            )
            return {name: total for name, (total, _) in terms.items()}

        return jax.vjp(totals, params)[1](cotangents)[0]

    pull = jax.jit(pull)
    for term, parts in TABLE.items():
        one = {name: jnp.float32(name == term) for name in TABLE}
        reached: dict[str, float] = {}
        for name, leaf in parameter_trees.named_leaves(pull(params, one)):
            assert np.isfinite(leaf).all(), (term, name)
            part = next((p for p in PARTS if name.startswith(p + "/")), name)
            reached[part] = max(reached.get(part, 0.0), float(np.abs(leaf).max()))
        assert {part for part, size in reached.items() if size > 0.0} == parts, term
        assert min(reached[part] for part in parts) > 1e-6, term


def test_weights_say_which_terms_there_are(model):
    assert EVERYTHING.streams == ("speech", "paired", "text")
    assert set(EVERYTHING.term_weights) == set(TABLE) == set(EVERYTHING.term_units)
    mslam = SlamPretraining(matching_weight=0.0, ctc_weight=0.1)
    assert mslam.decoders == ("ctc",)
    assert set(TABLE) - set(mslam.term_weights) == {"speech_text_matching"}
    plain = SlamPretraining()
    with pytest.raises(UserError, match="SlamPretraining trained no decoder; fine-tune"):
        choose_decoder(types.SimpleNamespace(objective=plain, model=model), None)
    assert set(TABLE) - set(plain.term_weights) == {"ctc"}


def test_bad_settings_are_one_line(tiny, model):
    with pytest.raises(UserError, match="tlm_text_mask_share is 1.5"):
        SlamPretraining(tlm_text_mask_share=1.5)
    with pytest.raises(UserError, match="text_mask_span is 0"):
        SlamPretraining(text_mask_span=0)
    for part, file in (
        ("token_projection", "tokens"),
        ("token_head", "tokens"),
        ("pair_head", "pairs"),
        ("ctc_head", "ctc"),
    ):
        lacking = model.clone(**{part: None})
        with pytest.raises(UserError, match=rf"Maestro\.{part}.*models/heads/{file}\.gin"):
            EVERYTHING.init(lacking, jax.random.key(0), {})
    jax.eval_shape(lambda: SlamPretraining().init(model.clone(ctc_head=None), tiny.step_rng(), {}))


@pytest.mark.extended
def test_parts_of_a_batch_add_up(tiny, model, params, batch):
    """Totals to totals and counts to counts, masks and pairs drawn anew in each part."""
    rng, step = jax.random.key(5), jnp.int32(7)
    state = create_state(params, tiny.optimizer).replace(step=step)
    used = {name: batch[name] for name in EVERYTHING.streams}

    @jax.jit
    def in_parts(state, batch):
        parts = microbatched_terms(EVERYTHING, model, state, batch, None, rng, 2)
        return accumulated_loss(EVERYTHING, state.params, parts, step=state.step, controls=None)

    @jax.jit
    def one(index, part):
        return EVERYTHING.loss_terms(
            model, params, params, part, rng=jax.random.fold_in(rng, index), step=step
        )

    pieces = [
        one(index, jax.tree.map(lambda x: x[4 * index : 4 * index + 4], used))  # noqa: B023
        for index in range(2)
    ]
    expected = {
        name: tuple(map(sum, zip(*(terms[name] for terms, _ in pieces), strict=True)))
        for name in TABLE
    }
    value, metrics, _ = in_parts(state, used)
    for name, pair in expected.items():
        np.testing.assert_allclose(metrics[f"loss/{name}"], pair, rtol=2e-5, err_msg=name)
    weighted = sum(EVERYTHING.term_weights[name] * mean(pair) for name, pair in expected.items())
    assert float(value) == pytest.approx(float(weighted), rel=2e-5)


@pytest.mark.extended
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (CPU) devices")
def test_a_mesh_computes_what_one_device_does(model, params, batch):
    partitioning = Partitioning(mesh_shape=(2, 2, 2))
    mesh = partitioning.mesh()
    abstract = jax.eval_shape(lambda: model.init({"params": jax.random.key(0)}, {}))["params"]
    shardings = partitioning.state_shardings(mesh, abstract)
    placed = dict(parameter_trees.named_leaves(shardings))
    sizes = {name: leaf.shape for name, leaf in parameter_trees.named_leaves(params)}
    for name in ("token_projection/output/kernel", "token_head/output/kernel"):
        assert np.prod(placed[name].shard_shape(sizes[name])) <= np.prod(sizes[name]) // 2, name
    used = {name: batch[name] for name in EVERYTHING.streams}

    def loss(params, batch):
        terms, metrics = EVERYTHING.loss_terms(
            model, params, None, batch, rng=jax.random.key(3), step=0
        )
        return sum(map(mean, terms.values())), (terms, metrics)

    step = jax.grad(loss, has_aux=True)
    expected_gradients, expected = jax.jit(step)(params, used)
    function = jax.jit(
        step,
        in_shardings=(shardings, partitioning.batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )
    with partitioning.activate(mesh):
        gradients, found = function(
            jax.device_put(params, shardings), partitioning.shard_batch(mesh, used)
        )
    for there, here in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(there, here, rtol=2e-5, atol=1e-5)
    there = dict(parameter_trees.named_leaves(gradients))
    for name, leaf in parameter_trees.named_leaves(expected_gradients):
        np.testing.assert_allclose(there[name], leaf, atol=2e-5, err_msg=name)


@pytest.mark.extended
def test_bfloat16_comes_close(tiny, model, params, batch):
    """The heads compute in it; logits and losses stay float32."""
    half = model.clone(
        token_projection=TokenProjection(WIDTH, dtype=jnp.bfloat16),
        token_head=TokenHead(model.vocab_size, dtype=jnp.bfloat16),
        text_encoder=model.text_encoder.clone(dtype=jnp.bfloat16),
        speech_encoder=model.speech_encoder.clone(
            stack=model.speech_encoder.stack.clone(dtype=jnp.bfloat16), dtype=jnp.bfloat16
        ),
        shared_encoder=model.shared_encoder.clone(
            stack=model.shared_encoder.stack.clone(dtype=jnp.bfloat16), dtype=jnp.bfloat16
        ),
    )
    exact, _ = terms_of(PLAIN, model, train=False)(params, batch)
    rounded, _ = terms_of(PLAIN, half, train=False)(params, batch)
    for name in ("span_lm", "tlm", "speech_text_matching", "ctc"):
        assert rounded[name][0].dtype == jnp.float32
        assert rounded[name][1] == exact[name][1]
        assert float(mean(rounded[name])) == pytest.approx(float(mean(exact[name])), rel=0.03)


@pytest.mark.extended
def test_it_learns_to_read_what_it_hears(model, params):
    """With all of the text hidden, only the speech tells it; and mismatches are found out."""
    time = np.arange(SAMPLES // 3) / 16_000
    texts = np.array([[3, 4, 5], [5, 3, 4], [4, 5, 3], [3, 5, 4]], np.int32)
    hertz = {3: 300, 4: 900, 5: 2500}
    audio = np.stack(
        [np.concatenate([np.sin(2 * np.pi * hertz[t] * time) for t in row]) for row in texts]
    )
    rows = len(texts)
    language = np.zeros(rows, np.int32)
    text = {"text": texts, "text_length": np.full(rows, 3, np.int32), "language": language}
    batch = {
        "paired": {
            "audio": (8000 * audio).astype(np.int16),
            "audio_length": np.full(rows, SAMPLES, np.int32),
            **text,
        },
        "text": text,
    }
    objective = dataclasses.replace(
        PLAIN, text_mask_share=0.4, text_mask_span=1, tlm_text_mask_share=0.9
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))

    @jax.jit
    def step(params, state, key):
        (_, metrics), gradients = jax.value_and_grad(
            lambda p: objective.loss(model, p, None, batch, rng=key, step=0), has_aux=True
        )(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, metrics

    state = optimizer.init(params)
    seen: dict[str, list[float]] = {}
    for index in range(480):
        params, state, metrics = step(params, state, jax.random.key(index))
        for name, (total, count) in metrics.items():
            if count:
                seen.setdefault(name, []).append(float(total) / float(count))
    last = {name: np.mean(values[-40:]) for name, values in seen.items()}
    assert last["paired/masked_token_accuracy"] > 0.95
    assert last["paired/pair_accuracy"] > 0.9
    assert last["loss/ctc"] < 0.5
    # Of three tones in any order, the two that are left say which is the third.
    assert last["text/masked_token_accuracy"] > 0.7
