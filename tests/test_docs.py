"""What the documents say of the code is there."""

from __future__ import annotations

import argparse
import ast
import pathlib
import re
import sys

import pytest

from maestro_jax.cli.main import COMMANDS, command_parser

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "docs" / "hooks"))
import diagrams
import generated_pages
import results_figure

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS += [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
# The pages that are generated when the site is built: links to them are not links to files.
GENERATED = {ROOT / "docs" / path for path in generated_pages.generated_files()}

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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_names_exist(document: pathlib.Path) -> None:
    text = document.read_text(encoding="utf-8")
    for path, name in NAMED.findall(text):
        assert name in definitions(ROOT / path), f"{path} has no {name}"
    for path in PATHS.findall(text):
        assert (ROOT / path).is_file(), path
    for link in LINKS.findall(text):
        target = (document.parent / link).resolve()
        assert target.exists() or target in GENERATED, link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_settings_exist(document: pathlib.Path) -> None:
    known = fields()
    for owner, member in SETTINGS.findall(document.read_text(encoding="utf-8")):
        if owner in known:
            assert member in known[owner], f"{owner} has no {member}"


def test_the_map_of_the_paper_names_every_module() -> None:
    """A box that is added to the model is added to the map."""
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    for path in (ROOT / "maestro_jax" / "modules").glob("*.py"):
        if path.stem != "__init__":
            assert f"modules/{path.name}" in text, path.name


def test_every_metric_has_a_meaning() -> None:
    assert generated_pages.undescribed_metrics() == [], "add them to docs/reference/metrics.toml"


def test_every_metric_with_a_meaning_is_written() -> None:
    """Names in the code, as far as no expression computes them."""
    keys = {generated_pages.any_metric(name) for name in generated_pages.metric_names()}
    constants = {
        node.value
        for package in generated_pages.METRIC_PACKAGES
        for path in (ROOT / "maestro_jax" / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for group in generated_pages.metric_meanings().values():
        for name in group:
            key = generated_pages.any_metric(name)
            last = name.removeprefix("probe/")
            parts = [part for part in re.split(r"<[^>]*>", last) if part]
            assert key in keys or all(part in constants for part in parts), name


def test_gin_macros_are_read_with_their_comments() -> None:
    text = """# A model.

# Of the run.
STEPS = 10
SEED = 0  # Of the draws.

STREAMS = {
    "text": @text/batches.StreamConfig(),
}
other.Thing.value = %STEPS
"""
    assert generated_pages.gin_macros(text) == [
        ("STEPS", "10", "Of the run."),
        ("SEED", "0", "Of the draws."),
        ("STREAMS", '{ "text": @text/batches.StreamConfig(), }', ""),
    ]


def test_the_page_of_commands_has_every_option() -> None:
    page = generated_pages.commands_page()
    for command in COMMANDS:
        section = page.split(f"## `maestro {command}`")[1].split("\n## ")[0]
        for action in command_parser(command)._actions:
            if action.help not in (argparse.SUPPRESS, "show this help message and exit"):
                for option in action.option_strings or [str(action.metavar or action.dest)]:
                    assert option in section, f"{command} {option}"


def test_every_module_is_on_an_api_page() -> None:
    pages = "\n".join(generated_pages.api_page(name) for name in generated_pages.api_packages())
    for path in (ROOT / "maestro_jax").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] not in generated_pages.WITHOUT_API and not path.stem.startswith("_"):
            assert f"::: {'.'.join(parts)}\n" in pages, path


def test_decisions_are_numbered_and_listed() -> None:
    """Records count from 1 in each section, and the table at the top has their numbers."""
    page = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    head, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    listed = re.findall(r"^\| \[(.*?)\]\(#.*?\) \| (\w+) to (\w+)", head, re.MULTILINE)
    assert [name for name, _, _ in listed] == [text.split("\n")[0] for text in sections]
    for (_, first, last), text in zip(listed, sections, strict=True):
        numbers = re.findall(r"^### ([A-Z]\d+)\. [A-Z`\w]", text, re.MULTILINE)
        assert numbers == [f"{first[0]}{n + 1}" for n in range(len(numbers))]
        assert (first, last) == (numbers[0], numbers[-1])
        assert len(numbers) == text.count("\n### ")


@pytest.mark.parametrize("name", diagrams.DIAGRAMS)
def test_diagrams_are_those_that_the_script_draws_and_link_to_code(name: str) -> None:
    draw = diagrams.DIAGRAMS[name]
    stored = (ROOT / "docs" / "design" / f"{name}.svg").read_text(encoding="utf-8")
    assert stored == draw(linked=False), "run python docs/hooks/diagrams.py"
    linked = draw(linked=True)
    links = re.findall(r'href="\.\./reference/api/(\w+)/#maestro_jax\.(\w+)\.[\w.]+"', linked)
    assert len(links) == linked.count("<a ") >= 6
    assert all(page == package for page, package in links)
    # Without links nothing else differs.
    assert re.sub(r"<a [^>]*>|</a>", "", linked) == stored


def test_a_diagram_that_links_to_nothing_says_so() -> None:
    with pytest.raises(LookupError, match="maestro_jax.losses defines no lost_loss"):
        diagrams.api_address("losses.lost_loss")


def test_the_picture_of_results_shows_the_table() -> None:
    page = (ROOT / "docs" / "results" / "low_resource.md").read_text(encoding="utf-8")
    rows = results_figure.results(page)
    assert len(rows) == 4
    picture = (ROOT / "docs" / "results" / "low_resource.svg").read_text(encoding="utf-8")
    for row in rows:
        assert row.low < row.wer < row.high
        assert f">{row.wer:.1f}<" in picture, "run python docs/hooks/results_figure.py"
