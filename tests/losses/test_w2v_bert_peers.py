"""The quantizer and the losses of w2v-BERT against transformers' wav2vec 2.0 pretraining model.

The peer sums over masked frames where ours gives a total and a count, counts one group of codes
here, and averages code probabilities over masked frames; its noise is replaced by ours.

make peers && build/peers/bin/python -m pytest -m peers tests/losses/test_w2v_bert_peers.py
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.losses.contrastive import contrastive_loss, diversity_loss, sample_distractors
from maestro_jax.modules.quantizer import GumbelQuantizer

pytestmark = pytest.mark.peers

LOADER = Path(__file__).parents[2] / "benchmarks" / "torchaudio_beside_cpu_torch.py"
CODES, CODE_FEATURES, PROJECTED, CONV, NEGATIVES = 12, 6, 5, 8, 7
# (400 - 4) // 2 + 1 = 199, then (199 - 4) // 4 + 1 = 49 frames.
SAMPLES, FRAMES = 400, 49


@pytest.fixture(scope="module")
def torch():
    """PyTorch, with torchaudio loaded in the way that transformers does not know."""
    spec = importlib.util.spec_from_file_location("torchaudio_beside_cpu_torch", LOADER)
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    try:
        loader.load_torchaudio()
    except ImportError as error:
        pytest.skip(f"the `peers` extra is not here: {error}")
    pytest.importorskip("transformers", reason="the `peers` extra is not here: make peers")
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def peer(torch):
    """A tiny model in training mode without dropout, its code probabilities not all alike."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(CONV, CONV),
        conv_kernel=(4, 4),
        conv_stride=(2, 4),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        num_codevector_groups=1,
        num_codevectors_per_group=CODES,
        codevector_dim=CODE_FEATURES,
        proj_codevector_dim=PROJECTED,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        feat_quantizer_dropout=0.0,
        layerdrop=0.0,
        contrastive_logits_temperature=0.1,
    )
    model = Wav2Vec2ForPreTraining(config).train()
    with torch.no_grad():
        model.quantizer.weight_proj.weight.mul_(2.0)
        model.quantizer.weight_proj.bias.normal_()
    return model


@pytest.fixture
def shared_noise(torch, monkeypatch):
    """The same Gumbel noise on both sides: the peer's is -log of exponential draws."""
    noise = np.random.default_rng(5).gumbel(size=(2, FRAMES, CODES)).astype(np.float32)

    def exponential_(self, *args, **kwargs):
        return self.copy_(torch.exp(-torch.from_numpy(noise)).reshape(self.shape))

    monkeypatch.setattr(torch.Tensor, "exponential_", exponential_)
    monkeypatch.setattr(jax.random, "gumbel", lambda key, shape: jnp.asarray(noise).reshape(shape))


def masked_frames() -> np.ndarray:
    masked = np.random.default_rng(1).uniform(size=(2, FRAMES)) < 0.5
    # One utterance has a single masked frame: it has no negatives.
    masked[1] = np.arange(FRAMES) == 20
    return masked


def copied(peer) -> dict:
    quantizer = peer.quantizer
    return {
        "logits": {
            "kernel": quantizer.weight_proj.weight.detach().numpy().T,
            "bias": quantizer.weight_proj.bias.detach().numpy(),
        },
        "codebook": quantizer.codevectors[0].detach().numpy(),
    }


@pytest.mark.parametrize("step", [0, 200_000])
def test_gumbel_quantizer(torch, peer, shared_noise, step):
    """Codes, perplexity, and the gradients of a weighted sum of codes, in training."""
    module = GumbelQuantizer(CODES, CODE_FEATURES)
    rng = np.random.default_rng(2)
    features = rng.normal(size=(2, FRAMES, CONV)).astype(np.float32)
    direction = rng.normal(size=(2, FRAMES, CODE_FEATURES)).astype(np.float32)
    masked = masked_frames()

    peer.zero_grad()
    peer.quantizer.temperature = float(module.temperature(step))
    assert step or peer.quantizer.temperature == 2.0
    inputs = torch.from_numpy(features).requires_grad_(True)
    vectors, perplexity = peer.quantizer(inputs, torch.from_numpy(masked))
    (vectors * torch.from_numpy(direction)).sum().backward()

    def weighted(params, features):
        found = module.apply(
            {"params": params},
            features,
            step,
            deterministic=False,
            rngs={"gumbel": jax.random.key(0)},
        )
        return jnp.sum(found.vectors * direction), found

    (gradient, to_features), found = jax.grad(weighted, (0, 1), has_aux=True)(
        copied(peer), features
    )
    np.testing.assert_allclose(found.vectors, vectors.detach().numpy(), atol=1e-5)
    loss, ours = diversity_loss(found.probabilities, jnp.asarray(masked))
    np.testing.assert_allclose(ours, perplexity.item(), rtol=1e-5)
    np.testing.assert_allclose(loss, (CODES - perplexity.item()) / CODES, rtol=1e-4)
    for name, mine, theirs in (
        ("kernel", gradient["logits"]["kernel"], peer.quantizer.weight_proj.weight.grad.T),
        ("bias", gradient["logits"]["bias"], peer.quantizer.weight_proj.bias.grad),
        ("codebook", gradient["codebook"], peer.quantizer.codevectors.grad[0]),
        ("features", to_features, inputs.grad),
    ):
        theirs = theirs.numpy()
        assert np.abs(theirs).max() > 1e-3, name
        np.testing.assert_allclose(mine, theirs, atol=2e-5, rtol=1e-4, err_msg=name)


def test_without_noise_the_most_likely_code_is_chosen(torch, peer):
    features = np.random.default_rng(3).normal(size=(2, FRAMES, CONV)).astype(np.float32)
    peer.quantizer.eval()
    with torch.no_grad():
        vectors, _ = peer.quantizer(torch.from_numpy(features))
    peer.quantizer.train()
    found = GumbelQuantizer(CODES, CODE_FEATURES).apply({"params": copied(peer)}, features)
    np.testing.assert_allclose(found.vectors, vectors.numpy(), atol=1e-6)


def test_pretraining_loss(torch, peer, shared_noise, request):
    """Contrastive and diversity loss of the peer's whole model."""
    # The peer leaves out negatives that equal the positive to the last bit, which equal codes do
    # not after a product of matrices, whose rounding depends on the row.
    hook = peer.project_q.register_forward_hook(
        lambda module, given, out: (out * 4096).round() / 4096
    )
    request.addfinalizer(hook.remove)
    masked = masked_frames()
    rng = jax.random.key(4)
    chosen = np.asarray(sample_distractors(rng, jnp.asarray(masked), NEGATIVES))
    flat = chosen + FRAMES * np.arange(2)[:, None, None]
    audio = np.random.default_rng(6).normal(size=(2, SAMPLES)).astype(np.float32)
    peer.quantizer.temperature = 2.0
    with torch.no_grad():
        outputs = peer(
            torch.from_numpy(audio),
            mask_time_indices=torch.from_numpy(masked),
            sampled_negative_indices=torch.from_numpy(flat),
        )
    vectors = outputs.projected_quantized_states.numpy()
    ids = np.unique(vectors.reshape(-1, vectors.shape[-1]), axis=0, return_inverse=True)[1]
    (total, count), _ = contrastive_loss(
        rng,
        jnp.asarray(outputs.projected_states.numpy()),
        jnp.asarray(vectors),
        ids.reshape(vectors.shape[:2]),
        jnp.asarray(masked),
        distractors=NEGATIVES,
        temperature=0.1,
    )
    # What has no negative left costs the peer nothing, and we do not count it.
    assert 15 < float(count) < masked.sum()
    assert outputs.contrastive_loss.item() > 1.0
    np.testing.assert_allclose(total, outputs.contrastive_loss.item(), rtol=1e-4)

    # The codes of the peer are those of our quantizer on its features.
    with torch.no_grad():
        features = peer.wav2vec2.feature_extractor(torch.from_numpy(audio)).transpose(1, 2)
        features = peer.wav2vec2.feature_projection.layer_norm(features)
    found = GumbelQuantizer(CODES, CODE_FEATURES).apply(
        {"params": copied(peer)},
        features.numpy(),
        0,
        deterministic=False,
        rngs={"gumbel": jax.random.key(0)},
    )
    with torch.no_grad():
        projected = peer.project_q(torch.tensor(np.asarray(found.vectors)))
    np.testing.assert_allclose(
        projected.numpy(), outputs.projected_quantized_states.numpy(), atol=1.01 / 4096
    )
    diversity, perplexity = diversity_loss(found.probabilities, jnp.asarray(masked))
    np.testing.assert_allclose(perplexity, outputs.codevector_perplexity.item(), rtol=1e-5)
    np.testing.assert_allclose(diversity * masked.sum(), outputs.diversity_loss.item(), rtol=1e-4)
    np.testing.assert_allclose(
        total + peer.config.diversity_loss_weight * diversity * masked.sum(),
        outputs.loss.item(),
        rtol=1e-4,
    )
