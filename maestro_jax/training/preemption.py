"""Stops training with its state saved: signals, and notices that a host will be taken away."""

from __future__ import annotations

import logging
import os
import pathlib
import signal
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from maestro_jax.training.callbacks import Callback
from maestro_jax.training.process_group import Stop, exit_code_of
from maestro_jax.training.signal_watch import SignalWatch, stop_signals

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer

log = logging.getLogger(__name__)

_POLL_SECONDS = 2.0
_REQUEST_SECONDS = 5.0


class TrainingPreempted(SystemExit):  # noqa: N818 - an exit, not an error
    """Raised when training was stopped by a signal, after its state had been saved.

    The exit code is 143 after SIGTERM and 130 after SIGINT, as a shell reports them.
    """


class PreemptionHandler(Callback):
    """Stops training, with its state saved, when a signal or a notice of preemption arrives.

    SIGTERM and SIGINT are served, and SIGUSR1 under Slurm; in a virtual machine of Google Cloud
    also what its metadata server announces. All processes stop after the same step, whichever of
    them was asked. A second signal ends all at once, unless a checkpoint is being written.
    """

    def __init__(self) -> None:
        self._count = 0
        self._closed = threading.Event()
        self._signals: SignalWatch | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Begins to watch signals, if this is the main thread, and notices."""
        self._trainer = trainer
        if trainer.processes.count == 1:
            self._signals = SignalWatch(stop_signals(), self.receive)
            self._signals.start()
        else:
            trainer.processes.on_signal = self.receive
        server = metadata_server()
        if server is not None:
            threading.Thread(
                target=self._watch_notices, args=(server,), name="PreemptionNotices", daemon=True
            ).start()

    def on_end(self, trainer: Trainer) -> None:
        """Restores the previous handlers."""
        self._closed.set()
        if self._signals is not None:
            self._signals.stop()
        trainer.processes.on_signal = trainer.processes.end_by_signal

    def receive(self, number: int) -> None:
        """Asks all processes to stop; at the second time, ends them.

        Args:
            number: Number of the signal.
        """
        self._count += 1
        name = signal.Signals(number).name
        trainer, processes = self._trainer, self._trainer.processes
        if self._count == 1:
            log.warning("%s: saving after this step; send it again to stop at once", name)
            self._stop(name, number)
        elif trainer.is_saving and self._count == 2:
            log.warning("%s: a checkpoint is being written: ending after it", name)
        else:
            processes.end_by_signal(number)

    def _stop(self, reason: str, number: int) -> None:
        """Asks all processes to stop, and says so if the state is not saved in time."""
        trainer = self._trainer
        where = f" at {trainer.processes.name}" if trainer.processes.count > 1 else ""
        trainer.processes.ask_to_stop(Stop(exit_code_of(number), reason + where))
        seconds = trainer.run.watchdog.save_seconds

        def tell() -> None:
            if not self._closed.wait(seconds):
                log.warning(
                    "the state is not saved yet %.0f s after %s (%s); if this process is killed "
                    "now, %s",
                    seconds,
                    reason,
                    trainer.activity.name,
                    trainer.processes.resume(),
                )

        threading.Thread(target=tell, name="SaveLimit", daemon=True).start()

    def _watch_notices(self, server: str) -> None:
        """Asks the metadata server until it announces that this host will be taken away."""
        failures = 0
        while not self._closed.wait(_POLL_SECONDS):
            try:
                notice = preemption_notice(server)
            except (OSError, ValueError) as error:
                failures += 1
                if failures == 3:
                    log.warning("no notices of preemption: %s does not answer (%s)", server, error)
                continue
            failures = 0
            if notice is not None:
                log.warning("%s: saving after this step", notice)
                self._stop(notice, signal.SIGTERM)
                return


def metadata_server() -> str | None:
    """Returns the host of Google Cloud's metadata server; None outside of its machines."""
    if host := os.environ.get("GCE_METADATA_HOST"):
        return host
    try:
        product = pathlib.Path("/sys/class/dmi/id/product_name").read_text()
    except OSError:
        return None
    return "metadata.google.internal" if product.startswith("Google") else None


def preemption_notice(server: str) -> str | None:
    """Asks the metadata server whether this host will be taken away.

    https://cloud.google.com/compute/docs/instances/create-use-preemptible describes ``preempted``,
    https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice the events of
    maintenance. A machine that migrates goes on.

    Args:
        server: Host of the metadata server.

    Returns:
        The notice, for messages; None if there is none.

    Raises:
        OSError: The server does not answer.
    """
    if _ask(server, "preempted") == "TRUE":
        return "this host is being preempted"
    event = _ask(server, "maintenance-event")
    if event.startswith("TERMINATE"):
        return f"this host ends for maintenance ({event})"
    return None


def _ask(server: str, key: str) -> str:
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/{key}", headers={"Metadata-Flavor": "Google"}
    )
    # Without the proxies of the environment: the server is the machine's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_REQUEST_SECONDS) as answer:
            return str(answer.read().decode().strip())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ""
        raise
