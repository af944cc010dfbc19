"""A process that makes examples: `python -m maestro_jax.data.synthesis.worker`.

It reads pickled requests `(config, split, start, stop)` from standard input and writes pickled
answers to standard output: a list of examples, or the error.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys

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
        try:
            config, split, start, stop = pickle.load(requests)
        except EOFError:
            return
        try:
            from maestro_jax.data.synthesis.corpus import make_example

            answer: object = [make_example(config, split, index) for index in range(start, stop)]
        except UserError as error:
            answer = error
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    main()
