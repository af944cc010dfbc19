"""Builds a training run from gin files and `--gin.NAME=VALUE` arguments, and checks them.

Gin itself accepts a macro that nothing reads, reports a missing value only when the value is first
read, and spreads its messages over several lines. Here the text is read twice: once without
importing anything (`gin_source`), to check names, and once by gin.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, TypeVar

import gin

from maestro_jax.errors import UserError, near_misses
from maestro_jax.gin_utils import gin_source, renames, trust
from maestro_jax.gin_utils.user_modules import not_found, prepare_for_user_modules

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun

T = TypeVar("T")
_NOT_GIN_NAMES = {"true": "True", "false": "False", "none": "None", "null": "None"}


def parse(
    gin_files: Sequence[str],
    bindings: Mapping[str, str] | None = None,
    imports: Sequence[str] = (),
) -> None:
    """Reads gin files, then bindings, into gin's configuration, which is emptied first.

    Args:
        gin_files: Paths, in order; the last binding wins. A name that is not a file here is looked
            up among the shipped files: `runs/pretrain.gin`. What several of them include is read
            once, where it is first included: what was set after it stays.
        bindings: Command line bindings, name to gin value: `{"STEPS": "300", "DIR": "/x/y"}`. A
            value that is not gin is taken as a string where a string may stand.
        imports: Modules of users that belong to the run: its configuration imports them as well,
            and the files may.

    Raises:
        UserError: For an unknown file, module, class, parameter or macro, a macro that nothing
            reads, a value that must be set and is not, a syntax error, or a name that gin files
            may not import or name (`trust`); with the file and line.
    """
    paths = [gin_source.find_file(name) for name in gin_files]
    source = gin_source.Source()
    for path in paths:
        source.read(path)
    assignments = [
        (name, _as_gin_value(name, value, source)) for name, value in (bindings or {}).items()
    ]
    for name, value in assignments:
        source.read_binding(name, value)
    trust.check_imports(source, imports)
    _check_macros(source)
    _check_required(source)

    gin.clear_config()
    _search_shipped_files()
    prepare_for_user_modules([*source.modules, *imports])
    trust.check_names(source, imports)
    if imports:
        lines = [f"import {name}" for name in imports]
        gin.parse_config("\n".join(["from __gin__ import dynamic_registration", *lines]))
    already_read: set[str] = set()
    for path in paths:
        # A file that is named is read, whether another has included it or not.
        already_read.discard(str(path))
        try:
            with _files_alone(source.texts, already_read):
                gin.parse_config_file(str(path))
        except (ValueError, NameError, AttributeError, SyntaxError, ImportError, OSError) as error:
            raise _user_error(error, str(path), source) from error
    for name, value in assignments:
        text = f"{name} = {value}"
        # A reference means what it would mean in the files: under their imports. With imports a
        # parameter would have to be named as in the files, so this is for macros.
        if "@" in value and "." not in name:
            text = "\n".join([*source.imports, text])
        try:
            gin.parse_config(text)
        except (ValueError, NameError, AttributeError, SyntaxError) as error:
            raise _user_error(error, f"--gin.{name}", source) from error
    gin.finalize()


def build_run() -> TrainRun:
    """Builds the training run that the parsed files describe, without touching a device.

    Raises:
        UserError: If no file configures a run, or a value of it is missing or refused.
    """
    from maestro_jax.training.run import TrainRun

    return build(
        TrainRun,
        "these gin files describe no training run: add a run file, for example "
        "--gin_file runs/pretrain.gin",
    )


def build(cls: type[T], nothing: str) -> T:
    """Builds the object of a class that the parsed files describe.

    Args:
        cls: The class.
        nothing: The error if the files set none of its parameters.

    Raises:
        UserError: With `nothing`, or because a value is missing or refused.
    """
    try:
        bound = gin.get_bindings(cls, resolve_references=False)
    except ValueError:  # No file has ever named the class.
        bound = {}
    if not bound:
        raise UserError(nothing)
    try:
        return gin.get_configurable(cls)()
    except ValueError as error:
        raise _user_error(error) from error
    except (TypeError, RuntimeError) as error:
        if "required" not in str(error).lower():
            raise
        raise _user_error(error) from error


def config_text() -> str:
    """Returns all bindings with their imports as one gin text, which gin can read again."""
    return gin.config_str(max_line_length=100)


def operative_config_text() -> str:
    """Returns the values that the built run used, with defaults; call after `build_run`."""
    return gin.operative_config_str(max_line_length=100)


def record_texts() -> dict[str, str]:
    """Returns the files with the configuration of the built run, by name, for `run_record`."""
    return {"config.gin": config_text(), "operative_config.gin": operative_config_text()}


def load_run(
    model_dir: str | pathlib.Path,
    bindings: Mapping[str, str] | None = None,
    gin_files: Sequence[str] = (),
    imports: Sequence[str] = (),
) -> TrainRun:
    """Builds the run of a model directory, from the configuration of its latest start.

    Args:
        model_dir: Model directory of a run.
        bindings: Values to change.
        gin_files: Files to read after the run's own configuration.
        imports: Modules of users that its configuration may import.

    Raises:
        UserError: If the directory holds no `config.gin`, or it imports other modules.
    """
    from maestro_jax.gin_utils.run_record import latest

    return parse_and_build([str(latest(model_dir, "config.gin")), *gin_files], bindings, imports)


def parse_and_build(
    gin_files: Sequence[str],
    bindings: Mapping[str, str] | None = None,
    imports: Sequence[str] = (),
) -> TrainRun:
    """Parses gin files and bindings, and builds their run."""
    parse(gin_files, bindings, imports)
    return build_run()


def configured(cls: type[T]) -> type[T]:
    """Returns a class with the arguments that the parsed gin files bind; unchanged without any."""
    try:
        bound = gin.get_bindings(cls, resolve_references=False)
    except ValueError:  # No file has ever named the class.
        return cls
    return gin.get_configurable(cls) if bound else cls


def macros(gin_files: Sequence[str]) -> set[str]:
    """Returns the macros that gin files and their includes read."""
    source = gin_source.Source()
    for name in gin_files:
        source.read(gin_source.find_file(name))
    return set(source.referenced)


def _as_gin_value(name: str, text: str, source: gin_source.Source) -> str:
    """Returns a value of the command line as gin text, quoted if it can only be a string."""
    if gin_source.is_value(text):
        return text
    flag = f"--gin.{name}={text}"
    if text.lower() in _NOT_GIN_NAMES:
        raise UserError(f"{flag}: gin has Python's names: write {_NOT_GIN_NAMES[text.lower()]}")
    if not text or text[0] in "\"'([{@%":
        raise UserError(
            f"{flag} is not a gin value: check its quotes and brackets, "
            f"or write --gin.{name}=\"'text'\""
        )
    now = source.values.get(name)
    if isinstance(now, (bool, int, float)):
        raise UserError(f"{flag}: {text!r} is not a number or truth value; the files say {now!r}")
    return repr(text)


def _check_macros(source: gin_source.Source) -> None:
    """Refuses macros that are bound and never read, or read and never bound."""
    shipped: set[str] | None = None
    for name, where in source.bound.items():
        if name in source.referenced:
            continue
        if name in renames.MOVED_MACROS:
            raise UserError(
                f"{where}: the macro {name} is now called {renames.MOVED_MACROS[name]}."
            )
        if not where.startswith("--gin."):
            # A file may set what only another kind of run reads, but not what none reads.
            shipped = gin_source.shipped_macros() if shipped is None else shipped
            if name in shipped:
                continue
        remedy = near_misses(name, source.referenced) or (
            " These files read: " + ", ".join(sorted(source.referenced)) + "."
            if source.referenced
            else ""
        )
        raise UserError(f"{where}: nothing reads a macro named {name!r}.{remedy}")
    unset = {name: where for name, where in source.referenced.items() if name not in source.bound}
    for name, where in unset.items():
        # Whole parts of a run, such as MODEL, come from a file each.
        files = gin_source.shipped_files_that_set(name)
        add = f"add a gin file that sets it ({', '.join(files)}), or " if files else ""
        remedy = near_misses(name, source.bound)
        raise UserError(
            f"{where}: the macro {name!r} is read but never set: {add}pass --gin.{name}=...{remedy}"
        )


def _check_required(source: gin_source.Source) -> None:
    """Refuses values that are still `%gin.REQUIRED`."""
    if missing := source.required():
        flags = " ".join(f"--gin.{name}=..." for name in missing)
        raise UserError(f"{', '.join(missing)} must be set: pass {flags}")


@functools.cache
def _search_shipped_files() -> None:
    """Lets `include` find the shipped files; runs once per process."""
    gin.add_config_file_search_path(str(gin_source.config_root()))


@contextlib.contextmanager
def _files_alone(texts: Mapping[str, str], already_read: set[str]) -> Iterator[None]:
    """Lets gin read texts that were read and checked before, each once, and nothing else.

    By itself it looks for resources of Python packages first, logs each place where there is none,
    and fails where a directory is on Python's path whose name an include begins with, such as
    `runs`.

    Args:
        texts: The text of each file by its path.
        already_read: The paths whose text gin has; those that it reads are added.
    """

    def opened(path: str) -> IO[str]:
        stream = io.StringIO("" if path in already_read else texts[path])
        already_read.add(path)
        stream.name = path  # Gin puts it into its errors.
        return stream

    readers = gin.config._FILE_READERS
    kept = list(readers)
    readers[:] = [(opened, texts.__contains__)]
    try:
        yield
    finally:
        readers[:] = kept


def _user_error(
    error: Exception, where: str = "", source: gin_source.Source | None = None
) -> UserError:
    """Makes one line of gin's several, with file, line and near misses.

    Args:
        error: What gin raised.
        where: File or option, where the error does not name a line.
        source: What the files bind and import.
    """
    text = str(error)
    lines = text.splitlines() or [type(error).__name__]
    if location := re.search(r'In file "([^"]*)", line (\d+)', text):
        where = f"{location[1]}:{location[2]}"
    elif not where and (configurable := re.search(r"In call to configurable '([^']+)'", text)):
        where = configurable[1]
    message = _in_plain_words(lines[0].strip(), source or gin_source.Source())
    return UserError(f"{where}: {message}" if where and not message.startswith(where) else message)


def _in_plain_words(message: str, source: gin_source.Source) -> str:
    """Rewrites messages of gin and Python about names, with near misses."""
    if match := re.match(r"Configurable '(.+)' doesn't have a parameter named '(.+)'", message):
        target = gin.get_configurable(match[1])
        # The signature of gin's own metaclass would hide that of the class.
        function = target.__init__ if inspect.isclass(target) else target
        parameters = [name for name in inspect.signature(function).parameters if name != "self"]
        return f"{match[1]} has no parameter {match[2]!r}.{near_misses(match[2], parameters)}"
    if match := re.match(r"Couldn't resolve .*<module '([^']+)'.*no attribute (\w+)", message):
        names = [name for name in dir(importlib.import_module(match[1])) if name[0] != "_"]
        return f"the module {match[1]} has no {match[2]!r}.{near_misses(match[2], names)}"
    if match := re.match(r"'(\w+)' was not provided by an import", message):
        return f"{match[1]!r} is not imported: {_how_to_import(match[1], source)}"
    if match := re.match(r"No configurable matching (?:reference )?'@?([^'()]+)", message):
        module, _, name = match[1].rpartition(".")
        others = {selector.rsplit(".", 1)[-1] for selector in source.selectors} - {name}
        remedy = (
            " A file that names the classes of a module begins with `from __gin__ import "
            "dynamic_registration`, and imports the module."
            if module
            else near_misses(name, others)
        )
        return f"these files name no class or function {match[1]!r}.{remedy}"
    if match := re.match(r"(?:.*\.)?(\w+)\.__init__\(\) missing .*arguments?: (.*)", message):
        names = re.findall(r"'(\w+)'", match[2])
        flags = " ".join(f"--gin.{match[1]}.{name}=..." for name in names)
        them = "it" if len(names) == 1 else "them"
        return f"{match[1]} needs {', '.join(names)}: set {them} in a gin file, or pass {flags}"
    if match := re.match(r"No module named '([\w.]+)'", message):
        return not_found(match[1])
    if match := re.match(r"cannot import name '(\w+)' from '([^']+)'", message):
        return f"the module {match[2]} has no {match[1]!r}"
    return message


def _how_to_import(name: str, source: gin_source.Source) -> str:
    """Says how a file imports a name, as the other files of the run import it if they do."""
    for selector in sorted(source.selectors):
        module, _, class_name = selector.rpartition(".")
        statements = [text for text in source.imports if text.split()[-1] == module]
        if class_name == name and statements:
            return f"write `{statements[0]}` at the file's top, and `{selector}` here"
    return f"write `from ... import {name}` at the file's top"
