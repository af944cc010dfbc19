"""Before the first step, all processes of a run agree on what they train, or all say why not.

What each process knows goes through the key-value store of JAX's coordination service, before any
collective: a process that differs would otherwise hang the others in one, or train another model.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jaxlib
from jax._src import distributed as jax_distributed

from maestro_jax import __version__, provenance
from maestro_jax.errors import RestartableError, UserError

SECONDS = 600.0
"""Seconds to wait for what another process has to say: it may still read data, or be compiling."""

_rounds = itertools.count()


def exchange(value: Any, seconds: float = SECONDS) -> list[Any]:
    """Tells all processes a value, and returns that of each, in order.

    Every process calls this the same number of times.

    Args:
        value: JSON values.
        seconds: Seconds to wait for each other process.

    Raises:
        RestartableError: A process says nothing.
    """
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    client = jax_distributed.global_state.client
    assert client is not None
    key = f"maestro_jax/agreement/{next(_rounds)}"
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    values = []
    for index in range(jax.process_count()):
        try:
            text = client.blocking_key_value_get(f"{key}/{index}", int(1000 * seconds))
        except jax.errors.JaxRuntimeError as error:
            raise RestartableError(
                f"process {index} of {jax.process_count()} does not answer at the start of the "
                f"run ({str(error).splitlines()[0]}); start all processes again"
            ) from error
        values.append(json.loads(text))
    return values


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Makes all processes raise the error that the block raises on one of them.

    That is a `UserError` or a `RestartableError`; any other is a bug.

    The block contains nothing collective; every process enters it.
    """
    failure: UserError | RestartableError | None = None
    try:
        yield
    except (UserError, RestartableError) as error:
        failure = error
    if jax.process_count() > 1:
        text = None if failure is None else str(failure)
        own = (platform.node(), text, isinstance(failure, RestartableError))
        for index, (host, theirs, passes) in enumerate(exchange(own)):
            if theirs is not None and failure is None:
                kind = RestartableError if passes else UserError
                raise kind(f"process {index} on {host}: {theirs}")
    if failure is not None:
        raise failure


def facts(description: Mapping[str, Any], data: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Returns what all processes must agree on, by what it is called in messages.

    Args:
        description: Description of the run (`changes.describe`).
        data: Fingerprints of the data by what they are of.
        step: Step from which this process goes on.
    """
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "maestro_jax": __version__,
        "commit of maestro_jax": (provenance.git_state() or {}).get("commit"),
        "step of the newest checkpoint": step,
        **{f"data of {name}": fingerprint for name, fingerprint in data.items()},
        **{f"configuration of {place}": value for place, value in description.items()},
    }


def agree(own: Mapping[str, Any]) -> None:
    """Makes sure that all processes have the same facts.

    Raises:
        UserError: On all processes, naming one that differs from most, and what differs.
    """
    answers = exchange((platform.node(), own))
    difference = first_difference(answers)
    if difference is not None:
        raise UserError(difference)


def first_difference(answers: Sequence[tuple[str, Mapping[str, Any]]]) -> str | None:
    """Finds what the processes do not agree on.

    Args:
        answers: Host and facts of each process.

    Returns:
        A line that names the first fact that differs, and who differs from most; None if all agree.
    """
    names = dict.fromkeys(name for _, each in answers for name in each)
    for name in names:
        values = [json.dumps(each.get(name)) for _, each in answers]
        # Of as many, that of the first process counts.
        common = collections.Counter(values).most_common(1)[0][0]
        others = [index for index, value in enumerate(values) if value != common]
        if others:
            index = others[0]
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            return (
                f"process {index} on {answers[index][0]}{more} disagrees with the others: its "
                f"{name} is {values[index]} instead of {common}; give all hosts the same "
                "packages, command and data"
            )
    return None
