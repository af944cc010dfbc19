"""Reads gin files without importing or binding anything."""

from __future__ import annotations

import io
import pathlib
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from gin import config_parser

from maestro_jax.errors import UserError, near_misses
from maestro_jax.files import as_path, is_remote, naming_failures
from maestro_jax.gin_utils import renames

_REQUIRED = object()
_REFERENCE = object()


class _Collector(config_parser.ParserDelegate):
    """Collects the macros and the selectors that values refer to."""

    def __init__(self) -> None:
        self.macros: list[str] = []
        self.selectors: list[str] = []

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> object:
        """Called by the parser for `@name`."""
        self.selectors.append(scoped_configurable_name.rsplit("/", 1)[-1])
        return _REFERENCE

    def macro(self, macro_name: str) -> object:
        """Called by the parser for `%NAME`."""
        if macro_name == "gin.REQUIRED":
            return _REQUIRED
        self.macros.append(macro_name)
        return _REFERENCE


class Source:
    """The macros of some gin files, their includes and some bindings.

    Attributes:
        bound: Macro name to where it was last bound, `file:line` or `--gin.NAME`.
        referenced: Macro name to where it was first read.
        values: Binding name (a macro, or `scope/Class.parameter`) to its last value: a Python
            literal, or something else for a reference.
        selectors: The classes and functions that values refer to or that have bound parameters.
        imports: The import statements of the files, each once, in order.
        modules: The modules that they import, each with where it is first imported.
        named: What the files name of imported modules, as a module and a chain of attributes, each
            with where it is first named.
        texts: The text of each file that was read, by its path as gin asks for it.
    """

    def __init__(self) -> None:
        self.bound: dict[str, str] = {}
        self.referenced: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        self.selectors: set[str] = set()
        self.imports: dict[str, None] = {}
        self.modules: dict[str, str] = {}
        self.named: dict[tuple[str, tuple[str, ...]], str] = {}
        self.texts: dict[str, str] = {}

    def read(self, path: epath.Path, including: tuple[epath.Path, ...] = ()) -> None:
        """Adds a file and what it includes, an included file once.

        Args:
            path: The file.
            including: The files on the way to this one, to catch circles.

        Raises:
            UserError: For a syntax error, an unknown include or a circle of includes.
        """
        if path in including:
            raise UserError(f"{including[-1]}: includes {path}, which includes it")
        if including and str(path) in self.texts:
            return
        try:
            with naming_failures(path, "gin file"):
                text = renames.with_present_names(path.read_bytes().decode())
        except UnicodeDecodeError as error:
            raise UserError(f"cannot read the gin file {path}: {error}") from error
        self.texts[str(path)] = text
        # The modules behind the names of this file alone: another one may call them otherwise.
        modules: dict[str, str] = {}
        for statement in self._statements(text, str(path), modules):
            if isinstance(statement, config_parser.ImportStatement):
                self.imports[statement.format()] = None
                where = f"{path}:{statement.location.line_num}"
                self.modules.setdefault(statement.module, where)
                name = statement.bound_name()
                # `import a.b` gives a file the name `a`.
                whole = statement.is_from or statement.alias
                modules[name] = statement.module if whole else name
            if isinstance(statement, config_parser.IncludeStatement):
                where = f"{path}:{statement.location.line_num}: "
                self.read(_find_include(statement.filename, where), (*including, path))

    def read_binding(self, name: str, value: str) -> None:
        """Adds one binding of the command line."""
        list(self._statements(f"{name} = {value}", f"--gin.{name}", {}))

    def _statements(self, text: str, filename: str, modules: Mapping[str, str]) -> Iterator[Any]:
        collector = _Collector()
        flag = filename.startswith("--gin.")
        stream = io.StringIO(text)
        stream.name = filename  # The parser puts the stream's name into its errors.
        try:
            for statement in config_parser.ConfigParser(stream, collector):
                where = filename if flag else f"{filename}:{statement.location.line_num}"
                for macro in collector.macros:
                    self.referenced.setdefault(macro, where)
                collector.macros.clear()
                self.selectors.update(collector.selectors)
                named = [*collector.selectors, getattr(statement, "selector", "")]
                collector.selectors.clear()
                for first, *attributes in (name.split(".") for name in named):
                    if attributes and first in modules:
                        key = (modules[first], tuple(attributes))
                        self.named.setdefault(key, where)
                if isinstance(statement, config_parser.BindingStatement):
                    self._bind(statement, where)
                yield statement
        except (SyntaxError, tokenize.TokenError) as error:
            message = getattr(error, "msg", None) or str(error.args[0])
            line = getattr(error, "lineno", None) or error.args[1][0]
            where = filename if flag else f"{filename}:{line}"
            raise UserError(f"{where}: not gin syntax: {message.splitlines()[0]}") from error

    def required(self) -> list[str]:
        """Returns the macros and parameters whose last value is `%gin.REQUIRED`."""
        return [name for name, value in self.values.items() if value is _REQUIRED]

    def _bind(self, statement: config_parser.BindingStatement, where: str) -> None:
        scope = f"{statement.scope}/" if statement.scope else ""
        if statement.arg_name:
            self.selectors.add(statement.selector)
            # `run.TrainRun` of a file and `TrainRun` of the command line are one class.
            name = f"{scope}{statement.selector.rsplit('.', 1)[-1]}.{statement.arg_name}"
        else:
            name = f"{scope}{statement.selector}"
            self.bound[name] = where
        self.values[name] = statement.value


def config_root() -> pathlib.Path:
    """Returns the directory that holds `models/`, `objectives/`, `data/` and `runs/`.

    An installed wheel carries the files in `maestro_jax/configs`; a checkout, and an editable
    install of it, keeps them in `gin/` beside the package.
    """
    package = pathlib.Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "gin"


def find_file(name: str, where: str = "") -> epath.Path:
    """Finds a gin file: a path as it stands, else one of the shipped files.

    Args:
        name: `my/file.gin` (or `gs://bucket/file.gin`), or `runs/pretrain.gin` below the shipped
            files' root.
        where: File and line of an include, with which an error begins.

    Raises:
        UserError: If there is no such file, with the shipped files that are spelt like it.
    """
    path = as_path(name)
    if path.is_file():
        return path
    if is_remote(path):
        raise UserError(f"{where}there is no gin file {path}; check the path")
    shipped_path = epath.Path(config_root() / name)
    if shipped_path.is_file():
        return shipped_path
    shipped = shipped_files()
    remedy = near_misses(name, shipped)
    if not remedy and shipped:
        runs = [file for file in shipped if file.startswith("runs/")]
        remedy = " The shipped files are: " + ", ".join(runs or shipped) + "."
    raise UserError(f"{where}no gin file {name!r} here or among the shipped files.{remedy}")


def _find_include(name: str, where: str) -> epath.Path:
    """Finds an included file; whoever wrote a file does not choose where else to read."""
    if name.startswith(("/", "~")) or is_remote(name):
        raise UserError(
            f"{where}includes {name}: write a path below the current directory, or a shipped file; "
            "files elsewhere are given with --gin_file"
        )
    return find_file(name, where)


def shipped_files() -> list[str]:
    """Returns the names of the shipped gin files, relative to their root."""
    root = config_root()
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.gin"))


def shipped_macros() -> set[str]:
    """Returns the macros that the shipped gin files read."""
    source = Source()
    for name in shipped_files():
        source.read(epath.Path(config_root() / name))
    return set(source.referenced)


def shipped_files_that_set(macro: str) -> list[str]:
    """Returns the shipped models, objectives and data files that set a macro."""
    files = []
    for name in shipped_files():
        if not name.startswith("runs/"):
            source = Source()
            source.read(epath.Path(config_root() / name))
            if macro in source.bound:
                files.append(name)
    return files


def is_value(text: str) -> bool:
    """Returns whether a text is one gin value: a Python literal, `@reference` or `%macro`."""
    try:
        statements = list(config_parser.ConfigParser(f"x = {text}", _Collector()))
    except (SyntaxError, tokenize.TokenError, StopIteration):
        return False
    return len(statements) == 1
