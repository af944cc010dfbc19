"""A small TED-LIUM 3, laid out as it is published, with what is wrong in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from spoken import record, say

RATE = 16000
# What is said, and how the files write it.
TALK = [
    ("it's a good day", "it 's a good day"),
    ("they're here and don't", "they 're here <unk> and don 't"),
    ("just 'cause", "just 'cause <sil> {NOISE}"),
    ("read it", "read(2) it"),
]


def lay_out(source: Path) -> dict[str, list[np.ndarray]]:
    """A talk in each split of `legacy`, and talks that are broken in the training split.

    Returns:
        By talk, what is said in each segment, float32 `[samples]`.
    """
    legacy = source / "legacy"
    segments = {}
    for split, talk, label in (
        ("train", "AlGore_2009", "<o,f0,male>"),
        ("dev", "DanBarber_2010", "<NA>"),
        ("test", "AimeeMullins_2009P", "<F0_F>"),
    ):
        segments[talk] = _talk(legacy / split, talk, label)
    train = legacy / "train"
    (train / "sph" / "Broken_2010.sph").write_bytes(b"NIST_1A\n   1024\nend_head\n")
    _write(
        train,
        "Broken_2010",
        [
            "Broken_2010 1 Broken_2010 0.00 1.00 <o,f0,male> broken",
            "Gone_2010 1 Gone_2010 0.00 1.00 <o,f0,male> gone",
            "AlGore_2009 1 AlGore_2009 7000.00 7001.00 <o,f0,male> beyond",
            "AlGore_2009 1 AlGore_2009 2.00 1.00 <o,f0,male> backwards",
            "AlGore_2009 1 AlGore_2009 soon 1.00 <o,f0,male> never",
            "AlGore_2009 1",
            "",
        ],
    )
    return segments


def _talk(directory: Path, talk: str, label: str) -> list[np.ndarray]:
    """Applause that is not to be scored, the segments, and a segment of marks alone."""
    pieces = [np.full(RATE, 0.01, np.float32)]
    lines = [
        ";; LABEL",
        f"{talk} 1 inter_segment_gap 0.00 1.00 <o,,unknown> ignore_time_segment_in_scoring",
    ]
    at = 1.0
    for text, written in TALK:
        # Times have two decimals, and segments share their borders.
        samples = say(text)
        samples = samples[: len(samples) // 160 * 160]
        end = at + len(samples) / RATE
        lines.append(f"{talk} 1 {talk} {at:.2f} {end:.2f} {label} {written}")
        pieces.append(samples)
        at = end
    lines.append(f"{talk} 1 {talk} {at:.2f} {at + 0.5:.2f} {label} <sil> <unk>")
    pieces.append(np.zeros(RATE // 2, np.float32))
    record(directory / "sph" / f"{talk}.sph", np.concatenate(pieces))
    _write(directory, talk, lines)
    return pieces[1:-1]


def _write(directory: Path, talk: str, lines: list[str]) -> None:
    path = directory / "stm" / f"{talk}.stm"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
