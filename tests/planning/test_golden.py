"""Memory and shardings of compiled plans beside those that were kept."""

from __future__ import annotations

import importlib.util
import json

import pytest
from golden_plans import DIRECTORY, PLANS, kept, plan

pytestmark = pytest.mark.tpu_backend
TOLERANCE = 0.05
GIB = 2**30


def cases():
    for name in PLANS:
        if (DIRECTORY / f"{name}.json").exists():
            marks = [pytest.mark.slow] if name.startswith("xl") else []
            yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", list(cases()))
def test_a_plan_is_what_it_was(name: str) -> None:
    """`python tests/shared/golden_plans.py NAME` writes the file again, if a change is meant."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    expected = json.loads((DIRECTORY / f"{name}.json").read_text())
    found = kept(plan(name))
    assert found["shardings"] == expected["shardings"]
    assert found["parameters"] == expected["parameters"]
    assert found["mesh"] == expected["mesh"]
    assert found["model_flops"] == pytest.approx(expected["model_flops"], rel=0.01)
    for program, parts in expected["memory_bytes"].items():
        for part, size in parts.items():
            # Parts of less than a hundredth of the memory may move by a compiler's whim.
            allowed = max(TOLERANCE * size, 0.01 * parts["used"])
            assert abs(found["memory_bytes"][program][part] - size) <= allowed, (program, part)
    if name.startswith("xl"):
        memory = found["memory_bytes"]["training"]
        assert memory["used"] <= 0.8 * memory["capacity"]
