"""Processes, here threads, meet in a directory; one that is silent ends the others."""

from __future__ import annotations

import json
import threading
import time

import pytest

from maestro_jax.errors import UserError
from maestro_jax.evaluation import processes
from maestro_jax.evaluation.processes import Processes


@pytest.fixture
def quick(monkeypatch):
    """Beats in milliseconds, and endings that are noted in place of the end of pytest."""
    ended: dict[int, str] = {}
    monkeypatch.setattr(processes, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.6)
    monkeypatch.setattr(processes, "FIRST_PATIENCE_SECONDS", 1.2)

    def end(self, reason):
        ended[self.index] = reason
        self._own["state"] = reason
        self._write()
        self._closed.set()

    monkeypatch.setattr(Processes, "_end", end)
    return ended


def in_threads(count, work):
    """Calls `work(index)` in as many threads; returns results or exceptions by index."""
    results: dict[int, object] = {}

    def run(index):
        try:
            results[index] = work(index)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return results


@pytest.mark.parametrize("count", [2, 3, 5])
def test_nobody_passes_before_all_have_come(tmp_path, quick, count):
    came: list[int] = []

    def work(index):
        heard = []
        with Processes(tmp_path, index=index, count=count, session=7) as group:
            for turn in range(4):
                time.sleep(0.03 * ((index + turn) % count))
                came.append(turn)
                heard.append(group.meet(f"turn {turn}", f"{index}-{turn}"))
                assert came.count(turn) == count
        return heard

    results = in_threads(count, work)
    # The value of the first process is everybody's.
    assert results == dict.fromkeys(range(count), ["0-0", "0-1", "0-2", "0-3"])
    assert not quick
    assert list(tmp_path.iterdir()) == []


def test_one_process_writes_nothing(tmp_path):
    with Processes(tmp_path / "absent") as group:
        assert group.meet("a point", 5) == 5
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("silent", [0, 1])
def test_a_silent_process_ends_the_others(tmp_path, quick, silent):
    def work(index):
        group = Processes(tmp_path, index=index, count=3, session=7)
        if index == silent:
            # It says a word and is killed.
            group._directory.mkdir(parents=True, exist_ok=True)
            group._write()
            return
        group.__enter__()
        for _ in range(500):
            if group._closed.wait(0.01):
                break

    in_threads(3, work)
    assert set(quick) == {0, 1, 2} - {silent}
    finder = 1 if silent == 0 else 0
    assert f"process {silent} of 3 has not been heard of for 1 s" in quick[finder]
    assert "the same command goes on" in quick[2]


def test_a_process_that_never_came_is_missed(tmp_path, quick):
    group = Processes(tmp_path, index=0, count=2, session=7)
    group.__enter__()
    assert group._closed.wait(5)
    assert "nor been seen in" in quick[0]


def test_an_error_is_everybodys(tmp_path, quick):
    def work(index):
        group = Processes(tmp_path, index=index, count=3, session=7)
        if index == 1:
            with group:
                raise UserError("the shard is damaged")
        group.__enter__()
        group._closed.wait(5)

    results = in_threads(3, work)
    assert str(results[1]) == "the shard is damaged"
    assert quick[0] == "process 1 stopped: the shard is damaged"
    assert "the shard is damaged" in quick[2]


def test_what_killed_starts_left_is_removed(tmp_path, quick, monkeypatch):
    old = tmp_path / "processes-3"
    old.mkdir()
    (old / "00000.json").write_text(json.dumps({}))
    monkeypatch.setattr(processes, "_STALE_SECONDS", -1.0)
    results = in_threads(
        2, lambda index: Processes(tmp_path, index=index, count=2, session=7).__enter__().meet("a")
    )
    assert results == {0: None, 1: None}
    assert not old.exists()
