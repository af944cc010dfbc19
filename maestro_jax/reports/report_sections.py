"""What each section of a training report shows, drawn as png."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maestro_jax.reports.plots import plot_alignment, plot_durations
from maestro_jax.reports.training_plots import (
    Panel,
    plot_bars,
    plot_code_usage,
    plot_panels,
    plot_similarities,
)

Curve = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What a run has written about itself.

    Attributes:
        curves: Steps and values by metric.
        description: Its `diagnostics/run.json`.
        probes: Step and arrays of the first and of the last probe, as far as there are.
        pieces: The tokens of the utterance that is shown, as text.
    """

    curves: Mapping[str, Curve]
    description: Mapping[str, Any]
    probes: Sequence[tuple[int, Mapping[str, np.ndarray]]]
    pieces: Sequence[str]

    @property
    def frame_seconds(self) -> float:
        """Duration of an encoder frame."""
        return self.description.get("frame_seconds") or 0.04

    @property
    def mel_frame_seconds(self) -> float:
        """Step between frames of the spectrogram."""
        return self.description.get("mel_frame_seconds") or 0.01

    @property
    def codes(self) -> int | None:
        """Entries of a codebook; None where it is not known."""
        shapes = [arrays["code_counts"].shape for _, arrays in self.probes]
        return int(shapes[-1][1]) if shapes and shapes[-1][0] else None

    def series(self, prefix: str) -> dict[str, Curve]:
        """The curves whose names begin so, by the rest of their names."""
        return {
            name.removeprefix(prefix): curve
            for name, curve in self.curves.items()
            if name.startswith(prefix)
        }

    def named(self, **names: str) -> dict[str, Curve]:
        """By label, the curves of these names, as far as they have been logged."""
        return {
            label.replace("_", " "): self.curves[name]
            for label, name in names.items()
            if name in self.curves
        }


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture and what it shows.

    Attributes:
        png: The file.
        caption: A sentence or two.
        name: By which it goes to TensorBoard, for a picture of the last look that is no curve.
    """

    png: bytes
    caption: str
    name: str = ""


def losses(diagnosis: Diagnosis) -> list[Picture]:
    """The whole loss, and its terms before any weight."""
    terms = diagnosis.series("loss/")
    panels = [
        Panel("sum that is minimised", "loss", diagnosis.named(loss="loss"), smooth=True),
        Panel(
            "terms of speech alone",
            "nats a frame",
            _only(terms, ("contrastive", "masked_prediction")),
            log=True,
            smooth=True,
        ),
        Panel(
            "transducer and other terms that write text",
            "nats a label",
            {
                **_without(
                    terms,
                    ("contrastive", "diversity", "masked_prediction", "matching", "duration"),
                ),
                **diagnosis.named(transducer_held_out="probe/transducer_loss"),
            },
            log=True,
            smooth=True,
        ),
        Panel(
            "matching and duration",
            "loss",
            _only(terms, ("matching", "duration")),
            log=True,
            smooth=True,
        ),
        Panel("diversity of codes", "loss", _only(terms, ("diversity",)), log=True, smooth=True),
    ]
    return _panels(panels, "Every term as it is before its weight; held out: on the probe's pairs.")


def gradients(diagnosis: Diagnosis) -> list[Picture]:
    """Norms of gradients: of each term, and of the whole loss."""
    norms = diagnosis.series("grad_norm/")
    panels = [
        *(
            [Panel("of each term, before its weight", "gradient norm", norms, log=True)]
            if any(len(steps) > 1 for steps, _ in norms.values())
            else []
        ),
        Panel(
            "of the whole loss",
            "gradient norm",
            diagnosis.named(grad_norm="grad_norm"),
            log=True,
            smooth=True,
        ),
    ]
    found = _panels(panels, "Norms over all parameters, before clipping.")
    weights = diagnosis.description.get("weights", {})
    bars: dict[str, dict[str, float]] = {}
    for name, (_, values) in norms.items():
        if values[-1] > 0:
            bars[name] = {"as it is": float(values[-1])}
            weight = weights.get(name)
            if isinstance(weight, int | float) and weight > 0:
                bars[name]["times its weight"] = float(values[-1]) * weight
    if bars:
        png = _draw(lambda to: plot_bars(bars, to, unit="gradient norm"))
        step = max(int(steps[-1]) for steps, _ in norms.values())
        found.append(Picture(png, f"The last measurement, at step {step}."))
    return found


def durations(diagnosis: Diagnosis) -> list[Picture]:
    """Learned durations against those of the alignment."""
    panels = [
        Panel(
            "error on held-out pairs",
            "encoder frames",
            diagnosis.named(
                learned="probe/duration_error",
                constant_in_an_utterance="probe/duration_error_constant",
                learned_in_training="paired/duration_error_frames",
            ),
            references=("constant in an utterance",),
            from_zero=True,
        ),
        Panel(
            "learned over spoken length",
            "ratio",
            diagnosis.named(length_of_texts="probe/duration_ratio"),
            from_zero=True,
        ),
    ]
    found = _panels(
        panels, "Mean absolute error of the duration model against the transducer's best path."
    )
    for step, arrays in diagnosis.probes[-1:]:
        if arrays["aligned"].size:
            buffer = io.BytesIO()
            plot_durations(
                arrays["aligned"],
                arrays["predicted"],
                buffer,
                frame_seconds=diagnosis.frame_seconds,
                title="",
            )
            caption = f"Durations of held-out labels at step {step}."
            found.append(Picture(buffer.getvalue(), caption, "durations"))
    return found


def alignments(diagnosis: Diagnosis) -> list[Picture]:
    """How sure alignments are, and that of one utterance at the first and at the last probe."""
    found = []
    for step, arrays in diagnosis.probes:
        if not arrays["posterior"].size:
            continue

        def draw(to: io.BytesIO, arrays: Mapping[str, np.ndarray] = arrays) -> None:
            plot_alignment(
                arrays["posterior"].astype(np.float32),
                diagnosis.pieces,
                diagnosis.frame_seconds,
                to,
                mel=arrays["mel"],
                mel_frame_seconds=diagnosis.mel_frame_seconds,
                emissions=arrays["emission_frames"],
                title="",
            )

        name = "alignment" if step == diagnosis.probes[-1][0] else ""
        found.append(Picture(_draw(draw), f"A held-out utterance at step {step}.", name))
    panels = [
        Panel(
            "entropy of a label's frame",
            "nats a label",
            diagnosis.named(
                held_out="probe/alignment_entropy", training="paired/alignment_entropy"
            ),
            from_zero=True,
        ),
        Panel(
            "frames that one label owns",
            "share of the frames",
            diagnosis.named(
                first_label="paired/first_label_share", last_label="paired/last_label_share"
            ),
            from_zero=True,
        ),
    ]
    return found + _panels(
        panels, "Entropy 0: all paths agree. A first or last label that owns most: a collapse."
    )


def nearness(diagnosis: Diagnosis) -> list[Picture]:
    """Retrieval and cosine of matched frames, and all cosines of one utterance."""
    panels = []
    for prefix, where in (("", "entrance of the shared encoder"), ("top_", "top of it")):
        retrieval = f"probe/retrieval/{prefix}"
        panels += [
            Panel(
                f"retrieval, {where}",
                "share that is right",
                diagnosis.named(
                    speech_to_text=f"{retrieval}speech_to_text",
                    text_to_speech=f"{retrieval}text_to_speech",
                    chance=f"{retrieval}chance",
                    the_token=f"{retrieval}token_speech_to_text",
                    the_token_by_chance=f"{retrieval}token_chance",
                ),
                references=("chance", "the token by chance"),
                from_zero=True,
            ),
            Panel(
                f"cosine, {where}",
                "cosine",
                diagnosis.named(
                    matched_frames=f"probe/{prefix}cosine",
                    other_frames=f"probe/{prefix}cosine_elsewhere",
                ),
                references=("other frames",),
            ),
        ]
    found = _panels(
        panels,
        "Does a frame find, among all of its utterance, the frame (or a frame of the token) that "
        "the alignment matches it with?",
    )
    matrices: dict[str, np.ndarray] = {}
    for step, arrays in diagnosis.probes:
        if arrays["similarity"].size:
            matrices[f"entrance, step {step}"] = arrays["similarity"]
            matrices[f"top, step {step}"] = arrays["top_similarity"]
    if matrices:
        png = _draw(
            lambda to: plot_similarities(matrices, to, frame_seconds=diagnosis.frame_seconds)
        )
        found.append(
            Picture(
                png, "Speech against resampled text: matched frames are the diagonal.", "similarity"
            )
        )
    return found


def codes(diagnosis: Diagnosis) -> list[Picture]:
    """How many codes are in use, and how evenly."""
    panels = [
        Panel(
            "codes in use",
            "codes",
            {
                **diagnosis.named(
                    perplexity_in_training="speech/code_perplexity",
                    perplexity_held_out="probe/code_perplexity",
                    occurring_held_out="probe/codes_used",
                ),
                **_all_codes(diagnosis),
            },
            references=("all",),
            from_zero=True,
        ),
        Panel(
            "accuracy on masked frames",
            "share that is right",
            diagnosis.named(
                contrastive="speech/contrastive_accuracy",
                prediction="speech/masked_accuracy",
                contrastive_by_chance="speech/contrastive_chance",
                commonest_code="speech/masked_chance",
            ),
            references=("contrastive by chance", "commonest code"),
            from_zero=True,
        ),
    ]
    found = _panels(panels, "Perplexity: as many codes as, used evenly, would be as diverse.")
    usage = {
        f"step {step}": arrays["code_counts"].sum(axis=0)
        for step, arrays in diagnosis.probes
        if arrays["code_counts"].sum()
    }
    if usage:
        png = _draw(lambda to: plot_code_usage(usage, to))
        found.append(Picture(png, "Codes of held-out frames.", "codes"))
    return found


def learning_rates(diagnosis: Diagnosis) -> list[Picture]:
    """Every learning rate."""
    rates = diagnosis.series("learning_rate")
    rates = {name.strip("/_") or "learning rate": curve for name, curve in rates.items()}
    return _panels([Panel("learning rate", "per update", rates, from_zero=True)], "")


def throughput(diagnosis: Diagnosis) -> list[Picture]:
    """Speed of the run and of each stream."""
    quantities = (
        ("examples", "examples/s"),
        ("audio_seconds", "seconds of audio/s"),
        ("tokens", "tokens/s"),
    )
    panels = [
        Panel("steps", "steps/s", diagnosis.named(all="steps_per_second"), from_zero=True),
        *(
            Panel(
                f"{quantity.replace('_', ' ')} of each stream",
                unit,
                {
                    name.split("/")[0]: curve
                    for name, curve in diagnosis.curves.items()
                    if name.endswith(f"/{quantity}_per_second")
                },
                from_zero=True,
            )
            for quantity, unit in quantities
        ),
    ]
    return _panels(
        panels,
        "Without diagnostics and compilation.",
    )


def _all_codes(diagnosis: Diagnosis) -> dict[str, Curve]:
    """A line at the size of the codebook."""
    steps = [steps for name, (steps, _) in diagnosis.curves.items() if "/code" in name]
    if diagnosis.codes is None or not steps:
        return {}
    ends = np.asarray([min(s[0] for s in steps), max(s[-1] for s in steps)])
    return {"all": (ends, np.full(2, float(diagnosis.codes)))}


def _panels(panels: Sequence[Panel], caption: str) -> list[Picture]:
    """One picture of the panels that have curves; none if none has."""
    there = [panel for panel in panels if panel.series]
    if not there:
        return []
    return [Picture(_draw(lambda to: plot_panels(there, to)), caption)]


def _draw(draw: Callable[[io.BytesIO], None]) -> bytes:
    buffer = io.BytesIO()
    draw(buffer)
    return buffer.getvalue()


def _only(series: Mapping[str, Curve], names: Sequence[str]) -> dict[str, Curve]:
    return {name: series[name] for name in names if name in series}


def _without(series: Mapping[str, Curve], names: Sequence[str]) -> dict[str, Curve]:
    return {name: curve for name, curve in series.items() if name not in names}
