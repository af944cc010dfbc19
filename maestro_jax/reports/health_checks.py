"""Checks of the health of a training run from its metrics, each with a sentence of explanation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

OK, WARN, FAIL = "ok", "warn", "fail"
Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class HealthCheck:
    """The outcome of one check.

    Attributes:
        status: `ok`, `warn` or `fail`.
        subject: What was checked, in a word or two.
        text: The numbers, and what they mean.
    """

    status: str
    subject: str
    text: str


def check_health(
    curves: Curves, description: Mapping[str, Any], codes: int | None
) -> list[HealthCheck]:
    """Checks what a run has logged so far.

    The thresholds are rules of thumb; the text of each check has the number that was compared.

    Args:
        curves: Steps and values by metric, as `read_curves` returns them.
        description: Content of the run's `diagnostics/run.json`; may be empty.
        codes: Number of entries of the codebook; None where it is not known.

    Returns:
        The checks whose metrics the run has logged.
    """
    checks = [
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
    return [check for check in checks if check is not None]


def last(curves: Curves, name: str) -> float | None:
    """Returns the last finite value of a metric, or None."""
    return _end(curves, name, -1)


def first(curves: Curves, name: str) -> float | None:
    """Returns the first finite value of a metric, or None."""
    return _end(curves, name, 0)


def _end(curves: Curves, name: str, index: int) -> float | None:
    if name not in curves:
        return None
    values = curves[name][1]
    values = values[np.isfinite(values)]
    return float(values[index]) if len(values) else None


def _updates(curves: Curves) -> HealthCheck | None:
    skipped = last(curves, "skipped_steps")
    if skipped is None or "loss" not in curves:
        return None
    done = int(curves["loss"][0][-1])
    share = skipped / max(done, 1)
    status = OK if not skipped else WARN if share < 0.01 else FAIL
    text = f"{skipped:.0f} of {done} updates were skipped because a loss was not finite"
    if not skipped:
        text = f"all {done} updates were finite"
    return HealthCheck(status, "Updates", text)


def _losses(curves: Curves) -> HealthCheck | None:
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
        return HealthCheck(
            WARN, "Losses", f"higher than at their first values: {', '.join(rising)}"
        )
    if level:
        return HealthCheck(WARN, "Losses", f"within 5% of the start: {', '.join(level)}")
    if not falling:
        return None
    return HealthCheck(OK, "Losses", f"lower than at the start: {falling} of {falling}")


def _durations(curves: Curves, frame_seconds: float | None) -> HealthCheck | None:
    error = last(curves, "probe/duration_error")
    constant = last(curves, "probe/duration_error_constant")
    if error is None or constant is None:
        return None
    time = f" ({1000 * error * frame_seconds:.0f} ms)" if frame_seconds else ""
    text = (
        f"predicted durations are within {error:.2f} frames{time} of the alignment on average; one "
        f"duration for all labels of an utterance would be {constant:.2f} off"
    )
    ratio = last(curves, "probe/duration_ratio")
    if ratio is not None:
        text += f"; upsampled texts are {ratio:.2f} times as long as the speech"
    if error > constant:
        return HealthCheck(FAIL, "Durations", text)
    return HealthCheck(OK if error <= 1.5 else WARN, "Durations", text)


def _alignments(curves: Curves) -> HealthCheck | None:
    entropy = last(curves, "probe/alignment_entropy")
    if entropy is None:
        return None
    text = (
        f"the position of a label is spread over about {np.exp(entropy):.1f} frames "
        f"({entropy:.2f} nats of entropy)"
    )
    ends = [last(curves, f"paired/{name}_label_fraction") for name in ("first", "last")]
    together = sum(share for share in ends if share is not None)
    if together > 0.6:
        text += (
            f"; first and last label own {together:.0%} of the frames: has the alignment collapsed?"
        )
        return HealthCheck(FAIL, "Alignment", text)
    return HealthCheck(OK if entropy < 1.5 else WARN, "Alignment", text)


def _retrieval(curves: Curves, prefix: str, where: str) -> HealthCheck | None:
    names = [f"probe/retrieval/{prefix}{name}" for name in ("speech_to_text", "chance")]
    accuracy, chance = (last(curves, name) for name in names)
    if accuracy is None or not chance:
        return None
    before = first(curves, names[0])
    text = f"{where}, a speech frame finds its text frame in {accuracy:.0%} of cases, by chance in "
    text += f"{chance:.0%}"
    if before is not None:
        text += f"; it was {before:.0%} at the start"
    # Above layers with absolute positions, an untrained model finds some frames by their place.
    learned = before is None or accuracy >= 1.5 * before
    status = OK if accuracy >= 5 * chance and learned else WARN if accuracy >= 2 * chance else FAIL
    return HealthCheck(status, "Retrieval", text)


def _cosine(curves: Curves) -> HealthCheck | None:
    matched, other = last(curves, "probe/cosine"), last(curves, "probe/cosine_unmatched")
    if matched is None or other is None:
        return None
    text = f"{matched:.2f} between matched frames, {other:.2f} between frames of other places"
    gap = matched - other
    return HealthCheck(OK if gap >= 0.2 else WARN if gap >= 0.05 else FAIL, "Cosine", text)


def _learned(curves: Curves, name: str, subject: str, done: str) -> HealthCheck | None:
    """Checks how far an accuracy has come from chance towards 1."""
    accuracy, chance = (last(curves, f"speech/{name}_{kind}") for kind in ("accuracy", "chance"))
    if accuracy is None or chance is None or chance >= 1.0:
        return None
    text = f"{done} in {accuracy:.1%} of cases, by chance in {chance:.1%}"
    learned = (accuracy - chance) / (1.0 - chance)
    if learned < 0.05:
        return HealthCheck(FAIL, subject, f"{text}: nothing has been learned yet")
    return HealthCheck(OK if learned >= 0.1 else WARN, subject, text)


def _codes(curves: Curves, codes: int | None) -> HealthCheck | None:
    perplexity = last(curves, "speech/code_perplexity")
    if perplexity is None:
        perplexity = last(curves, "probe/code_perplexity")
    if perplexity is None or not codes:
        return None
    share = perplexity / codes
    text = f"{perplexity:.1f} of {codes} codes are in use (perplexity)"
    used = last(curves, "probe/codes_used")
    if used is not None:
        text += f", {used:.0f} occur in the held-out pairs"
    status = OK if share >= 0.3 else WARN if share >= 0.1 else FAIL
    if share < 0.3:
        text += ": has the codebook collapsed?"
    information = last(curves, "speech/code_information")
    if information is not None:
        text += f"; a code carries {information:.0%} of the information that it could on its frame"
        if information < 0.3:
            text += ": the distributions over codes are flat, so noise picks the codes"
            status = FAIL if information < 0.1 or status == FAIL else WARN
    return HealthCheck(status, "Codes", text)


def _variation(curves: Curves) -> HealthCheck | None:
    shares = {
        name: share
        for name in curves
        if name.endswith(("/frame_variance_ratio", "/context_variance_ratio"))
        and (share := last(curves, name)) is not None
    }
    if not shares:
        return None
    name = min(shares, key=lambda each: shares[each])
    least = shares[name]
    text = f"frames of an utterance differ by {least:.0%} of their norm or more (least: {name})"
    if least < 0.05:
        text += ": an encoder that ignores its input gives every frame the same vector"
    return HealthCheck(OK if least >= 0.15 else WARN if least >= 0.05 else FAIL, "Encoders", text)


def _gradients(curves: Curves) -> HealthCheck | None:
    norms = {
        name.removeprefix("grad_norm/"): norm
        for name in curves
        if name.startswith("grad_norm/") and (norm := last(curves, name))
    }
    if len(norms) < 2:
        return None
    most, least = (choose(norms, key=lambda name: norms[name]) for choose in (max, min))
    ratio = norms[most] / norms[least]
    text = f"before weighting, the norm of {most} is {ratio:.3g} times that of {least}"
    if ratio > 100:
        text += ": choose weights that keep the former from dominating"
    return HealthCheck(OK if ratio <= 100 else WARN, "Gradients", text)


def _overflow(curves: Curves) -> HealthCheck | None:
    shares = {
        name.split("/")[0]: share
        for name in curves
        if name.endswith("/too_long_fraction") and (share := last(curves, name)) is not None
    }
    if not shares:
        return None
    lost = {name: share for name, share in shares.items() if share > 0}
    if not lost:
        return HealthCheck(OK, "Resampling", "every resampled text fits into max_text_frames")
    listed = ", ".join(f"{share:.1%} of {name}" for name, share in lost.items())
    return HealthCheck(
        WARN if max(lost.values()) > 0.02 else OK,
        "Resampling",
        f"texts longer than max_text_frames are left out: {listed}",
    )


def _curriculum(curves: Curves) -> HealthCheck | None:
    if "curriculum_step" not in curves:
        return None
    steps, clock = curves["curriculum_step"]
    held = int(steps[-1] - clock[-1])
    if not held:
        return None
    return HealthCheck(WARN, "Curriculum", f"gates have held it back for {held} steps")


def _waiting(curves: Curves) -> HealthCheck | None:
    share = last(curves, "data_wait_fraction")
    if share is None:
        return None
    text = f"{share:.0%} of the time is spent waiting for data"
    return HealthCheck(OK if share < 0.1 else WARN, "Speed", text)
