"""Figures of a corpus of many readers, and the device of a laptop."""

from __future__ import annotations

from maestro_jax.experiments.quickstart.figures import Figures
from maestro_jax.experiments.quickstart.rules import Device

READERS = Figures(
    languages=("ml",),
    utterances={"train": 1400, "validation": 90, "test": 250},
    hours={"train": 1.5, "validation": 0.1, "test": 0.3},
    speakers={"train": 50, "validation": 10, "test": 20},
    speakers_apart=True,
    split_by="given",
    sentences_shared=0.8,
    median_seconds=3.5,
    padding=(2.4, 1.6, 1.35, 1.25),
    longest_seconds=9.0,
    longest_text=90,
    characters=45_000,
    alphabet=70,
    fast=12.0,
    scripts=("Malayalam",),
)
LAPTOP = Device(kind="cpu", count=2)
