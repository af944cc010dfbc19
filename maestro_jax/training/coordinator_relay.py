"""Keeps JAX from aborting a process when the first process of the run is gone.

JAX's coordination service lives in the first process. When its connection closes, every other
process ends in a stack trace at once, whatever it is doing, before it could say which host was
lost; JAX has no hook for it (a Python callback cannot receive the error's type). So the processes
connect through a relay of their own, whose connections stay open when those behind it close:
nothing answers any more, and `process_group` says what happened.
"""

from __future__ import annotations

import contextlib
import socket
import threading

_CHUNK = 1 << 16


class Relay:
    """Forwards connections within this host to another address.

    Args:
        target: The address, ``host:port``.

    Attributes:
        address: Where it accepts connections, ``127.0.0.1:port``.
    """

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host.strip("[]"), int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, name="Relay", daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._server.accept()
            try:
                far = socket.create_connection(self._target, timeout=30.0)
            except OSError:
                near.close()  # Not there yet: the client tries again.
                continue
            for connection in (near, far):
                connection.settimeout(None)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for ends in ((near, far, True), (far, near, False)):
                threading.Thread(target=_forward, args=ends, name="Relay", daemon=True).start()


def _forward(source: socket.socket, sink: socket.socket, closes: bool) -> None:
    """Forwards what a connection says to another one, which ends with it if `closes` says so."""
    with contextlib.suppress(OSError):
        while chunk := source.recv(_CHUNK):
            sink.sendall(chunk)
    if closes:
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
