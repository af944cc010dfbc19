"""What processes tell each other, between groups in one process over loopback."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from maestro_jax.training import process_group
from maestro_jax.training.process_group import ProcessGroup, Stop


@pytest.fixture
def ended(monkeypatch):
    """Collects how processes end, instead of ending this one."""
    lines = []

    def end(line, exit_code, *, delay=0.0):
        lines.append((exit_code, line))

    monkeypatch.setattr(process_group, "end_process", end)
    return lines


@pytest.fixture
def groups(ended):
    first, *others = made = [ProcessGroup(index, 3) for index in range(3)]
    told = first.listen()
    for other in others:
        other.connect("localhost", told)
    wait_until(lambda: len(first._peers) == 2)
    yield made
    for group in made:
        group.part()


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def in_threads(functions):
    results = [None] * len(functions)

    def run(index):
        results[index] = functions[index]()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    return results


def test_all_stop_after_the_same_step_whoever_is_asked(groups):
    for asked in (2, 0):
        for group in groups:
            group.begin(0)
        last = {}

        def train(group, asked=asked, last=last):
            for step in range(1000):
                time.sleep(0.002 * group.index)
                if group.index == asked and step == 7:
                    group.ask_to_stop(Stop(143, "SIGTERM"))
                stop = group.ready_after(step)
                if stop is not None:
                    last[group.index] = (step, stop)
                    return

        in_threads([lambda g=g: train(g) for g in groups])
        assert len(set(last.values())) == 1
        step, stop = last[0]
        assert 6 <= step <= 9 and stop == Stop(143, "SIGTERM")


def test_no_process_goes_beyond_what_another_has_no_batch_for(groups):
    """One waits for its input; the others must not have begun the step that it cannot take."""
    for group in groups:
        group.begin(5)
    in_threads([lambda g=g: g.ready_after(5) for g in groups])
    waiting = [threading.Thread(target=groups[n].ready_after, args=(6,)) for n in (0, 2)]
    for thread in waiting:
        thread.start()
    time.sleep(0.3)
    assert all(thread.is_alive() for thread in waiting)
    assert groups[1].stop_after(6) is None
    groups[1].ask_to_stop(Stop(75, "no input"))
    wait_until(lambda: groups[1].stop_after(6) is not None)
    for thread in waiting:
        thread.join(5)
        assert not thread.is_alive()
    assert all(group.stop_after(6) == Stop(75, "no input") for group in groups)
    assert all(group.stop_after(5) is None for group in groups)


def test_one_process_alone_decides_at_once():
    group = ProcessGroup()
    group.begin(3)
    assert group.ready_after(3) is None
    group.ask_to_stop(Stop(130, "SIGINT"))
    assert group.ready_after(4) == Stop(130, "SIGINT")
    group.begin(0)
    assert group.ready_after(0) is None


@pytest.mark.parametrize("victim", [0, 2])
def test_a_connection_that_closes_names_the_host(groups, ended, victim):
    groups[victim].where = lambda: "step 12"
    wait_until(lambda: all("step 12" in g.places() for g in (groups[0], groups[victim])), 5)
    groups[victim]._is_ending = groups[victim]._is_alone = True  # The dead say nothing.
    for peer in groups[victim]._peers.values():
        peer.connection.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: len(ended) >= 2)
    name = f"host {socket.gethostname()} (process {victim} of 3)"
    for code, line in ended[:2]:
        assert code == 75
        assert line.startswith(name) and "lost since" in line
        assert line.endswith("; the same command continues it")


def test_silence_names_the_host(groups, ended, monkeypatch):
    monkeypatch.setattr(process_group, "LOST_SECONDS", 2.0)
    monkeypatch.setattr(process_group, "BEAT_SECONDS", 0.2)
    for group in groups[:2]:
        # Measured from now on, not from a beat that was sent at the earlier rate.
        for peer in group._peers.values():
            peer.heard = time.monotonic()
    groups[2]._is_alone = True
    wait_until(lambda: len(ended) >= 2)
    assert all("(process 2 of 3) has not been heard of for 2 s" in line for _, line in ended[:2])


@pytest.mark.parametrize("index", [0, 1])
def test_an_error_of_one_ends_all_with_its_line(groups, ended, index):
    stacks = []
    for group in groups:
        group.on_stacks = lambda group=group: stacks.append(group.index)
    groups[index].fail("step 3 hangs", 75, stacks=True)
    wait_until(lambda: len(ended) == 2)
    assert sorted(stacks) == sorted({0, 1, 2} - {index})
    for code, line in ended:
        assert code == 75 and f"(process {index} of 3) stopped: step 3 hangs; the same" in line


def test_processes_that_are_done_are_not_missed(groups, ended):
    in_threads([group.leave for group in groups])
    for group in groups:
        for peer in group._peers.values():
            peer.connection.close()
    time.sleep(0.5)
    assert not ended


def test_the_first_process_disconnects_last(groups, ended):
    order = []

    def leave(group):
        def disconnect():
            time.sleep(0.2 * group.index)
            order.append(group.index)

        group.leave(disconnect)

    in_threads([lambda group=group: leave(group) for group in groups])
    assert order == [1, 2, 0] and not ended


def test_strangers_are_not_listened_to(groups, ended):
    port = groups[1]._peers[0].connection.getpeername()[1]
    for said in (b'{"secret": "x", "index": 1, "host": "h"}\n', b"GET / HTTP/1.1\r\n\r\n", b"\n"):
        with socket.create_connection(("localhost", port)) as stranger:
            stranger.sendall(said)
            stranger.settimeout(5)
            assert stranger.recv(10) == b""
    assert not ended and len(groups[0]._peers) == 2
