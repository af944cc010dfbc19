"""Generates the reference pages from the code: commands, gin macros, metrics, API, and notebooks.

MkDocs calls `on_config` and `on_files` (`hooks` in mkdocs.yml). No page that is made here exists as
a file, so a renamed option, macro, metric or module appears under its new name in the next build.
"""

from __future__ import annotations

import argparse
import ast
import base64
import json
import pathlib
import re
import tomllib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import diagrams

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "maestro_jax"
# Packages in which metrics of training are written.
METRIC_PACKAGES = ("objectives", "training")
MEANINGS = ROOT / "docs" / "reference" / "metrics.toml"
# Packages of internal plumbing that have no API page: commands have a page of their own.
WITHOUT_API = {"cli", "experiments"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds an API page per package to the navigation."""
    [api] = [section for section in config.nav or [] if "API" in section]
    api["API"] += [
        {"maestro_jax" if name == "top" else name: f"reference/api/{name}.md"}
        for name in api_packages()
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to the files of the site."""
    from mkdocs.structure.files import File

    for path, content in generated_files().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draws diagrams into the page itself, where each box links to its code."""

    def inline(picture: re.Match[str]) -> str:
        draw = diagrams.DIAGRAMS.get(picture[1])
        return f"<div>\n{draw(linked=True)}</div>" if draw else picture[0]

    return re.sub(r"^!\[[^\]]*\]\((\w+)\.svg\)$", inline, markdown, flags=re.MULTILINE)


def generated_files() -> dict[str, str | bytes]:
    """Returns every generated file by its path below `docs/`."""
    pages: dict[str, str | bytes] = {
        "reference/commands.md": commands_page(),
        "reference/gin_macros.md": gin_macros_page(),
        "reference/metrics.md": metrics_page(),
        "reference/api/index.md": api_index(),
    }
    for name in api_packages():
        pages[f"reference/api/{name}.md"] = api_page(name)
    for notebook in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        pages |= notebook_files(notebook)
    return pages


# --- Commands -------------------------------------------------------------------------------------


def commands_page() -> str:
    """Lists the options of every command, as `--help` prints them."""
    from maestro_jax.cli.main import COMMANDS, command_parser

    lines = [
        "# Commands",
        "",
        "`maestro COMMAND --help` prints the same options. A command ends with status 0, or with",
        "one line that says what is wrong and status 2.",
        "",
        *(f"- [`maestro {name}`](#{name}): {summary}" for name, (summary, _) in COMMANDS.items()),
    ]
    for name, (_, example) in COMMANDS.items():
        parser = command_parser(name)
        lines += ["", f"## `maestro {name}` {{ #{name} }}", "", str(parser.description), ""]
        lines += ["```bash", example, "```", ""]
        for group in parser._action_groups:
            lines += _arguments_table(group)
    return "\n".join(lines) + "\n"


def _arguments_table(group: argparse._ArgumentGroup) -> list[str]:
    """Returns the rows of one group of arguments, or its description where it has none."""
    actions = [
        action
        for action in group._group_actions
        if action.help is not argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
    ]
    if not actions:
        return [group.description, ""] if group.description else []
    rows = ["| argument | default | meaning |", "|---|---|---|"]
    for action in actions:
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        if action.option_strings and action.nargs != 0:
            choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
            name += f" {action.metavar or choices or action.dest.upper()}"
        shown = action.option_strings and action.default not in (None, False, [], argparse.SUPPRESS)
        default = f"`{action.default}`" if shown else ""
        rows.append(f"| `{_cell(name)}` | {default} | {_cell(_help(action))} |")
    return [*rows, ""]


def _help(action: argparse.Action) -> str:
    """Returns the help of an argument with its `%(...)s` filled in."""
    return (action.help or "") % vars(action)


def _cell(text: str) -> str:
    """Returns text that fits into one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


# --- Gin macros -----------------------------------------------------------------------------------


class Macro(NamedTuple):
    """A macro of a gin file.

    Attributes:
        name: Its name.
        value: Its value in the file.
        comment: The comment that describes it: the lines above it, or what follows it on its line.
    """

    name: str
    value: str
    comment: str


def gin_macros(text: str) -> list[Macro]:
    """Returns the macros that a gin file sets, in the order of the file."""
    macros: list[Macro] = []
    comment: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("#"):
            comment.append(line.lstrip("# ").rstrip("- "))
            continue
        found = re.match(r"([A-Z][A-Z0-9_]*) = (.*)", line)
        if not found:
            comment = []
            continue
        name, value = found.groups()
        value, _, trailing = value.partition("  #")
        while value.count("{") > value.count("}") or value.count("(") > value.count(")"):
            value += " " + next(lines).strip()
        macros.append(Macro(name, value.strip(), " ".join([*comment, trailing.strip()]).strip()))
        comment = []
    return macros


def gin_macros_page() -> str:
    """Lists the macros of every shipped gin file with their values and comments."""
    lines = [
        "# Gin macros",
        "",
        "Set a macro in a gin file (`STEPS = 1000`) or on the command line (`--gin.STEPS=1000`).",
        "The headings are the names that `--gin_file` takes. Later files replace the values of",
        "earlier ones. A misspelt macro is refused with the nearest names.",
        "",
    ]
    paths = sorted((ROOT / "gin").rglob("*.gin"), key=lambda path: (_order(path), str(path)))
    for path in paths:
        name = path.relative_to(ROOT / "gin").as_posix()
        text = path.read_text(encoding="utf-8")
        lines += [f"## {name}", "", _description(text), ""]
        included = re.findall(r'^include "(.*)"$', text, re.MULTILINE)
        if included:
            links = (f"[{each}](#{_anchor(each)})" for each in included)
            lines += [f"Includes {', '.join(links)}.", ""]
        macros = gin_macros(text)
        if macros:
            lines += ["| macro | value | |", "|---|---|---|"]
            lines += [
                f"| `{macro.name}` | `{_cell(macro.value)}` | {_cell(_escaped(macro.comment))} |"
                for macro in macros
            ]
            lines += [""]
    return "\n".join(lines)


def _order(path: pathlib.Path) -> int:
    """Sorts the kinds of gin files as a run is put together."""
    kinds = ("runs", "models", "objectives", "data")
    return kinds.index(path.relative_to(ROOT / "gin").parts[0])


def _anchor(name: str) -> str:
    """Returns the anchor that Markdown's table of contents gives a heading."""
    return re.sub(r"[^\w\s-]", "", name).strip().lower()


def _description(text: str) -> str:
    """Returns the comment at the head of a gin file as paragraphs."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    described = "\n".join(lines)
    return _escaped(re.sub(r"\n(?=(?:Required|Commonly))", "\n\n", described))


def _escaped(text: str) -> str:
    """Returns prose in which Markdown finds no emphasis and no tags."""
    return re.sub(r"([*_<>])", r"\\\1", text)


# --- Metrics --------------------------------------------------------------------------------------


def metric_names() -> dict[str, set[str]]:
    """Returns the names of metrics that the code writes, and the modules that write each.

    A metric is a string `group/name` that is a key of a dictionary. In an f-string, what is
    computed is written as the expression's last name: `f"{stream}/tokens"` is `<stream>/tokens`.
    """
    names: dict[str, set[str]] = {}
    for package in METRIC_PACKAGES:
        for path in sorted((PACKAGE / package).rglob("*.py")):
            for key in _keys(ast.parse(path.read_text(encoding="utf-8"))):
                name = _metric_name(key)
                if name and re.fullmatch(r"[\w<>]+(?:/[\w<>]+)+", name):
                    names.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    return names


def _keys(tree: ast.AST) -> Iterator[ast.expr]:
    """Yields what stands as a key: in a dictionary, a comprehension, or a subscript."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            yield from (key for key in node.keys if key is not None)
        elif isinstance(node, ast.DictComp):
            yield node.key
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            yield node.slice


def _metric_name(node: ast.expr) -> str | None:
    """Returns the text of a key, with `<name>` for what an f-string computes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return None
    parts = []
    for part in node.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        else:
            assert isinstance(part, ast.FormattedValue)
            parts.append(f"<{ast.unparse(part.value).split('.')[-1]}>")
    return "".join(parts)


def metric_meanings() -> dict[str, dict[str, str]]:
    """Returns the meaning of each metric, by heading and name."""
    return tomllib.loads(MEANINGS.read_text(encoding="utf-8"))


def any_metric(name: str) -> str:
    """Returns the name of a metric with `*` for each part that the code computes."""
    return re.sub(r"<[^>]*>", "*", name)


def undescribed_metrics() -> list[str]:
    """Returns the metrics that the code writes and `metrics.toml` does not describe."""
    known = {any_metric(name) for group in metric_meanings().values() for name in group}
    names = {any_metric(name): name for name in metric_names()}
    # What every stream has needs no entry per stream; `probe/*` is whatever the probe returns.
    return sorted(
        name
        for key, name in names.items()
        if key not in known and f"*/{key.partition('/')[2]}" not in known and key != "probe/*"
    )


def metrics_page() -> str:
    """Lists the metrics that training writes, with their meanings."""
    lines = [
        "# Metrics",
        "",
        "Training writes these to `metrics.jsonl` and to TensorBoard, as means over the steps",
        "since the last log point unless noted otherwise. `<stream>` is one of `speech`,",
        "`paired`, `text`, `mt` and `st`; the [glossary](../glossary.md) has the terms.",
    ]
    others = undescribed_metrics()
    groups = {**metric_meanings(), **({"Others": dict.fromkeys(others, "")} if others else {})}
    for heading, group in groups.items():
        lines += ["", f"## {heading}", "", "| metric | meaning |", "|---|---|"]
        lines += [f"| `{name}` | {_cell(meaning)} |" for name, meaning in group.items()]
    return "\n".join(lines) + "\n"


# --- API ------------------------------------------------------------------------------------------


def api_packages() -> list[str]:
    """Returns the packages that have an API page, and `top` for the modules above them."""
    packages = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    return ["top", *(name for name in packages if name not in WITHOUT_API)]


def _modules(package: str) -> list[pathlib.Path]:
    """Returns the modules of a package, those of its packages included."""
    if package == "top":
        return sorted(path for path in PACKAGE.glob("*.py") if path.stem != "__init__")
    return sorted(
        path for path in (PACKAGE / package).rglob("*.py") if not path.stem.startswith("_")
    )


def _summary(path: pathlib.Path) -> str:
    """Returns the first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return _escaped(" ".join(text.split("\n\n")[0].split()))


def _dotted(path: pathlib.Path) -> str:
    """Returns the name by which a module is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def api_index() -> str:
    """Lists all packages and modules."""
    lines = [
        "# API",
        "",
        "Every public module, by package. Names that begin with `_` are private.",
        "",
    ]
    for package in api_packages():
        title = "maestro_jax" if package == "top" else f"maestro_jax.{package}"
        lines += [f"## [{title}]({package}.md)", "", "| module | |", "|---|---|"]
        lines += [
            f"| [`{_dotted(path)}`]({package}.md#{_dotted(path)}) | {_cell(_summary(path))} |"
            for path in _modules(package)
        ]
        lines += [""]
    return "\n".join(lines)


def api_page(package: str) -> str:
    """Returns the page of one package for mkdocstrings to fill."""
    title = "maestro_jax" if package == "top" else f"maestro_jax.{package}"
    lines = [f"# {title}", ""]
    if package != "top":
        lines += [_summary(PACKAGE / package / "__init__.py"), ""]
    for path in _modules(package):
        lines += [f"::: {_dotted(path)}", ""]
    return "\n".join(lines)


# --- Notebooks ------------------------------------------------------------------------------------


def notebook_files(path: pathlib.Path) -> dict[str, str | bytes]:
    """Converts a notebook, as it was last executed, to a page and its pictures."""
    parts: list[str] = []
    files: dict[str, str | bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{path.stem}_{len(files)}.png"
                files[f"tutorials/{picture}"] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![]({picture})")
            else:
                text = "".join(output.get("text", data.get("text/plain", ())))
                parts.append(f"```text\n{text.rstrip()}\n```")
    files[f"tutorials/{path.stem}.md"] = "\n\n".join(parts) + "\n"
    return files
