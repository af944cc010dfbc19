"""What the processes of a run tell each other besides what they compute together.

A collective operation hangs, or ends in a stack trace after minutes, when one of its processes has
died. So the processes keep a connection of their own: each has one to the first process (the
leader), and sends a beat every few seconds. Over it they learn

- that a host has been lost, within half a minute, and which;
- why another process ends, which ends all of them with the same line;
- after which step all of them stop. A step is dispatched only when every process has its batch and
  none has been asked to stop. So all stop after the same step, with a state that is whole, also
  while one of them waits for input that does not come.

Messages are lines of JSON. A connection begins with a secret that JAX's coordination service gives
to the processes of the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import json
import logging
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from maestro_jax.errors import RESTART_EXIT_CODE, RestartableError

log = logging.getLogger(__name__)

BEAT_SECONDS = 2.0
LOST_SECONDS = 20.0
"""Silence after which a process is taken for lost."""
_TURN_SECONDS = 0.25
_SEND_SECONDS = 5.0
_LONGEST_LINE = 1 << 20
_NOWHERE = (0, -1)


class AgreedStop(RestartableError):
    """All processes have stopped after the same step, and are to be started again."""


@dataclasses.dataclass(frozen=True)
class Stop:
    """Why all processes stop after a step.

    Attributes:
        exit_code: Exit status of all processes.
        reason: What asked for it, and where.
    """

    exit_code: int
    reason: str


@dataclasses.dataclass(eq=False)
class _Peer:
    """Another process, and the connection to it."""

    connection: socket.socket
    index: int = -1
    host: str = "?"
    heard: float = dataclasses.field(default_factory=time.monotonic)
    received: bytes = b""
    place: str = "starting"
    is_done: bool = False
    is_gone: bool = False
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def send(self, **message: Any) -> None:
        """Sends a message; a connection that broke is noticed where it is read."""
        with self.lock, contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")


class ProcessGroup:
    """The processes of a run, of which this is one.

    Args:
        index: Number of this process.
        count: Number of processes.

    Attributes:
        index: Number of this process.
        count: Number of processes.
        resume: Returns how a run goes on that ends now, as a clause for messages.
        on_stacks: Writes the stacks of all threads of this process.
        where: Returns where this process is, for messages: ``step 12``.
        on_signal: Is called by a thread with each signal that asks this process to stop.
    """

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index, self.count = index, count
        self.resume: Callable[[], str] = lambda: "the same command continues it"
        self.on_stacks: Callable[[], None] = lambda: None
        self.where: Callable[[], str] = lambda: "starting"
        self.on_signal: Callable[[int], None] = self.end_by_signal
        self._changed = threading.Condition(threading.RLock())
        self._peers: dict[int, _Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._is_ending = self._is_alone = False
        # What has been decided: (training, step) of the last step that all may go beyond, and of
        # the one after which they stop.
        self._training = 0
        self._pending = 0
        self._go: tuple[int, int] = _NOWHERE
        self._stop: tuple[tuple[int, int], Stop] | None = None
        # The leader: what each process has ready, and a stop that was asked for.
        self._ready: dict[int, tuple[int, int]] = {}
        self._asked: Stop | None = None

    @property
    def name(self) -> str:
        """Returns the host and the number of this process, for messages."""
        return self._name(self.index, socket.gethostname())

    def _name(self, index: int, host: str) -> str:
        return f"host {host} (process {index} of {self.count})"

    # ------------------------------------------------------------------------------ connecting

    def listen(self) -> str:
        """Accepts the connections of the other processes, in the first one.

        Returns:
            What they must know, for `connect`.
        """
        if socket.has_dualstack_ipv6():
            server = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=self.count
            )
        else:
            server = socket.create_server(("", 0), backlog=self.count)
        self._secret = secrets.token_hex(16)
        self._selector.register(server, selectors.EVENT_READ)
        self._start()
        return f"{server.getsockname()[1]} {self._secret}"

    def connect(self, host: str, told: str) -> None:
        """Connects to the first process.

        Args:
            host: Its host.
            told: Result of its `listen`.

        Raises:
            OSError: It cannot be reached.
        """
        port, secret = told.split()
        connection = socket.create_connection((host, int(port)), timeout=LOST_SECONDS)
        leader = _Peer(connection, index=0, host=host)
        self._add(leader)
        leader.send(secret=secret, index=self.index, host=socket.gethostname())
        self._start()

    def _start(self) -> None:
        threading.Thread(target=self._watch, name="ProcessGroup", daemon=True).start()

    def _add(self, peer: _Peer) -> None:
        peer.connection.settimeout(_SEND_SECONDS)
        peer.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        if peer.index >= 0:
            self._peers[peer.index] = peer

    # ---------------------------------------------------------------- stopping at the same step

    def begin(self, step: int) -> None:
        """Begins a training, which continues from a step; every process calls it."""
        with self._changed:
            self._training += 1
            self._pending = step
            self._decide()

    def ask_to_stop(self, stop: Stop) -> None:
        """Asks all processes to stop as soon as their states are whole; may be called anywhere."""
        if self.index:
            self._tell(type="stop", exit_code=stop.exit_code, reason=stop.reason)
        else:
            with self._changed:
                self._asked = self._asked or stop
                self._decide()

    def ready_after(self, step: int) -> Stop | None:
        """Tells that this process can go beyond a step, and waits until all can or one must not.

        Args:
            step: Number of steps dispatched; this process has the batch of the next one.

        Returns:
            Why all stop after the step; None if all go on.
        """
        position = (self._training, step)
        if self.index:
            self._tell(type="ready", position=position)
        with self._changed:
            if not self.index:
                self._ready[0] = position
                self._decide()
            while self._go < position and self.stop_after(step) is None:
                self._changed.wait(1.0)
            return self.stop_after(step)

    def stop_after(self, step: int) -> Stop | None:
        """Returns why all processes stop after a step, if that has been decided."""
        with self._changed:
            if self._stop is None:
                return None
            (training, last), stop = self._stop
            return stop if training == self._training and step >= last else None

    def _decide(self) -> None:
        """Decides, in the first process, whether the next step is taken."""
        if self.index or not self._training:
            return
        position = (self._training, self._pending)
        if self._stop is not None and self._stop[0][0] == self._training:
            return
        if self._asked is not None:
            self._stop, self._asked = (position, self._asked), None
            _, stop = self._stop
            self._tell(type="stopped", position=position, **dataclasses.asdict(stop))
        elif all(self._ready.get(n, _NOWHERE) >= position for n in range(self.count)):
            self._go = position
            self._pending += 1
            self._tell(type="go", position=position)
        self._changed.notify_all()

    # ------------------------------------------------------------------------- ending together

    def fail(self, reason: str, exit_code: int, *, stacks: bool = False) -> None:
        """Tells the other processes why this one ends, which ends them too.

        Args:
            reason: What happened.
            exit_code: Exit status of all.
            stacks: Whether the others write the stacks of their threads.
        """
        self._is_ending = True
        self._tell(type="failed", line=f"{self.name} stopped: {reason}", exit_code=exit_code,
                   stacks=stacks)  # fmt: skip
        if not self.index:
            time.sleep(0.5)  # The others read why, before they see that the connection closes.

    def end_by_signal(self, number: int) -> None:
        """Ends all processes at once after a signal to this one."""
        name, code = signal.Signals(number).name, exit_code_of(number)
        self.fail(name, code)
        end_process(f"{name}: stopped at once; {self.resume()}", code)

    def wait_for_verdict(self) -> None:
        """Waits until every other process has been heard of again, or this one has been ended.

        After an error of a collective operation: it may be due to a process that is lost.
        """
        began = time.monotonic()
        while time.monotonic() - began < LOST_SECONDS + 2 * BEAT_SECONDS:
            if self.count == 1 or self._is_alone:
                return
            if all(peer.heard > began + 2 * BEAT_SECONDS for peer in self._peers.values()):
                return
            time.sleep(_TURN_SECONDS)

    def leave(self, disconnect: Callable[[], None] | None = None) -> None:
        """Waits until all other processes are done, too; they are still watched meanwhile.

        Args:
            disconnect: Is called then; in the first process, which the others are connected to,
                after all others.
        """
        if self.count == 1 or self._is_alone:
            return
        if self.index:
            self._tell(type="done")
        while not all(peer.is_done for peer in self._peers.values()):
            time.sleep(0.05)
        if not self.index:
            self._tell(type="done")
        if disconnect is not None:
            while not (self.index or all(peer.is_gone for peer in self._peers.values())):
                time.sleep(0.05)
            disconnect()
            self._tell(type="gone")
        self.part()

    def part(self) -> None:
        """Ends the watch over the other processes, which all of them do at the same point."""
        self._is_alone = True

    # -------------------------------------------------------------------------------- watching

    def places(self) -> str:
        """Returns where each process is, as far as this one knows."""
        known = {self.index: self.where(), **{n: p.place for n, p in self._peers.items()}}
        return ", ".join(f"process {n}: {place}" for n, place in sorted(known.items()))

    def _tell(self, **message: Any) -> None:
        """Sends a message to the leader, or from it to all others."""
        for peer in list(self._peers.values()):
            peer.send(**message)

    def _watch(self) -> None:
        turn = beat = time.monotonic()
        while not self._is_alone:
            for key, _ in self._selector.select(_TURN_SECONDS):
                if key.data is None:
                    connection, _ = key.fileobj.accept()  # type: ignore[union-attr]
                    self._add(_Peer(connection))
                else:
                    self._read(key.data)
            now = time.monotonic()
            if now - turn > LOST_SECONDS / 4:
                # This process itself was stopped or starved: what was sent meanwhile is read first.
                for peer in self._peers.values():
                    peer.heard = now
            turn = now
            if now - beat > BEAT_SECONDS:
                beat = now
                self._tell(type="beat", place=self.where())
            for peer in list(self._peers.values()):
                if now - peer.heard > LOST_SECONDS:
                    self._lost(peer, f"has not been heard of for {now - peer.heard:.0f} s")

    def _read(self, peer: _Peer) -> None:
        try:
            received = peer.connection.recv(1 << 16)
        except OSError:
            received = b""
        if not received:
            self._selector.unregister(peer.connection)
            peer.connection.close()
            peer.is_gone = peer.is_done
            if peer.index >= 0 and not peer.is_done:
                self._lost(peer, "closed its connection without a word, as when it is killed")
            return
        peer.heard = time.monotonic()
        *lines, peer.received = (peer.received + received).split(b"\n")
        if peer.index < 0 and len(peer.received) > _LONGEST_LINE:
            lines = [b""]
        for line in lines:
            try:
                message = json.loads(line)
                if peer.index < 0:
                    self._admit(peer, message)
                else:
                    self._receive(peer, message)
            except (ValueError, KeyError, TypeError):
                # No process of this run: whoever it is does not know the secret.
                self._selector.unregister(peer.connection)
                peer.connection.close()
                return

    def _admit(self, peer: _Peer, message: dict[str, Any]) -> None:
        if not hmac.compare_digest(str(message["secret"]), self._secret):
            raise ValueError("wrong secret")
        peer.index, peer.host = int(message["index"]), str(message["host"])
        self._peers[peer.index] = peer
        peer.send(type="welcome", host=socket.gethostname())

    def _receive(self, peer: _Peer, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "beat":
            peer.place = str(message["place"])
        elif kind == "welcome":
            peer.host = str(message["host"])
        elif kind == "done":
            peer.is_done = True
        elif kind == "gone":
            peer.is_gone = True
        elif kind == "failed":
            for other in list(self._peers.values()):
                if not self.index and other is not peer:
                    other.send(**message)
            if message["stacks"]:
                self.on_stacks()
            self._end(str(message["line"]), int(message["exit_code"]))
        elif kind == "stop":
            self.ask_to_stop(Stop(message["exit_code"], str(message["reason"])))
        else:
            training, step = message["position"]
            with self._changed:
                if kind == "ready":
                    self._ready[peer.index] = (training, step)
                    self._decide()
                elif kind == "go":
                    self._go = (training, step)
                elif kind == "stopped":
                    stop = Stop(message["exit_code"], str(message["reason"]))
                    self._stop = ((training, step), stop)
                self._changed.notify_all()

    def _lost(self, peer: _Peer, how: str) -> None:
        if self._is_ending or self._is_alone:
            return
        since = time.strftime(
            "%H:%M:%S", time.localtime(time.time() - time.monotonic() + peer.heard)
        )
        line = f"{self._name(peer.index, peer.host)} {how}: lost since {since} at {peer.place}"
        if not self.index:
            for other in self._peers.values():
                if other is not peer:
                    other.send(type="failed", line=line, exit_code=RESTART_EXIT_CODE, stacks=False)
        self._end(line, RESTART_EXIT_CODE)

    def _end(self, line: str, exit_code: int) -> None:
        """Ends this process from the thread of the watch, whatever the main thread is doing."""
        if self._is_ending or self._is_alone:
            return
        self._is_ending = True
        if exit_code == RESTART_EXIT_CODE:
            with contextlib.suppress(Exception):  # It may read storage that is in trouble.
                line += f"; {self.resume()}"
        end_process(line, exit_code, delay=0.0 if self.index else 0.5)


def exit_code_of(number: int) -> int:
    """Returns the exit status of a process that a signal stopped: that of SIGTERM for notices."""
    return 128 + (number if number == signal.SIGINT else signal.SIGTERM)


def end_process(line: str, exit_code: int, *, delay: float = 0.0) -> NoReturn:
    """Prints why this process ends, and ends it at once.

    The orderly end of a process of several waits for the others, which may never come to theirs.

    Args:
        line: The reason, in one line.
        exit_code: The exit status.
        delay: Seconds to wait before the end.
    """
    print("error: " + " ".join(line.split()), file=sys.stderr, flush=True)
    time.sleep(delay)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(exit_code)


def end_within(seconds: float, exit_code: int) -> None:
    """Ends this process if it is still there after some time.

    Args:
        seconds: The time for an orderly end.
        exit_code: The exit status.
    """

    def wait() -> None:
        time.sleep(seconds)
        end_process(f"the orderly end took more than {seconds:.0f} s: ended without it", exit_code)

    threading.Thread(target=wait, name="EndWithin", daemon=True).start()
