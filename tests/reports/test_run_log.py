"""Curves come back from the lines of a run as a run really leaves them."""

import json

import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.reports.run_log import read_curves


def write(path, *records, tail=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)


def test_curves_of_each_metric(tmp_path):
    write(
        tmp_path / "metrics.jsonl",
        {"step": 10, "loss": 4.0, "loss/rnnt": 3, "note": "text", "flag": True},
        {"step": 20, "loss": None, "loss/rnnt": 2},
        {"step": 30, "loss": 2.5, "text/duration_mae": 1.5},
    )
    curves = read_curves(tmp_path)
    assert list(curves) == ["loss", "loss/rnnt", "text/duration_mae"]
    steps, values = curves["loss"]
    assert steps.tolist() == [10, 20, 30]
    np.testing.assert_array_equal(values, [4.0, np.nan, 2.5])
    assert curves["loss/rnnt"][0].tolist() == [10, 20]
    assert curves["text/duration_mae"][1].tolist() == [1.5]


def test_metrics_of_earlier_versions_have_their_present_names(tmp_path):
    write(
        tmp_path / "metrics.jsonl",
        {"step": 10, "paired/zero_duration_share": 0.5, "probe/top_cosine_elsewhere": 0.1},
        {"step": 20, "paired/zero_duration_fraction": 0.25},
    )
    curves = read_curves(tmp_path)
    assert set(curves) == {"paired/zero_duration_fraction", "probe/top_cosine_unmatched"}
    assert curves["paired/zero_duration_fraction"][1].tolist() == [0.5, 0.25]
    assert list(read_curves(tmp_path, ["*/zero_duration_share"])) == [
        "paired/zero_duration_fraction"
    ]


def test_a_restarted_run_counts_its_later_values(tmp_path):
    steps = [10, 20, 30, 20, 30, 40]
    write(
        tmp_path / "metrics.jsonl",
        *({"step": step, "loss": float(line)} for line, step in enumerate(steps)),
    )
    got_steps, values = read_curves(tmp_path)["loss"]
    assert got_steps.tolist() == [10, 20, 30, 40]
    assert values.tolist() == [0.0, 3.0, 4.0, 5.0]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    write(tmp_path / "metrics.jsonl", {"step": 1, "loss": 1.0}, tail='{"step": 2, "lo')
    assert read_curves(tmp_path / "metrics.jsonl")["loss"][0].tolist() == [1]


def test_patterns(tmp_path):
    write(tmp_path / "metrics.jsonl", {"step": 1, "loss": 1.0, "loss/rnnt": 2.0, "speed": 3.0})
    assert list(read_curves(tmp_path, ["speed", "loss*"])) == ["speed", "loss", "loss/rnnt"]
    with pytest.raises(UserError, match="no metric 'loss/rnt'.* Did you mean 'loss/rnnt'"):
        read_curves(tmp_path, ["loss/rnt"])


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match="cannot read the metrics"):
        read_curves(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text("")
    with pytest.raises(UserError, match="no metrics yet"):
        read_curves(tmp_path)
    path.write_text('{"loss": 1}\n{"step": 1}\n')
    with pytest.raises(UserError, match="line 1 of"):
        read_curves(tmp_path)
