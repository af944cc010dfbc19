"""A small run, described as shipped files describe theirs: imports, macros, an include."""

from __future__ import annotations

import pathlib

import pytest

MODEL = """
from __gin__ import dynamic_registration
from maestro_jax.modules import conformer
from maestro_jax.modules import duration
from maestro_jax.modules import frontend
from maestro_jax.modules import maestro
from maestro_jax.modules import quantizer
from maestro_jax.modules import refiner
from maestro_jax.modules import resampler
from maestro_jax.modules import shared_encoder
from maestro_jax.modules import speech_encoder
from maestro_jax.modules import text_encoder
from maestro_jax.modules import transducer

MODEL = @maestro.Maestro()
FEATURES = 16
VOCABULARY = 32

maestro.Maestro:
    frontend = @frontend.LogMelFrontend()
    subsampling = @frontend.ConvSubsampling()
    quantizer = @quantizer.GumbelQuantizer()
    speech_encoder = @speech_encoder.SpeechEncoder()
    text_encoder = @text_encoder.TextEncoder()
    duration_model = @duration.DurationModel()
    resampler = @resampler.Resampler()
    refiner = @refiner.Refiner()
    shared_encoder = @shared_encoder.SharedEncoder()
    decoder = @transducer.TransducerDecoder()
frontend.ConvSubsampling.channels = (8, 8)
quantizer.GumbelQuantizer:
    codes = 8
    code_features = 16
speech_encoder.SpeechEncoder:
    stack = @lower/conformer.ConformerStack()
    code_features = 16
shared_encoder.SharedEncoder:
    stack = @upper/conformer.ConformerStack()
    codes = 8
conformer.ConformerStack:
    features = %FEATURES
    heads = 2
    hidden = 32
lower/conformer.ConformerStack.layers = 1
upper/conformer.ConformerStack.layers = 2
text_encoder.TextEncoder:
    vocab_size = %VOCABULARY
    features = %FEATURES
    conv_layers = 1
    layers = 1
    heads = 2
    hidden = 32
duration.DurationModel:
    blocks = 1
    heads = 2
refiner.Refiner:
    features = %FEATURES
    layers = 1
    heads = 2
    hidden = 32
transducer.TransducerDecoder:
    vocab_size = %VOCABULARY
    embedding_features = 16
    units = 16
    layers = 1
    joint_features = 16
"""

RUN = """
from __gin__ import dynamic_registration
from maestro_jax.data import streams
from maestro_jax.objectives import speech_recognition
from maestro_jax.training import optimizers
from maestro_jax.training import run

include 'model.gin'

STEPS = %gin.REQUIRED
SEED = 0
INIT_FROM = None
MIXTURE = 'minivox_small_paired'

run.TrainRun:
    model = %MODEL
    objective = @speech_recognition.SpeechRecognition()
    optimizer = @optimizers.AdamConfig()
    streams = {'paired': @paired/streams.StreamConfig()}
    steps = %STEPS
    seed = %SEED
    init_from = %INIT_FROM
optimizers.AdamConfig:
    schedule_name = 'cosine'
    warmup_steps = 0
    decay_steps = %STEPS
paired/streams.StreamConfig:
    mixture = %MIXTURE
    batch_size = 2
    audio_samples = 16000
    text_tokens = 8
"""


@pytest.fixture
def run_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a run that needs `STEPS`, in the current directory."""
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model.gin"
    model.write_text(MODEL)
    path = tmp_path / "run.gin"
    path.write_text(RUN)
    return str(path)
