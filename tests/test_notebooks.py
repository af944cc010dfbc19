"""The notebooks of the tutorials run from the first cell to the last."""

from __future__ import annotations

import os
import pathlib
import re

import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "tutorials" / "align_and_plot.ipynb"


@pytest.fixture(scope="module")
def stored() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(notebook: nbformat.NotebookNode) -> str:
    """What the cells print."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "".join(out.text for out in outputs if out.output_type == "stream")


def pictures(notebook: nbformat.NotebookNode) -> int:
    """How many pictures the cells show."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return sum("image/png" in out.get("data", {}) for out in outputs)


def words(notebook: nbformat.NotebookNode) -> list[tuple[float, float, str]]:
    """The times and the words of the printed alignment."""
    rows = re.findall(r"^ *([\d.]+) to +([\d.]+) s  (\S+)$", printed(notebook), re.MULTILINE)
    return [(float(start), float(end), word) for start, end, word in rows]


def test_the_stored_notebook_holds_its_outputs_and_no_path(stored: nbformat.NotebookNode) -> None:
    assert pictures(stored) == 2 and len(words(stored)) > 2
    assert not re.search(r"/(work|home|root|tmp|usr)/", NOTEBOOK.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_notebook_runs(stored: nbformat.NotebookNode) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.from_dict(stored)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    # One device, as a user has it.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment.pop("MPLBACKEND", None)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(env=environment)
    assert pictures(notebook) == 2
    aligned = words(notebook)
    # The corpus is the same to the byte, and so is the utterance; times depend on the processor.
    assert [word for *_, word in aligned] == [word for *_, word in words(stored)]
    times = [time for start, end, _ in aligned for time in (start, end)]
    assert times == sorted(times)
    # Words begin apart from each other: the model has learned something of when they are said.
    starts = [start for start, _, _ in aligned]
    assert len(set(starts)) == len(starts)
