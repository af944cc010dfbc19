"""Files of somebody else are read by formats that hold no code (docs/security.md)."""

from __future__ import annotations

import ast
import importlib.util
import pathlib
import pickle
import re

import numpy as np
import pytest

from maestro_jax.decoding.arpa import ArpaFile
from maestro_jax.errors import UserError
from maestro_jax.text.vocabularies import vocabulary_from_bytes

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What runs code that is in its input.
RUNS_CODE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "runpy"}
ALLOWED = {
    # Pipes to and from the project's own processes.
    "maestro_jax/data/processes.py": {"pickle"},
    # Annotations of classes that are imported already.
    "maestro_jax/field_types.py": {"eval"},
}


class Payload:
    """Unpickled, it touches a file."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_nothing_in_the_tree_runs_code_of_its_input() -> None:
    found: dict[str, set[str]] = {}
    for path in [*(ROOT / "maestro_jax").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]:
        used: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names} & RUNS_CODE
            elif isinstance(node, ast.ImportFrom):
                used |= {str(node.module).split(".")[0]} & RUNS_CODE
            elif isinstance(node, ast.Call):
                if isinstance(node.func, ast.Name):
                    used |= {node.func.id} & {"eval", "exec", "compile", "__import__"}
                for keyword in node.keywords:
                    if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                        used.add("allow_pickle")
        if used:
            found[path.relative_to(ROOT).as_posix()] = used
    assert found == ALLOWED


def test_orbax_unpickles_nothing() -> None:
    spec = importlib.util.find_spec("orbax.checkpoint")
    assert spec is not None and spec.origin is not None
    package = pathlib.Path(spec.origin).parent
    files = [path for path in package.rglob("*.py") if "testing" not in path.parts]
    assert len(files) > 50
    loads = re.compile(r"\b(cloudpickle|pickle|dill|marshal)\.loads?\b|allow_pickle=True")
    assert [path for path in files if loads.search(path.read_text(encoding="utf-8"))] == []


def test_files_with_a_payload_are_refused(tmp_path: pathlib.Path) -> None:
    trace = tmp_path / "trace"
    content = pickle.dumps(Payload(trace))
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(UserError):
        vocabulary_from_bytes(content, str(file))
    with pytest.raises(UserError):
        ArpaFile(file)
    array = np.empty(1, object)
    array[0] = Payload(trace)
    np.save(tmp_path / "lengths.npy", array)
    np.savez(tmp_path / "probe.npz", step=array)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "lengths.npy")
    with np.load(tmp_path / "probe.npz") as arrays, pytest.raises(ValueError, match="allow_pickle"):
        arrays["step"]
    assert not trace.exists()
    # The payload would do it.
    pickle.loads(content)
    assert trace.exists()
