"""Progress on terminals and in log files."""

import io

import pytest

from maestro_jax.progress import Progress


class _Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self._is_terminal = terminal

    def isatty(self):
        return self._is_terminal


@pytest.fixture
def clock(monkeypatch):
    """The time that tqdm sees, in seconds."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_a_terminal_rewrites_one_line(clock):
    stream = _Stream(terminal=True)
    with Progress(40, "reading", stream=stream) as progress:
        clock[0] += 10
        progress.update(10)
        clock[0] += 10
        progress.update_to(40)
        clock[0] += 1
    written = stream.getvalue()
    assert written.count("\n") == 1 and written.endswith("\n")
    states = [state for state in written.split("\r") if "reading" in state]
    assert "25%" in states[1] and "10/40" in states[1] and "00:10<00:30" in states[1]
    assert "100%" in states[-1] and "40/40" in states[-1]


def test_a_log_file_gets_a_line_every_ten_seconds(clock):
    stream = _Stream(terminal=False)
    with Progress(4, "reading", stream=stream) as progress:
        for seconds in (1, 8, 3600):
            clock[0] += seconds
            progress.update()
        progress.clear()
    progress.close()
    assert stream.getvalue().splitlines() == [
        "reading: 75% 3/4 in 1:00:09, 20:03 left",
        "reading: 75% 3/4 in 1:00:09, 20:03 left",
    ]
    assert "\r" not in stream.getvalue()


def test_quick_work_writes_its_last_line_only(clock):
    stream = _Stream(terminal=False)
    with Progress(2, "reading", stream=stream) as progress:
        progress.update()
        progress.update()
    assert stream.getvalue() == "reading: 100% 2/2 in 00:00\n"


def test_no_work_at_all_writes_nothing_to_a_file():
    stream = _Stream(terminal=False)
    Progress(0, "nothing", stream=stream).close()
    assert stream.getvalue() == ""


def test_work_of_unknown_size(clock):
    stream = _Stream(terminal=False)
    with Progress(0, "reading", stream=stream) as progress:
        clock[0] += 7
        progress.update(64)
    assert stream.getvalue() == "reading: 64 in 00:07\n"


def test_a_total_that_grows(clock):
    stream = _Stream(terminal=False)
    with Progress(2, "reading", stream=stream) as progress:
        progress.total = 3
        clock[0] += 20
        progress.update(3)
    assert stream.getvalue().splitlines()[-1] == "reading: 100% 3/3 in 00:20"


def test_more_work_than_was_announced(clock):
    stream = _Stream(terminal=False)
    with Progress(2, "reading", stream=stream) as progress:
        clock[0] += 20
        progress.update(3)
    assert stream.getvalue().splitlines()[-1] == "reading: 3 in 00:20"
