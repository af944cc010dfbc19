"""Pretraining without learned durations: what each method trains, parts, meshes, little data."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maestro_jax.errors import UserError
from maestro_jax.losses.best_alignment import best_alignment_loss
from maestro_jax.losses.expected_distance import expected_distance
from maestro_jax.losses.similarity import l2_normalize, standardize
from maestro_jax.losses.transducer_alignment import emission_posterior
from maestro_jax.objectives.astra import Astra
from maestro_jax.objectives.best_alignment import BestAlignment
from maestro_jax.objectives.duration_sources import (
    FixedRepetition,
    Learned,
    RandomRepetition,
    SubwordGaussian,
)
from maestro_jax.objectives.maestro import MaestroPretraining
from maestro_jax.objectives.metrics import at_speech_frames
from maestro_jax.objectives.self_supervised import W2vBert
from maestro_jax.objectives.text_losses import TextMasks
from maestro_jax.training import parameter_trees
from maestro_jax.training.parameter_trees import unbox
from maestro_jax.training.partitioning import Partitioning, replicated
from maestro_jax.training.state import create_state
from maestro_jax.training.step import train_step

SHARED = {"max_text_frames": 15, "self_supervised": W2vBert(distractors=5)}
METHODS = {
    "best_alignment": MaestroPretraining(
        matching=BestAlignment(), durations=FixedRepetition(frames=2), **SHARED
    ),
    "best_alignment_below": MaestroPretraining(
        matching=BestAlignment(encoder="speech"), durations=RandomRepetition(), **SHARED
    ),
    "astra": MaestroPretraining(matching=Astra(), durations=FixedRepetition(frames=1), **SHARED),
    "joist": MaestroPretraining(
        matching=None,
        durations=FixedRepetition(frames=2),
        text_masks=TextMasks(on_paired=True),
        **SHARED,
    ),
}
MATCHING = {name: method for name, method in METHODS.items() if method.matching is not None}
TEXT_IN = {"text_encoder", "resampler", "refiner"}
TRAINED = {
    "best_alignment": ("matching", TEXT_IN | {"shared_encoder"}),
    "best_alignment_below": ("matching", TEXT_IN),
    "astra": ("matching", TEXT_IN),
    "joist": ("paired_aligned_masked_lm", TEXT_IN | {"shared_encoder", "decoder"}),
}
TERMS_OF_STREAM = {
    "speech": {"contrastive", "diversity", "masked_prediction"},
    "paired": {"transducer", "matching", "paired_aligned_masked_lm"},
    "text": {"aligned_masked_lm"},
    "mt": {"mt"},
    "st": {"st"},
}


def traced(tiny, method, batch):
    """The shapes of the metrics of a step, and of the gradients."""
    state = tiny.state()

    def loss(params):
        rng = tiny.step_rng()
        return method.loss(tiny.model, params, state.ema_params, batch, rng=rng, step=tiny.later)

    return jax.eval_shape(jax.grad(loss, has_aux=True), state.params)


def test_terms_and_settings(tiny):
    terms = {name: set(method.loss_weights["paired"]) for name, method in METHODS.items()}
    assert terms["joist"] == {"transducer", "paired_aligned_masked_lm"}
    for name in MATCHING:
        assert terms[name] == {"transducer", "matching"}
    assert METHODS["astra"].term_units["matching"] == "distance per label"
    for durations in (Learned(), SubwordGaussian()):
        with pytest.raises(UserError, match="learns no durations; set DURATIONS to"):
            MaestroPretraining(matching=BestAlignment(), durations=durations)
    for durations in (Learned(), FixedRepetition(), RandomRepetition(low=0, high=1)):
        with pytest.raises(UserError, match="one vector per token; set DURATIONS to"):
            MaestroPretraining(matching=Astra(), durations=durations)
    for settings, message in (
        ({"encoder": "sharde"}, "encoder is 'sharde'.*Did you mean 'shared'"),
        ({"form": "infonce"}, "form is"),
        ({"stop_gradient": "both"}, "stop_gradient is"),
    ):
        with pytest.raises(UserError, match=message):
            BestAlignment(**settings)
    with pytest.raises(UserError, match="Astra.form is"):
        Astra(form="l1")
    # Nothing is predicted by the duration model, of which no copy is kept.
    init = functools.partial(METHODS["astra"].init, tiny.model, jax.random.key(0))
    assert "frozen_durations" not in jax.eval_shape(lambda: init({"text": None, "paired": None}))


@pytest.mark.parametrize("name", MATCHING)
def test_text_has_the_length_of_its_own_rate(tiny, name, monkeypatch):
    """And no aligner runs: speech is encoded once, text once at the top if that is compared."""
    method, passes = METHODS[name], []
    tiny.state()  # Initialised before the model is listened to.
    encode = type(tiny.model).encode_shared_with_intermediate

    def listening(self, x, *args, **kwargs):
        passes.append(x.shape[:2])
        return encode(self, x, *args, **kwargs)

    monkeypatch.setattr(type(tiny.model), "encode_shared_with_intermediate", listening)
    monkeypatch.setattr(type(tiny.model), "encode_shared", None)
    batch = {stream: tiny.batch()[stream] for stream in ("paired", "text")}
    traced(tiny, method, batch)
    tokens = tiny.streams["text"].text_tokens
    expected = {
        # Speech of 15 frames; 6 tokens of 2 frames, the text of pairs beside unspoken text.
        "best_alignment": [(8, 15), (16, 2 * tokens)],
        # At most 3 frames a token: more than the 15 that unspoken text may have.
        "best_alignment_below": [(16, 15)],
        "astra": [(8, 15), (8, tokens)],
    }
    assert passes == expected[name]


def test_a_token_is_looked_up_where_it_is_spoken():
    text = jnp.arange(12.0).reshape(1, 6, 2)
    durations, aligned = jnp.array([[2, 1, 3]]), jnp.array([[1, 0, 3]])
    found, index = at_speech_frames(text, durations, aligned, 5)
    np.testing.assert_array_equal(found[0, :4, 0], [0.0, 6.0, 6.0, 6.0])
    np.testing.assert_array_equal(index.mask, [[True] * 4 + [False]])


@pytest.fixture(scope="module", params=METHODS)
def program(request, tiny):
    """The method's name; and from a batch and a term to all terms, metrics and its gradient."""
    method, state = METHODS[request.param], tiny.state()

    def compute(params, batch, cotangents):
        def terms(params):
            found, metrics = method.loss_terms(
                tiny.model,
                params,
                state.ema_params,
                batch,
                rng=tiny.step_rng(),
                step=tiny.later,
            )
            return {name: total for name, (total, _) in found.items()}, (metrics, found)

        values, backward, (metrics, found) = jax.vjp(terms, params, has_aux=True)
        return found, metrics, backward({name: cotangents[name] for name in values})[0]

    compiled = jax.jit(compute)

    def of(batch, *terms):
        wanted = {name: jnp.float32(name in terms) for name in method.term_weights}
        found, metrics, gradients = jax.device_get(compiled(state.params, batch, wanted))
        for leaf in jax.tree.leaves((found, metrics, gradients)):
            assert np.all(np.isfinite(leaf))
        return found, metrics, dict(parameter_trees.named_leaves(gradients))

    return request.param, of


@pytest.mark.extended
def test_what_the_term_trains(tiny, program):
    name, of = program
    term, parts = TRAINED[name]
    found, metrics, gradients = of(tiny.batch(), term)
    sizes = {}
    for parameter, leaf in gradients.items():
        part = parameter.split("/")[0]
        sizes[part] = max(sizes.get(part, 0.0), float(np.abs(leaf).max()))
    assert {part for part, size in sizes.items() if size > 0.0} == parts
    assert min(sizes[part] for part in parts) > 1e-7
    assert found[term][0] > 0.0
    paired = tiny.batch()["paired"]
    labels = paired["text_length"]
    frames = -(-(1 + (paired["audio_length"] - 400) // 160) // 4)
    counts = {
        "best_alignment": np.maximum(frames, 2 * labels).sum(),
        "astra": labels.sum(),
        "joist": labels.sum(),
    }
    assert found[term][1] == counts.get(name, found[term][1])
    # The gates of the curriculum read these in every method.
    for metric in ("alignment_entropy", "zero_duration_fraction", "last_label_fraction"):
        assert f"paired/{metric}" in metrics
    assert ("paired/cosine" in metrics) == (name in MATCHING)


@pytest.mark.extended
def test_little_in_the_batch_is_harmless(tiny, program):
    name, of = program
    term = TRAINED[name][0]
    expected, _, _ = of(tiny.batch())
    for stream in TERMS_OF_STREAM:
        batch = tiny.batch()
        batch[stream] = {
            feature: np.zeros_like(values) if feature.endswith("_length") else values
            for feature, values in batch[stream].items()
        }
        found, _, _ = of(batch, *METHODS[name].term_weights)
        for other, pair in found.items():
            if other in TERMS_OF_STREAM[stream]:
                assert pair[0] == 0.0, (stream, other)
            else:
                np.testing.assert_allclose(pair, expected[other], rtol=1e-5, err_msg=other)
    for feature in ("audio", "text"):
        batch = tiny.batch()
        lengths = np.zeros_like(batch["paired"][f"{feature}_length"])
        batch["paired"] = {**batch["paired"], f"{feature}_length": lengths}
        found, _, _ = of(batch, term)
        # JOIST reads the text of a pair without speech.
        assert found[term][0] == 0.0 or (name, feature) == ("joist", "audio")
    # One encoder frame for all labels, and none; nothing to hear.
    for change in ({"audio_length": 1000}, {"audio_length": 399}, {"audio": 0}):
        batch = tiny.batch()
        changed = {key: np.full_like(batch["paired"][key], value) for key, value in change.items()}
        batch["paired"] = {**batch["paired"], **changed}
        of(batch, *METHODS[name].term_weights)


@pytest.mark.extended
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("missing", ["speech paired st", "text mt", "paired", "speech mt st"])
def test_a_batch_may_lack_streams(tiny, name, missing):
    batch = {stream: part for stream, part in tiny.batch().items() if stream not in missing.split()}
    gradients, metrics = traced(tiny, METHODS[name], batch)
    assert jax.tree.structure(gradients) == jax.tree.structure(tiny.state().params)
    found = {metric.removeprefix("loss/") for metric in metrics if metric.startswith("loss/")}
    expected = set(METHODS[name].term_weights)
    for stream in missing.split():
        expected -= TERMS_OF_STREAM[stream]
    assert found == expected


def step_of(tiny, name, model, accumulate=1):
    """A training step on pairs whose speech is not augmented."""
    method = METHODS[name]
    fields = ("matching", "durations", "max_text_frames")
    plain = MaestroPretraining(
        augment_paired=False, **{field: getattr(method, field) for field in fields}
    )
    step = functools.partial(train_step, model=model, objective=plain, optimizer=tiny.optimizer)
    return functools.partial(step, ema_decay=0.99, seed=0, accumulate=accumulate)


@pytest.fixture(scope="module", params=["best_alignment", "astra"])
def whole(request, tiny):
    """A model without dropout, its state, unequal pairs, and their step on one device."""
    model = tiny.maestro(dropout=0.0)
    state = create_state(tiny.params_of(model), tiny.optimizer)
    paired = tiny.batch()["paired"]
    paired["text_length"] = np.asarray([6, 1, 5, 2, 6, 0, 3, 1], np.int32)
    paired["audio_length"][5] = 0
    batch = {"paired": paired}
    new, metrics = jax.jit(step_of(tiny, request.param, model))(state, batch)
    return request.param, model, state, batch, tiny.gradients(new), jax.device_get(metrics)


def assert_same(gradients, metrics, whole):
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in whole[4].values()))
    assert norm > 0.01
    for name, leaf in whole[4].items():
        assert np.linalg.norm(gradients[name] - leaf) < 1e-5 * norm, name
    assert set(metrics) == set(whole[5])
    for name, pair in whole[5].items():
        # A sum of cosines of both signs is small beside its terms.
        atol = 1e-3 if name == "paired/cosine" else 1e-6
        np.testing.assert_allclose(metrics[name], pair, rtol=1e-5, atol=atol, err_msg=name)


@pytest.mark.extended
def test_the_gradient_is_that_of_the_parts(tiny, whole):
    name, model, state, batch, *_ = whole
    new, metrics = jax.jit(step_of(tiny, name, model, accumulate=4))(state, batch)
    assert_same(tiny.gradients(new), jax.device_get(metrics), whole)


@pytest.mark.extended
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (CPU) devices")
def test_a_mesh_computes_the_same_and_gathers_no_lattice(tiny, whole):
    name, model, state, batch, *_ = whole
    partitioning = Partitioning(mesh_shape=(2, 2, 2))
    mesh = partitioning.mesh()
    shardings = partitioning.state_shardings(mesh, tiny.abstract)
    with partitioning.activate(mesh):
        step = jax.jit(
            step_of(tiny, name, model),
            in_shardings=(shardings, partitioning.batch_sharding(mesh)),
            out_shardings=(shardings, replicated(mesh)),
        )
        placed = jax.device_put(state, shardings), partitioning.shard_batch(mesh, batch)
        compiled = step.lower(*placed).compile()
        new, metrics = compiled(*placed)
    assert_same(tiny.gradients(new), jax.device_get(metrics), whole)
    # Rows are split over data and fsdp: no device holds the distances of all eight.
    positions = {"best_alignment": 12, "astra": 6}[name]
    text = compiled.as_text()
    assert f"f32[2,15,{positions}]" in text
    assert f"f32[8,15,{positions}]" not in text


# --- What the losses are for ----------------------------------------------------------------------

ROWS, FRAMES, TOKENS, KINDS = 24, 15, 5, 6


@pytest.fixture(scope="module")
def utterances():
    """Speech whose frames are noisy vectors of their token, tokens, and durations."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(KINDS, 16))
    # No token twice in a row: where one ends can be seen.
    tokens = np.stack([rng.permutation(KINDS)[:TOKENS] for _ in range(ROWS)])
    durations = np.stack([rng.permutation([3, 1, 5, 2, 4]) for _ in range(ROWS)])
    spoken = np.stack([np.repeat(*row) for row in zip(tokens, durations, strict=True)])
    speech = table[spoken] + 0.3 * rng.normal(size=(ROWS, FRAMES, 16))
    return speech.astype(np.float32), (tokens + 3).astype(np.int32), durations


def by_best_alignment(speech, text, durations):
    lengths = jnp.full(ROWS, FRAMES), jnp.full(ROWS, text.shape[1])
    return best_alignment_loss(standardize(speech), standardize(text), *lengths)


def by_expectation(speech, text, durations):
    """The transducer is sure to emit a token while it is spoken, but not when."""
    start = np.cumsum(durations, axis=1) - durations
    since = np.arange(FRAMES)[None, :, None] - start[:, None]
    label = jnp.where((since >= 0) & (since < durations[:, None]), 0.0, -9.0)
    blank = jnp.full((ROWS, FRAMES, TOKENS + 1), -0.7)
    lengths = jnp.full(ROWS, FRAMES), jnp.full(ROWS, TOKENS)
    posterior = emission_posterior(blank, label, *lengths)
    return expected_distance(standardize(speech), standardize(text), posterior, *lengths)


@pytest.mark.extended
@pytest.mark.parametrize(("loss_of", "rate"), [(by_best_alignment, 3), (by_expectation, 1)])
def test_a_token_comes_to_its_own_speech(tiny, utterances, loss_of, rate):
    """From texts as a new model encodes them, without being told which frames are a token's."""
    speech, tokens, durations = utterances
    params = jax.jit(lambda: unbox(tiny.model.init({"params": jax.random.key(1)}, {})["params"]))()
    optimizer = optax.adam(1e-2)
    ones = np.ones_like(tokens)

    def loss(trained):
        call = functools.partial(tiny.model.apply, {"params": params | trained})
        embedded = call(tokens, ones > 0, np.zeros(ROWS, np.int32), method="encode_text")
        text = call(embedded, rate * ones, rate * TOKENS, method="upsample")[0]
        total, count = loss_of(speech, text, durations)
        return total / count, text

    @jax.jit
    def step(trained, state):
        (value, text), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(trained, updates), state, value, text

    def retrieval(text):
        """How often the frame that is nearest to a token, of its utterance, is of that token."""
        cosine = np.einsum(
            "bnd,btd->bnt", l2_normalize(standardize(text)), l2_normalize(standardize(speech))
        )
        owner = np.stack([np.repeat(np.arange(TOKENS), row) for row in durations])
        nearest = np.take_along_axis(owner, cosine.argmax(-1), axis=1)
        return np.mean(nearest == np.repeat(np.arange(TOKENS), rate))

    trained = {name: params[name] for name in TEXT_IN}
    state = optimizer.init(trained)
    trained, state, first, text = step(trained, state)
    before = retrieval(text)
    for _ in range(80):
        trained, state, value, text = step(trained, state)
    assert before < 0.4
    assert retrieval(text) > 0.85
    assert float(value) < 0.5 * float(first)
