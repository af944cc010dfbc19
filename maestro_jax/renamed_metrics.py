"""Names that earlier versions gave to metrics, in metrics files and in gates of a curriculum."""

from __future__ import annotations

RENAMED_METRICS: dict[str, str] = {
    "context_variation": "context_variance_ratio",
    "cosine_elsewhere": "cosine_unmatched",
    "first_label_share": "first_label_fraction",
    "frame_variation": "frame_variance_ratio",
    "last_label_share": "last_label_fraction",
    "masked_share": "masked_fraction",
    "nats_a_token": "nll_per_token",
    "over_long_share": "too_long_fraction",
    "top_cosine_elsewhere": "top_cosine_unmatched",
    "without_ctc_path": "num_ctc_infeasible",
    "without_path": "num_infeasible",
    "zero_duration_share": "zero_duration_fraction",
}
"""The last part of a metric's name, from the earlier to the present one."""


def present_name(metric: str) -> str:
    """Returns the present name of a metric; a name that has not changed comes back as it is.

    Args:
        metric: A name of any version, such as `paired/zero_duration_share`.
    """
    stream, slash, last = metric.rpartition("/")
    return f"{stream}{slash}{RENAMED_METRICS.get(last, last)}"
