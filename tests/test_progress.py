"""Progress lines on terminals and in log files."""

import io

from maestro_jax import progress
from maestro_jax.progress import Progress


class _Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self._is_terminal = terminal

    def isatty(self):
        return self._is_terminal


def _clock(monkeypatch, seconds):
    times = iter(seconds)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))


def test_terminal_rewrites_one_line(monkeypatch):
    stream = _Stream(terminal=True)
    _clock(monkeypatch, [0.0, 10.0, 20.0, 20.0])
    with Progress(40, "speaking", stream=stream) as line:
        line.update(10)
        line.update(30)
    written = stream.getvalue()
    assert written.count("\n") == 1 and written.endswith("\n")
    first, second, last = written.strip("\n").split("\r")[1:]
    assert first == "speaking: 25% 10/40 in 10s, 30s left"
    assert second.rstrip() == last.rstrip() == "speaking: 100% 40/40 in 20s"
    # Nothing of the longer line before shows through.
    assert len(second) == len(first)


def test_log_file_gets_few_whole_lines(monkeypatch):
    stream = _Stream(terminal=False)
    _clock(monkeypatch, [0.0, 1.0, 9.0, 3700.0, 3700.0])
    with Progress(4, "speaking", stream=stream) as line:
        for _ in range(3):
            line.update()
    assert stream.getvalue().splitlines() == [
        "speaking: 75% 3/4 in 1h01m, 20m33s left",
        "speaking: 75% 3/4 in 1h01m, 20m33s left",
    ]


def test_no_work_at_all():
    stream = _Stream(terminal=False)
    Progress(0, "nothing", stream=stream).close()
    assert stream.getvalue() == "nothing: 100% 0/0 in 0s\n"


def test_work_of_unknown_size(monkeypatch):
    stream = _Stream(terminal=False)
    _clock(monkeypatch, [0.0, 1.0, 7.0])
    with Progress(0, "reading", stream=stream) as line:
        line.update(64)
    assert stream.getvalue() == "reading: 64 in 7s\n"
