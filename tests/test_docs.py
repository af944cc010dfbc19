"""What the documents say of the code is there."""

from __future__ import annotations

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = sorted((ROOT / "docs").glob("*.md")) + [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
NAMED = re.compile(r"`((?:maestro_jax|tasks|tests|benchmarks)/[\w/]+\.py): (\w+)`")
PATHS = re.compile(r"`((?:maestro_jax|tasks|tests|benchmarks|gin|docs|launch)/[\w./-]+\.\w+)`")
LINKS = re.compile(r"\]\(((?!https?:|#)[^)#]+)")
SETTINGS = re.compile(r"`([A-Z]\w+)\.([a-z]\w+)`")


def definitions(path: pathlib.Path) -> set[str]:
    """The names at the top of a module."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def fields() -> dict[str, set[str]]:
    """The fields, properties and methods of every class of the package."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "maestro_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                members = found.setdefault(node.name, set())
                for member in node.body:
                    if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                        members.add(member.target.id)
                    elif isinstance(member, ast.FunctionDef):
                        members.add(member.name)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_names_exist(document: pathlib.Path) -> None:
    text = document.read_text(encoding="utf-8")
    for path, name in NAMED.findall(text):
        assert name in definitions(ROOT / path), f"{path} has no {name}"
    for path in PATHS.findall(text):
        assert (ROOT / path).is_file(), path
    for link in LINKS.findall(text):
        assert (document.parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_exist(document: pathlib.Path) -> None:
    known = fields()
    for owner, member in SETTINGS.findall(document.read_text(encoding="utf-8")):
        if owner in known:
            assert member in known[owner], f"{owner} has no {member}"


def test_the_map_of_the_paper_names_every_module() -> None:
    """A box that is added to the model is added to the map."""
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    helpers = {
        "__init__",
        "attention",
        "attention_kernels",
        "dot_product_attention",
        "dropout",
        "fourier",
        "group_norm",
        "partitioned",
        "positions",
        "randomness",
        "rematerialisation",
    }
    for path in (ROOT / "maestro_jax" / "modules").glob("*.py"):
        if path.stem not in helpers:
            assert f"modules/{path.name}" in text, path.name
