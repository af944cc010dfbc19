"""A process that calls functions for another one: `python -m maestro_jax.data.process_worker`.

It reads pickled requests `(function, arguments)` from standard input and writes pickled answers to
standard output: `("answer", value)`, `("user error", error)` or `("error", traceback)`.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback

from maestro_jax.errors import UserError


def main() -> None:
    """Answers requests until standard input ends."""
    # An interrupt from the keyboard reaches the whole group; the parent process ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = sys.stdin.buffer
    # Answers have a descriptor of their own: whatever a library prints goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    while True:
        answer: tuple[str, object]
        try:
            function, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = "answer", function(*arguments)
        except UserError as error:
            answer = "user error", error
        except Exception:  # noqa: BLE001 - the other process raises it.
            answer = "error", traceback.format_exc()
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    main()
