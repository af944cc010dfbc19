"""Verdicts in words on the health of a pretraining run, from its metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

GOOD, WATCH, BAD = "good", "watch", "bad"
Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One thing that was judged.

    Attributes:
        state: `good`, `watch` or `bad`.
        subject: What was judged, in a word or two.
        text: The numbers, and what they mean.
    """

    state: str
    subject: str
    text: str


def verdicts(curves: Curves, description: Mapping[str, Any], codes: int | None) -> list[Verdict]:
    """Judge what a run has logged so far.

    The thresholds are rules of thumb; each stands with its number in the text.

    Args:
        curves: Steps and values by metric, as of `curves.read_curves`.
        description: The run's `diagnostics/run.json`; may be empty.
        codes: Entries of the codebook; None where it is not known.

    Returns:
        Of everything there are metrics for.
    """
    found = [
        _updates(curves),
        _losses(curves),
        _durations(curves, description.get("frame_seconds")),
        _alignments(curves),
        _retrieval(curves, "", "below the shared encoder"),
        _retrieval(curves, "top_", "at its top"),
        _cosine(curves),
        _learned(curves, "contrastive", "Contrastive", "the code of a masked frame is found"),
        _learned(curves, "masked", "Masked prediction", "the code of a masked frame is named"),
        _codes(curves, codes),
        _variation(curves),
        _gradients(curves),
        _overflow(curves),
        _curriculum(curves),
        _waiting(curves),
    ]
    return [verdict for verdict in found if verdict is not None]


def last(curves: Curves, name: str) -> float | None:
    """The last finite value of a metric, or None."""
    return _end(curves, name, -1)


def first(curves: Curves, name: str) -> float | None:
    """The first finite value of a metric, or None."""
    return _end(curves, name, 0)


def _end(curves: Curves, name: str, index: int) -> float | None:
    if name not in curves:
        return None
    values = curves[name][1]
    values = values[np.isfinite(values)]
    return float(values[index]) if len(values) else None


def _updates(curves: Curves) -> Verdict | None:
    skipped = last(curves, "skipped_steps")
    if skipped is None or "loss" not in curves:
        return None
    done = int(curves["loss"][0][-1])
    share = skipped / max(done, 1)
    state = GOOD if not skipped else WATCH if share < 0.01 else BAD
    text = f"{skipped:.0f} of {done} updates were skipped because a loss was not finite"
    if not skipped:
        text = f"all {done} updates were finite"
    return Verdict(state, "Updates", text)


def _losses(curves: Curves) -> Verdict | None:
    rising, level, falling = [], [], 0
    for name, (_, values) in curves.items():
        values = values[np.isfinite(values)]
        # The diversity loss is judged by the codes: near 0 it wavers.
        if not name.startswith("loss/") or name == "loss/diversity" or len(values) < 4:
            continue
        tail = max(1, len(values) // 5)
        before, after = float(np.mean(values[:tail])), float(np.mean(values[-tail:]))
        moved = f"{name.removeprefix('loss/')} from {before:.3g} to {after:.3g}"
        if after > before + 0.05 * abs(before):
            rising.append(moved)
        elif after > before - 0.05 * abs(before):
            level.append(moved)
        else:
            falling += 1
    if rising:
        return Verdict(WATCH, "Losses", f"higher than at their beginning: {', '.join(rising)}")
    if level:
        return Verdict(WATCH, "Losses", f"within 5% of their beginning: {', '.join(level)}")
    if not falling:
        return None
    return Verdict(GOOD, "Losses", f"all {falling} are lower than when they began")


def _durations(curves: Curves, frame_seconds: float | None) -> Verdict | None:
    error = last(curves, "probe/duration_error")
    constant = last(curves, "probe/duration_error_constant")
    if error is None or constant is None:
        return None
    time = f" ({1000 * error * frame_seconds:.0f} ms)" if frame_seconds else ""
    text = (
        f"learned durations are within {error:.2f} frames{time} of the alignment on average; the "
        f"same for every label of an utterance would be {constant:.2f} off"
    )
    ratio = last(curves, "probe/duration_ratio")
    if ratio is not None:
        text += f"; texts come out {ratio:.2f} times as long as they are spoken"
    if error > constant:
        return Verdict(BAD, "Durations", text)
    return Verdict(GOOD if error <= 1.5 else WATCH, "Durations", text)


def _alignments(curves: Curves) -> Verdict | None:
    entropy = last(curves, "probe/alignment_entropy")
    if entropy is None:
        return None
    text = (
        f"a label's place is spread over about {np.exp(entropy):.1f} frames "
        f"({entropy:.2f} nats of entropy)"
    )
    ends = [last(curves, f"paired/{name}_label_share") for name in ("first", "last")]
    together = sum(share for share in ends if share is not None)
    if together > 0.6:
        text += f"; first and last label own {together:.0%} of the frames: collapsed?"
        return Verdict(BAD, "Alignment", text)
    return Verdict(GOOD if entropy < 1.5 else WATCH, "Alignment", text)


def _retrieval(curves: Curves, prefix: str, where: str) -> Verdict | None:
    names = [f"probe/retrieval/{prefix}{name}" for name in ("speech_to_text", "chance")]
    found, chance = (last(curves, name) for name in names)
    if found is None or not chance:
        return None
    before = first(curves, names[0])
    text = f"{where}, a speech frame finds its text frame in {found:.0%} of cases, by chance in "
    text += f"{chance:.0%}"
    if before is not None:
        text += f"; it began at {before:.0%}"
    # Above layers with absolute positions, an untrained model finds some frames by their place.
    learned = before is None or found >= 1.5 * before
    state = GOOD if found >= 5 * chance and learned else WATCH if found >= 2 * chance else BAD
    return Verdict(state, "Retrieval", text)


def _cosine(curves: Curves) -> Verdict | None:
    matched, other = last(curves, "probe/cosine"), last(curves, "probe/cosine_elsewhere")
    if matched is None or other is None:
        return None
    text = f"{matched:.2f} between matched frames, {other:.2f} between frames of other places"
    gap = matched - other
    return Verdict(GOOD if gap >= 0.2 else WATCH if gap >= 0.05 else BAD, "Cosine", text)


def _learned(curves: Curves, name: str, subject: str, done: str) -> Verdict | None:
    """How far an accuracy has come from that of knowing nothing towards that of knowing all."""
    accuracy, chance = (last(curves, f"speech/{name}_{kind}") for kind in ("accuracy", "chance"))
    if accuracy is None or chance is None or chance >= 1.0:
        return None
    text = f"{done} in {accuracy:.1%} of cases, by knowing nothing in {chance:.1%}"
    learned = (accuracy - chance) / (1.0 - chance)
    if learned < 0.05:
        return Verdict(BAD, subject, f"{text}: nothing has been learned yet")
    return Verdict(GOOD if learned >= 0.1 else WATCH, subject, text)


def _codes(curves: Curves, codes: int | None) -> Verdict | None:
    perplexity = last(curves, "speech/code_perplexity")
    if perplexity is None:
        perplexity = last(curves, "probe/code_perplexity")
    if perplexity is None or not codes:
        return None
    share = perplexity / codes
    text = f"as many as {perplexity:.1f} of {codes} codes are in use (perplexity)"
    used = last(curves, "probe/codes_used")
    if used is not None:
        text += f", {used:.0f} occur in the held-out pairs"
    state = GOOD if share >= 0.3 else WATCH if share >= 0.1 else BAD
    if share < 0.3:
        text += ": collapse?"
    told = last(curves, "speech/code_information")
    if told is not None:
        text += f"; a code tells {told:.0%} of what it could of its frame"
        if told < 0.3:
            text += ": frames are unsure of their codes, and chance picks them"
            state = BAD if told < 0.1 or state == BAD else WATCH
    return Verdict(state, "Codes", text)


def _variation(curves: Curves) -> Verdict | None:
    shares = {
        name: share
        for name in curves
        if name.endswith(("/frame_variation", "/context_variation"))
        and (share := last(curves, name)) is not None
    }
    if not shares:
        return None
    name = min(shares, key=lambda each: shares[each])
    least = shares[name]
    text = f"frames of an utterance differ by {least:.0%} of their size where least ({name})"
    if least < 0.05:
        text += ": an encoder that no longer hears gives every frame the same vector"
    return Verdict(GOOD if least >= 0.15 else WATCH if least >= 0.05 else BAD, "Encoders", text)


def _gradients(curves: Curves) -> Verdict | None:
    norms = {
        name.removeprefix("grad_norm/"): norm
        for name in curves
        if name.startswith("grad_norm/") and (norm := last(curves, name))
    }
    if len(norms) < 2:
        return None
    most, least = (choose(norms, key=lambda name: norms[name]) for choose in (max, min))
    ratio = norms[most] / norms[least]
    text = f"before weights, that of {most} is {ratio:.3g} times that of {least}"
    if ratio > 100:
        text += ": see that weights keep the former from drowning the latter"
    return Verdict(GOOD if ratio <= 100 else WATCH, "Gradients", text)


def _overflow(curves: Curves) -> Verdict | None:
    shares = {
        name.split("/")[0]: share
        for name in curves
        if name.endswith("/over_long_share") and (share := last(curves, name)) is not None
    }
    if not shares:
        return None
    lost = {name: share for name, share in shares.items() if share > 0}
    if not lost:
        return Verdict(GOOD, "Resampling", "every resampled text fits its frames")
    told = ", ".join(f"{share:.1%} of {name}" for name, share in lost.items())
    verdict = WATCH if max(lost.values()) > 0.02 else GOOD
    return Verdict(
        verdict, "Resampling", f"too long, and left out: {told}; text_frames is their room"
    )


def _curriculum(curves: Curves) -> Verdict | None:
    if "curriculum_step" not in curves:
        return None
    steps, clock = curves["curriculum_step"]
    held = int(steps[-1] - clock[-1])
    if not held:
        return None
    return Verdict(WATCH, "Curriculum", f"gates have held it back for {held} steps")


def _waiting(curves: Curves) -> Verdict | None:
    share = last(curves, "data_wait_fraction")
    if share is None:
        return None
    text = f"{share:.0%} of the time goes by waiting for data"
    return Verdict(GOOD if share < 0.1 else WATCH, "Speed", text)
