"""A small Babel pack of Lithuanian, laid out as LDC releases it, with what is wrong in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from spoken import say

RATE = 8000
RELEASE = "IARPA-babel304b-v1.0b-build/BABEL_OP2_304"
CALL = "BABEL_OP2_304_10033_20131025_142712"

SAID = ["labas rytas", "vienas du", "kaip sekasi"]
MARKED = ["<sta> labas *rytas* <laugh>", "vienas_du (()) ~", "kaip sek- <foreign> <hes>"]
SHORTENED = "BABEL_OP2_304_20001_20131025_150000_outLine"


def lay_out(source: Path) -> dict[str, np.ndarray]:
    """Two sides of a call in `training`, one in `sub-train` and `dev`, and broken ones.

    Returns:
        What is said in each recording, float32 `[samples]` at 8 kHz.
    """
    parts = source / RELEASE / "conversational"
    recordings = {}
    for directory, stem in (
        ("training", f"{CALL}_inLine"),
        ("training", f"{CALL}_outLine"),
        ("sub-train", f"{CALL}_inLine"),
        ("dev", "BABEL_OP2_304_30001_20131025_160000_inLine"),
    ):
        recordings[stem] = _record(parts / directory, stem)
    training = parts / "training"
    # A header alone: shorten's own bytes follow in a real one.
    (training / "audio" / f"{SHORTENED}.sph").write_bytes(_shortened_sphere())
    _write(training, SHORTENED, ["[0.000]", "labas", "[1.000]"])
    _write(training, "BABEL_OP2_304_40001_20131025_170000_inLine", ["[0.0]", "labas", "[1.0]"])
    _write(
        training,
        "BABEL_OP2_304_50001_20131025_180000_inLine",
        ["before", "[0.0]", "labas", "[x]", "[0.5]", "labas", "[0.4]", "rytas"],
    )
    noise = (np.random.default_rng(0).normal(size=RATE) / 10).astype(np.float32)
    audio = training / "audio"
    for number in ("50001_20131025_180000", "60001_20131025_190000"):
        path = audio / f"BABEL_OP2_304_{number}_inLine.sph"
        soundfile.write(path, noise, RATE, format="NIST", subtype="ULAW")
    return recordings


def _record(directory: Path, stem: str) -> np.ndarray:
    """A second of silence, three segments, and a second without anything in the transcript."""
    pieces, lines, at = [np.zeros(RATE, np.float32)], ["[0.000]", "<no-speech>", "[1.000]"], 1.0
    for text, marked in zip(SAID, MARKED, strict=True):
        samples = say(text, "lt", RATE)
        pieces.append(samples)
        at += len(samples) / RATE
        lines += [marked, f"[{at:.6f}]"]
    pieces.append(np.zeros(RATE, np.float32))
    lines += ["<no-speech> <breath> (())", f"[{at + 1:.3f}]"]
    recording = np.concatenate(pieces)
    (directory / "audio").mkdir(parents=True, exist_ok=True)
    path = directory / "audio" / f"{stem}.sph"
    soundfile.write(path, recording, RATE, format="NIST", subtype="ULAW")
    _write(directory, stem, lines)
    return recording


def _write(directory: Path, stem: str, lines: list[str]) -> None:
    path = directory / "transcription" / f"{stem}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _shortened_sphere() -> bytes:
    header = [
        "NIST_1A",
        "   1024",
        "sample_count -i 8000",
        "sample_n_bytes -i 2",
        "channel_count -i 1",
        "sample_byte_format -s2 01",
        "sample_rate -i 8000",
        "sample_coding -s26 pcm,embedded-shorten-v2.00",
        "end_head",
    ]
    return "".join(f"{line}\n" for line in header).encode().ljust(1024) + b"ajkg\x02" + bytes(2000)
