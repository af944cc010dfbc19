"""A whole model that compiles in seconds, and batches of all five streams for it."""

from __future__ import annotations

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.batches import StreamConfig, batch_shapes, synthetic_batch
from maestro_jax.layers.conformer import ConformerStack
from maestro_jax.modules.duration import DurationModel
from maestro_jax.modules.frontend import ConvSubsampling, LogMelFrontend
from maestro_jax.modules.maestro import Maestro
from maestro_jax.modules.quantizer import GumbelQuantizer
from maestro_jax.modules.refiner import Refiner
from maestro_jax.modules.resampler import Resampler
from maestro_jax.modules.shared_encoder import SharedEncoder
from maestro_jax.modules.speech_encoder import SpeechEncoder
from maestro_jax.modules.text_encoder import TextEncoder
from maestro_jax.modules.transducer import TransducerDecoder
from maestro_jax.objectives.maestro import MaestroPretraining
from maestro_jax.objectives.self_supervised import W2vBert
from maestro_jax.training import parameter_trees
from maestro_jax.training.optimizers import AdamConfig
from maestro_jax.training.state import TrainState, abstract_state, create_state
from maestro_jax.training.step import train_step

VOCABULARY = 12
WIDTH = 16
SAMPLES = 9600
LATER = 10
SEED = 3
WEIGHTS = (
    "contrastive",
    "diversity",
    "masked_prediction",
    "transducer",
    "matching",
    "duration",
    "text",
    "mt",
    "st",
)
OPTIMIZER = AdamConfig(clip_norm=None)

TOKENS = 6
# Equal lengths: all streams share one pass of each network, as in the runs that are shipped.
STREAMS = {
    "speech": StreamConfig(mixture="none", batch_size=8, audio_samples=SAMPLES),
    "paired": StreamConfig(mixture="none", batch_size=8, audio_samples=SAMPLES, text_tokens=TOKENS),
    "text": StreamConfig(mixture="none", batch_size=8, text_tokens=TOKENS),
    "mt": StreamConfig(mixture="none", batch_size=8, text_tokens=TOKENS, translation_tokens=TOKENS),
    "st": StreamConfig(
        mixture="none", batch_size=8, audio_samples=SAMPLES, translation_tokens=TOKENS
    ),
}
# The encoder frames of that audio: (1 + (9600 - 400) // 160) = 58, halved twice, rounded up.
MAX_TEXT_FRAMES = 15


def tiny_maestro(dropout: float = 0.1) -> Maestro:
    """Every module of MAESTRO, 16 features wide; the shared layers are scanned."""

    def stack(layers: int) -> ConformerStack:
        return ConformerStack(
            layers=layers,
            features=WIDTH,
            heads=2,
            hidden=24,
            kernel_size=3,
            groups=2,
            dropout=dropout,
            positions="rotary",
        )

    return Maestro(
        frontend=LogMelFrontend(bins=16, frequency_mask_bins=4, time_masks=2, time_mask_ratio=0.1),
        subsampling=ConvSubsampling(channels=(4, 4)),
        quantizer=GumbelQuantizer(codes=8, code_features=8),
        speech_encoder=SpeechEncoder(stack=stack(1), code_features=8, dropout=dropout),
        text_encoder=TextEncoder(
            vocab_size=VOCABULARY,
            features=WIDTH,
            conv_layers=1,
            conv_kernel=3,
            layers=1,
            heads=2,
            hidden=24,
            languages=2,
            dropout=dropout,
        ),
        duration_model=DurationModel(blocks=1, heads=2, max_frames=9, dropout=dropout),
        resampler=Resampler(),
        refiner=Refiner(
            features=WIDTH, layers=1, heads=2, kernel_size=5, hidden=24, dropout=dropout
        ),
        shared_encoder=SharedEncoder(stack=stack(2), codes=8, languages=2),
        decoder=TransducerDecoder(
            vocab_size=VOCABULARY,
            embedding_features=WIDTH,
            units=WIDTH,
            layers=1,
            joint_features=WIDTH,
            dropout=dropout,
        ),
    )


def objective(weights: dict[str, Any], **changes: Any) -> MaestroPretraining:
    """The objective; weights may be traced, so that one program serves for all of them."""
    settings: dict[str, Any] = {
        "max_text_frames": MAX_TEXT_FRAMES,
        "self_supervised": W2vBert(distractors=5),
    }
    settings.update({f"{name}_weight": weights[name] for name in WEIGHTS})
    return MaestroPretraining(**(settings | changes))


def random_params(abstract: Any, seed: int) -> Any:
    """Parameters of which none, biases included, is zero or one."""
    rng = np.random.default_rng(seed)

    def draw(name: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = rng.normal(size=leaf.shape)
        if name.endswith("bias"):
            values = 0.1 * values
        elif name.endswith("scale"):
            values = 1.0 + 0.1 * values
        else:
            values = values * np.prod(leaf.shape[:-1]) ** -0.5
        return values.astype(leaf.dtype)

    return parameter_trees.map_named(draw, parameter_trees.unbox(abstract))


class Tiny:
    """The model, its training step and all that the step needs."""

    streams = STREAMS
    weights = WEIGHTS
    max_text_frames = MAX_TEXT_FRAMES
    optimizer = OPTIMIZER
    later = LATER
    objective = staticmethod(objective)
    maestro = staticmethod(tiny_maestro)

    def __init__(self) -> None:
        self.model = tiny_maestro()
        self._step = jax.jit(self.train_step)

    @staticmethod
    def params_of(model: Maestro, seed: int = 0) -> Any:
        """Random parameters of another model, without a program to make them."""
        abstract = jax.eval_shape(lambda: model.init({"params": jax.random.key(0)}, {}))
        return random_params(abstract["params"], seed)

    def batch(self, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
        """One of as many batches as there are seeds."""
        return synthetic_batch(STREAMS, seed, VOCABULARY)

    @functools.cached_property
    def abstract(self) -> TrainState:
        """The state's shapes, boxed with the logical axes."""
        weights = dict.fromkeys(WEIGHTS, 1.0)
        return abstract_state(self.model, objective(weights), OPTIMIZER, batch_shapes(STREAMS))

    def state(self, step: int = LATER) -> TrainState:
        """A state whose averaged parameters differ from the last ones."""
        state = create_state(random_params(self.abstract.params, 0), OPTIMIZER)
        return state.replace(
            step=jnp.int32(step), ema_params=random_params(self.abstract.ema_params, 1)
        )

    @staticmethod
    def with_token_frames(params: Any, frames: float) -> Any:
        """Parameters whose duration model gives every token so many frames."""
        params = copy.deepcopy(params)
        for head, bias in (("frames", np.log(np.expm1(frames)) - 1.0), ("nonzero", 100.0)):
            params["duration_model"][head]["kernel"] *= 0.0
            params["duration_model"][head]["bias"] = np.float32([bias])
        return params

    def train_step(self, state: TrainState, batch: Any, weights: dict[str, Any]) -> Any:
        """The training step that the loop compiles, with weights that may be traced."""
        return train_step(
            state,
            batch,
            model=self.model,
            objective=objective(weights),
            optimizer=OPTIMIZER,
            ema_decay=0.99,
            seed=SEED,
        )

    def step_rng(self, step: int = LATER) -> jax.Array:
        """The random key of a step."""
        return jax.random.fold_in(jax.random.key(SEED), step)

    def run(self, state: TrainState, batch: Any, **weights: float) -> tuple[Any, Any]:
        """Take a compiled step, with all weights that are not given 0.

        Returns:
            The gradients by parameter name, and the metrics `{name: (total, count)}`.
        """
        all_weights = {name: np.float32(weights.get(name, 0.0)) for name in WEIGHTS}
        new, metrics = self._step(state, batch, all_weights)
        return self.gradients(new), {
            name: (float(total), float(count)) for name, (total, count) in metrics.items()
        }

    def gradients(self, first: TrainState) -> dict[str, np.ndarray]:
        """The gradients of a first update: Adam's first moment is then (1 - b1) times them."""
        moments = next(part.mu for part in first.opt_state if hasattr(part, "mu"))
        return {
            name: np.asarray(leaf, np.float64) / (1.0 - OPTIMIZER.b1)
            for name, leaf in parameter_trees.named_leaves(moments)
        }


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """The tiny model with everything around it, compiled once for all tests that use it."""
    return Tiny()
