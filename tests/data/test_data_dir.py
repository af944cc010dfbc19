"""The data root: argument, environment, home."""

from pathlib import Path

import pytest

from maestro_jax.data.data_dir import data_root, local_data_root
from maestro_jax.errors import UserError


def test_order_of_precedence(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MAESTRO_DATA_DIR", raising=False)
    assert data_root() == tmp_path / "maestro_data"
    monkeypatch.setenv("MAESTRO_DATA_DIR", "/from/environment")
    assert data_root() == Path("/from/environment")
    assert data_root("~/mine") == tmp_path / "mine"


def test_a_bucket_is_not_taken_for_a_directory(monkeypatch):
    monkeypatch.setenv("MAESTRO_DATA_DIR", "gs://bucket/data")
    assert str(data_root() / "vocabularies") == "gs://bucket/data/vocabularies"
    with pytest.raises(UserError, match="to write to gs://bucket/data is not on a disk: mount"):
        local_data_root()
