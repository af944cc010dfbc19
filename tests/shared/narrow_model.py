"""A model as narrow as the modules allow, for tests of whether the parts fit, not of learning."""

from __future__ import annotations

NARROW = {
    "FEATURES": "16",
    "HIDDEN": "16",
    "SPEECH_LAYERS": "1",
    "SHARED_LAYERS": "1",
    "TEXT_FEATURES": "16",
    "CODES": "8",
    "CODE_FEATURES": "8",
    "ConvSubsampling.channels": "(8, 8)",
    "TransducerDecoder.embedding_features": "16",
    "TransducerDecoder.units": "16",
    "TransducerDecoder.joint_features": "16",
    "TextEncoder.conv_layers": "1",
    "TextEncoder.layers": "1",
    "DurationModel.blocks": "1",
    "Refiner.layers": "1",
    "WARMUP_STEPS": "1",
    "LOG_EVERY": "1",
}
"""Bindings over `models/tiny.gin`, and over runs that are a few steps long."""
