"""A storage server on loopback, with an empty bucket for each test."""

from __future__ import annotations

import itertools

import pytest
from google_cloud import StorageEmulator, storage_emulator

_numbers = itertools.count()


@pytest.fixture(scope="session")
def emulator(tmp_path_factory) -> StorageEmulator:
    """The server; commands find it by `emulator.environment`."""
    with storage_emulator(tmp_path_factory.mktemp("authority")) as running:
        yield running


@pytest.fixture
def bucket(emulator) -> str:
    """The name of an empty bucket."""
    name = f"bucket{next(_numbers)}"
    emulator.make_bucket(name)
    return name
