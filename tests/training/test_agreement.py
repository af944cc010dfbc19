"""Processes agree before the first step, and a failure of one is told by all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

import pytest

from maestro_jax.training import agreement
from maestro_jax.training.changes import describe

_PROCESS = """
    import sys, time
    import jax
    from maestro_jax.errors import RestartableError, UserError
    from maestro_jax.training import agreement
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    index = int(sys.argv[2])

    def said(action):
        try:
            action()
            return "agreed"
        except (UserError, RestartableError) as error:
            return f"{type(error).__name__}: {error}"

    def fail_on(failing):
        with agreement.failing_together():
            if index in failing:
                raise UserError(f"the data of {index} are gone")

    own = agreement.facts({"seed": 3}, {"the stream text": "a"}, 2)
    agreement.exchange("warm")
    began = time.monotonic()
    print(said(lambda: agreement.agree(own)))
    print("in time" if time.monotonic() - began < 1 else "slow")
    print(said(lambda: agreement.agree({**own, "step": index})))
    print(said(lambda: fail_on([1])))
    print(said(lambda: fail_on([0, 1])))
    print(said(lambda: fail_on([])))
    if index == 0:
        print(said(lambda: agreement.exchange("alone", seconds=0.5)))
    else:
        time.sleep(1)
    jax.distributed.shutdown()
"""


def test_the_process_that_differs_from_most_is_named():
    one = {"jax": "1", "seed": 0}
    answers = [("a", one), ("b", one), ("c", one)]
    assert agreement.first_difference(answers) is None
    text = agreement.first_difference([("a", {**one, "jax": "2"}), *answers[1:]])
    assert text is not None
    assert text.startswith('process 0 on a disagrees with the others: its jax is "2" instead of')
    # Of as many, the first one counts.
    text = agreement.first_difference([("a", one), ("b", {**one, "seed": 1})])
    assert text is not None and text.startswith("process 1 on b disagrees")
    text = agreement.first_difference([*answers, ("d", {}), ("e", {"jax": "1"})])
    assert text is not None and text.startswith("process 3 on d disagrees")
    text = agreement.first_difference([*answers, ("d", {**one, "seed": 4}), ("e", {"jax": "1"})])
    assert text is not None and "process 3 on d and 1 more disagrees" in text


def test_facts_are_those_of_configuration_versions_data_and_step(toy):
    facts = agreement.facts(describe(toy.run()), {"the stream text": "abc"}, 4)
    for name in ("python", "jax", "jaxlib", "maestro_jax", "commit of maestro_jax"):
        assert name in facts
    assert facts["data of the stream text"] == "abc"
    assert facts["step of the newest checkpoint"] == 4
    assert facts["configuration of seed"] == 0
    assert facts["configuration of optimizer.learning_rate"] == 0.01


@pytest.mark.multiprocess
def test_two_processes_agree_or_say_the_same():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_PROCESS), address, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for index in range(2)
    ]
    outputs = []
    try:
        for process in processes:
            out, error = process.communicate(timeout=120)
            assert process.returncode == 0, error
            outputs.append(out.splitlines())
    finally:
        for process in processes:
            process.kill()
    first, second = outputs
    assert first[:2] == second[:2] == ["agreed", "in time"]
    assert first[2] == second[2] and "process 1 on " in first[2]
    assert "its step is 1 instead of 0" in first[2]
    assert second[3] == "UserError: the data of 1 are gone"
    assert first[3].startswith("UserError: process 1 on ") and first[3].endswith(second[3][11:])
    assert (first[4], second[4]) == tuple(f"UserError: the data of {n} are gone" for n in range(2))
    assert first[5] == second[5] == "agreed"
    assert first[6].startswith("RestartableError: process 1 of 2 does not answer")
