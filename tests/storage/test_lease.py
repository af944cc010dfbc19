"""Leases in a bucket, by the preconditions of the real client."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

_PROGRAM = """
    import sys
    from maestro_jax.files import as_path
    from maestro_jax.training.lease import LEASE_FILE, Lease, _BucketStorage

    directory = as_path(sys.argv[1])
    one, other = (_BucketStorage(directory / LEASE_FILE) for _ in range(2))
    # Two that start at the same moment, step by step.
    print(one.read(), other.read())
    print(one.create(b"one"), other.create(b"other"), other.read())
    # And two that find the lease of a dead run.
    print(one.read(), other.read())
    print(other.replace(b"other"), one.replace(b"one"), one.read())
    print(other.replace(b"beat"), one.replace(b"one"))
    print(one.read())
    other.remove()
    print(one.read())
    with Lease(directory) as lease:
        lease.acquire()
        lease.confirm()
        print(lease.taken_by, b'"beat": 1' in other.read())
    print(other.read())
"""


def test_one_of_two_gets_the_lease_of_a_bucket(emulator, bucket):
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_PROGRAM), f"gs://{bucket}/runs/a"],
        env={**os.environ, **emulator.environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        "None None",
        "True False b'one'",
        "b'one' b'one'",
        "True False b'other'",
        "True False",
        "b'beat'",
        "None",
        "None True",
        "None",
    ]
