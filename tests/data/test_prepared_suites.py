"""A suite over prepared data: it says what is missing, and how to go on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from maestro_jax.data.data_dir import data_scope
from maestro_jax.errors import UserError
from maestro_jax.evaluation.suites import Suite, SuiteRow, get_suite


@pytest.fixture
def tiny(corpus: Any) -> Suite:
    """The tiny corpus of tests as if papers averaged over its two languages and another."""
    suite = get_suite("voxpopuli")
    rows = [
        *(SuiteRow(code, code, f"tinyvox_paired_{code}") for code in ("sl", "de")),
        SuiteRow("hr", "hr", "voxpopuli_paired_hr"),
        SuiteRow("et", "et", "voxpopuli_paired_et", averaged=False),
    ]
    return dataclasses.replace(suite, rows=tuple(rows))


def test_what_is_not_prepared_is_named(tiny: Suite, corpus: Any, tmp_path: Path) -> None:
    with data_scope(corpus.root):
        with pytest.raises(
            UserError,
            match=r"is not prepared in hr; run `maestro prepare voxpopuli --source_dir DIR "
            r"--languages hr`, or score the part that is there: --languages sl,de\.",
        ):
            tiny.prepared("test")
        with pytest.raises(UserError, match=r"in hr, et; run `[a-z _-]+DIR --languages hr,et`, or"):
            tiny.prepared("test", chosen=True)
        part = tiny.select(["de", "sl"])
        assert part.prepared("test", chosen=True) == part
        # Rows beyond those of the papers may be missing, unless they were asked for.
        assert tiny.select(["de", "et"]).prepared("test").task_names == ("tinyvox_paired_de",)
        with pytest.raises(UserError, match="not prepared in et"):
            tiny.select(["de", "et"]).prepared("test", chosen=True)
        with pytest.raises(UserError, match="tinyvox_paired_sl .* has no split 'else'"):
            part.prepared("else")
    with (
        data_scope(tmp_path),
        pytest.raises(UserError, match=r"not prepared in sl, de; run `maestro prepare tinyvox`\.$"),
    ):
        part.prepared("test")


def test_an_empty_test_set_is_named(
    tiny: Suite, corpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    [task] = tiny.tasks(tiny.rows[1:2])
    monkeypatch.setattr(type(task.source), "num_input_examples", lambda self, split: 0)
    with (
        data_scope(corpus.root),
        pytest.raises(UserError, match="the test set de of the suite voxpopuli is empty"),
    ):
        tiny.select(["de"]).prepared("test")
