"""Which layer the contrastive loss reads, and whether each row's language reaches both encoders."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.decoding.speech import decode_speech, decode_text
from maestro_jax.inference.aligner import align_speech
from maestro_jax.losses.reduction import mean
from maestro_jax.modules.maestro import Maestro
from maestro_jax.objectives.maestro import MaestroPretraining
from maestro_jax.objectives.metrics import probe_pairs
from maestro_jax.objectives.self_supervised import W2vBert
from maestro_jax.objectives.speech_recognition import SpeechRecognition
from maestro_jax.objectives.speech_translation import SpeechTranslation
from maestro_jax.training import parameter_trees
from maestro_jax.training.partitioning import Partitioning

LAYERS = 2
LANGUAGES = 3


def drawn(model: Maestro) -> dict:
    """Parameters of which none is zero, those that begin at zero included."""
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(lambda: model.init({"params": jax.random.key(0)}, {})["params"])

    def one(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(one, parameter_trees.unbox(abstract))


@pytest.mark.parametrize("layer", [1, -2])
def test_the_contrastive_loss_trains_nothing_above_its_layer(tiny, layer: int) -> None:
    encoder = tiny.model.speech_encoder
    deeper = encoder.clone(stack=encoder.stack.clone(layers=LAYERS))
    model = tiny.model.clone(speech_encoder=deeper, contrastive_layer=layer)
    objective = MaestroPretraining(self_supervised=W2vBert(distractors=5))
    batch = {"speech": tiny.batch()["speech"]}

    def contrastive(params: dict) -> jax.Array:
        terms, _ = objective.loss_terms(
            model, params, params, batch, rng=tiny.step_rng(), step=tiny.later
        )
        return mean(terms["contrastive"])

    gradient = jax.jit(jax.grad(contrastive))(drawn(model))
    learned = [
        max(float(np.abs(leaf[index]).max()) for leaf in jax.tree.leaves(gradient[part]["stack"]))
        for part in ("speech_encoder", "shared_encoder")
        for index in range(LAYERS)
    ]
    top = layer if layer > 0 else 2 * LAYERS + 1 + layer
    assert all(size > 1e-6 for size in learned[:top])
    assert not any(learned[top:])
    assert np.any(gradient["speech_encoder"]["contrastive_projection"]["kernel"])


def test_a_contrastive_layer_outside_the_encoders_is_refused(tiny) -> None:
    for layer in (0, 4, -4):
        with pytest.raises(ValueError, match="one of the 3 Conformer layers"):
            tiny.model.clone(contrastive_layer=layer)


@pytest.fixture(scope="module")
def universal(tiny) -> Maestro:
    """As Maestro-U: embeddings of the source language, and adapters of each language."""

    def told(encoder):
        stack = encoder.stack.clone(adapter_features=4, adapter_languages=LANGUAGES)
        return encoder.clone(stack=stack, source_languages=LANGUAGES)

    return tiny.model.clone(
        speech_encoder=told(tiny.model.speech_encoder),
        shared_encoder=told(tiny.model.shared_encoder),
    )


def test_every_pass_is_told_the_language(tiny, universal) -> None:
    """Tracing is enough: an encoder that is not told its language raises."""
    batch = tiny.batch()
    params = drawn(universal)
    arguments = {"rng": tiny.step_rng(), "step": 0}
    for objective in (
        MaestroPretraining(
            max_text_frames=tiny.max_text_frames, translation_packing="concatenated"
        ),
        SpeechRecognition(),
        SpeechTranslation(max_text_frames=tiny.max_text_frames),
    ):
        loss = functools.partial(objective.loss, universal, **arguments)
        jax.eval_shape(loss, params, params, batch)
    paired, text = batch["paired"], batch["mt"]
    jax.eval_shape(functools.partial(probe_pairs, universal), params, paired)
    heard = (paired["audio"], paired["audio_length"])
    written = (text["text"], text["text_length"], text["language"])
    labels = (paired["text"], paired["text_length"])
    speech = functools.partial(decode_speech, universal, max_labels=4)
    jax.eval_shape(speech, params, *heard, language=paired["language"])
    jax.eval_shape(
        functools.partial(decode_text, universal, max_text_frames=9, max_labels=4), params, *written
    )
    align = functools.partial(align_speech, universal)
    jax.eval_shape(align, params, *heard, *labels, language=paired["language"])
    with pytest.raises(ValueError, match="say which language"):
        jax.eval_shape(speech, params, *heard)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (CPU) devices")
def test_languages_learn_apart_and_on_a_mesh_the_same(universal) -> None:
    params = drawn(universal)
    rng = np.random.default_rng(1)
    features = rng.normal(size=(8, 5, 4 * universal.subsampling.channels[-1])).astype(np.float32)
    batch = {
        "features": features,
        "mask": np.arange(5) < np.array([5, 3, 4, 5, 2, 5, 1, 5])[:, None],
        # The third language is not there; a negative id is no language.
        "language": np.array([0, 1, -1, 0, 1, -1, 0, 1], np.int32),
    }
    weights = rng.normal(size=(8, 5, universal.shared_encoder.stack.features)).astype(np.float32)

    def loss(params: dict, batch: dict) -> jax.Array:
        call = functools.partial(universal.apply, {"params": params})
        mask, language = batch["mask"], batch["language"]
        encoded = call(batch["features"], mask, language, method="encode_speech")
        return jnp.sum(weights * call(encoded, mask, None, language, method="encode_shared"))

    gradient = jax.jit(jax.grad(loss))
    encoders = ("speech_encoder", "shared_encoder")
    found = gradient(params, batch)
    alone = {part: found[part] for part in encoders}
    for part, embedding in (
        ("speech_encoder", "language_embedding"),
        ("shared_encoder", "source_embedding"),
    ):
        learned = np.abs(alone[part][embedding]["table"]["embedding"]).max(axis=1) > 1e-7
        np.testing.assert_array_equal(learned, [True, True, False])
        for name, leaf in parameter_trees.named_leaves(alone[part]["stack"]):
            if "adapter/" in name:
                # The scanned stack has a leading axis of layers.
                axis = 1 if name.startswith("layers/") else 0
                sizes = np.moveaxis(np.abs(np.asarray(leaf)), axis, 0).reshape(LANGUAGES, -1)
                np.testing.assert_array_equal(sizes.max(axis=1) > 1e-8, [True, True, False], name)
    partitioning = Partitioning(mesh_shape=(2, 2, 2))
    mesh = partitioning.mesh()
    with partitioning.activate(mesh):
        boxed = jax.eval_shape(lambda: universal.init({"params": jax.random.key(0)}, {})["params"])
        shardings = partitioning.state_shardings(mesh, boxed)
        split = gradient(jax.device_put(params, shardings), partitioning.shard_batch(mesh, batch))
    split = {part: split[part] for part in encoders}
    for (name, one), other in zip(
        parameter_trees.named_leaves(alone), jax.tree.leaves(split), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5, err_msg=name)
