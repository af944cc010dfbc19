"""The Transformer decoder: step by step as at once, and the definition of its attention."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.modules.transformer_decoder import Attention, TransformerDecoder

BATCH, FRAMES, TOKENS, VOCAB, WIDTH = 3, 7, 5, 11, 8


def decoder(**settings):
    return TransformerDecoder(
        vocab_size=VOCAB, layers=2, features=WIDTH, heads=2, hidden=12, languages=3, **settings
    )


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    encoded = rng.normal(size=(BATCH, FRAMES, 6)).astype(np.float32)
    mask = np.arange(FRAMES) < np.asarray([[7], [3], [1]])
    tokens = rng.integers(3, VOCAB, (BATCH, TOKENS)).astype(np.int32)
    tokens[:, 0] = 0
    return encoded, mask, tokens, np.asarray([2, -1, 0], np.int32)


def make(model, inputs):
    encoded, mask, tokens, language = inputs
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens, encoded, mask, language))
    # Biases and scales that are not zero and one.
    noise = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.2 * noise.normal(size=x.shape).astype(x.dtype), params)
    return model, params


@pytest.fixture(scope="module")
def made(inputs):
    return make(decoder(), inputs)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_step_by_step_as_at_once(made, inputs, tied):
    model, params = made if tied else make(decoder(tied=False), inputs)
    encoded, mask, tokens, language = inputs
    whole = jax.jit(model.apply)(params, tokens, encoded, mask, language)
    assert whole.shape == (BATCH, TOKENS, VOCAB)
    beam = 2
    # The second text of each utterance is another one: the first shifted by an id.
    other = np.where(np.arange(TOKENS) > 0, 3 + (tokens + 1) % (VOCAB - 3), 0).astype(np.int32)
    others = jax.jit(model.apply)(params, other, encoded, mask, language)
    texts = np.stack([tokens, other], axis=1)
    cache = model.apply(
        params, encoded, mask, language, beam=beam, length=TOKENS + 2, method="start"
    )
    step = jax.jit(lambda tokens, at, cache: model.apply(params, tokens, at, cache, method="step"))
    for position in range(TOKENS):
        logits, cache = step(texts[:, :, position], jnp.int32(position), cache)
        np.testing.assert_allclose(logits[:, 0], whole[:, position], atol=2e-5)
        np.testing.assert_allclose(logits[:, 1], others[:, position], atol=2e-5)


def test_no_token_sees_what_follows_and_none_sees_padding(made, inputs):
    model, params = made
    encoded, mask, tokens, language = inputs
    apply = jax.jit(model.apply)
    whole = apply(params, tokens, encoded, mask, language)
    changed = tokens.copy()
    changed[:, 3] = 3 + (changed[:, 3] + 1) % (VOCAB - 3)
    noisy = np.where(mask[..., None], encoded, 1e3)
    again = apply(params, changed, noisy, mask, language)
    np.testing.assert_allclose(again[:, :3], whole[:, :3], atol=1e-5)
    assert np.abs(again[:, 3:] - whole[:, 3:]).max() > 0.1


def test_the_language_is_heard_where_one_is_asked_for(made, inputs):
    model, params = made
    encoded, mask, tokens, language = inputs
    apply = jax.jit(model.apply)
    whole = apply(params, tokens, encoded, mask, language)
    silent = apply(params, tokens, encoded, mask, np.full(BATCH, -1, np.int32))
    assert np.abs(whole - silent).max(axis=(1, 2))[[0, 2]].min() > 0.01
    np.testing.assert_array_equal(whole[1], silent[1])


def test_an_utterance_without_frames_is_finite(made, inputs):
    model, params = made
    encoded, _, tokens, language = inputs
    nothing = np.zeros((BATCH, FRAMES), bool)

    @jax.jit
    @jax.grad
    def gradient_of(params):
        return model.apply(params, tokens, 0.0 * encoded, nothing, language).sum()

    gradient = gradient_of(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_attention_is_its_definition():
    """Against numpy: softmax(Q K^T / sqrt(size)) V for each head, heads concatenated."""
    rng = np.random.default_rng(0)
    x, memory = rng.normal(size=(1, 3, 8)), rng.normal(size=(1, 4, 5))
    seen = np.asarray([True, True, False, True])
    module = Attention(features=8, heads=2)

    def attend(module, x, memory):
        return module(x, module.keys_values(memory), seen)

    values, variables = nn.init_with_output(attend, module)(jax.random.key(0), x, memory)
    params = jax.tree.map(np.asarray, nn.unbox(variables))["params"]
    q, k, v = (
        np.einsum("td,dhs->hts", inputs[0], params[name]["kernel"]) + params[name]["bias"][:, None]
        for name, inputs in (("query", x), ("key", memory), ("value", memory))
    )
    logits = np.where(seen, q @ k.transpose(0, 2, 1) / 2.0, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("hqk,hks->qhs", weights, v)
    expected = (
        np.einsum("qhs,hsd->qd", mixed, params["output"]["kernel"]) + params["output"]["bias"]
    )
    np.testing.assert_allclose(values[0], expected, atol=1e-5)


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match=r"heads is 3.* 8"):
        TransformerDecoder(vocab_size=4, features=8, heads=3)
