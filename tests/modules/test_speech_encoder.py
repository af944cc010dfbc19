"""What stands in the place of masked frames, seen through a stack that changes nothing."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from maestro_jax.modules.speech_encoder import SpeechEncoder

FEATURES = np.random.default_rng(0).normal(size=(2, 300, 5)).astype(np.float32)
VALID = np.ones((2, 300), bool)
HIDDEN = np.random.default_rng(1).uniform(size=(2, 300)) < 0.5


class Identity(nn.Module):
    features: int = 8

    def with_intermediate(
        self, x: Any, mask: Any, language: Any, **settings: Any
    ) -> tuple[Any, Any]:
        return x, x


def encoded(mask_value: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Without and with masks, and the parameters."""
    module = SpeechEncoder(stack=Identity(), code_features=4, mask_value=mask_value)
    variables = nn.unbox(module.init(jax.random.key(0), FEATURES, VALID))
    plain, _ = module.apply(variables, FEATURES, VALID)
    masked, _ = module.apply(
        variables, FEATURES, VALID, masked_frames=HIDDEN, rngs={"masking": jax.random.key(1)}
    )
    np.testing.assert_array_equal(np.asarray(masked)[~HIDDEN], np.asarray(plain)[~HIDDEN])
    return np.asarray(plain), np.asarray(masked), variables["params"]


def test_random_vectors_differ_from_frame_to_frame() -> None:
    _, masked, _ = encoded("random")
    hidden = masked[HIDDEN]
    assert len(np.unique(hidden[:, 0])) == len(hidden)
    # About 300 vectors of 8: the standard error of the deviation is 0.1 / sqrt(2 * 2400).
    assert abs(hidden.mean()) < 0.01 and abs(hidden.std() - 0.1) < 0.006


def test_one_learned_vector() -> None:
    _, masked, params = encoded("learned")
    np.testing.assert_array_equal(
        masked[HIDDEN], np.broadcast_to(params["mask_vector"], masked[HIDDEN].shape)
    )
    assert np.all(params["mask_vector"] != 0.0)


def test_zeros_leave_the_bias_of_the_projection() -> None:
    _, masked, params = encoded("zero")
    bias = params["input_projection"]["bias"]
    np.testing.assert_allclose(masked[HIDDEN], np.broadcast_to(bias, masked[HIDDEN].shape))
    assert np.all(bias != 0.0)


def test_unknown_values_are_refused() -> None:
    with pytest.raises(ValueError, match="'noise'.*random.*learned.*zero"):
        SpeechEncoder(stack=Identity(), mask_value="noise")
