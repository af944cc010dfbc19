"""Where data sets, vocabularies and downloads live."""

from __future__ import annotations

import os
from pathlib import Path

from maestro_jax.errors import UserError

ENVIRONMENT_VARIABLE = "MAESTRO_DATA_DIR"


def data_root(data_dir: str | Path | None = None) -> Path:
    """The directory that holds all data.

    Args:
        data_dir: A directory named by the user, which wins over everything else.

    Returns:
        `data_dir`, else the directory that `$MAESTRO_DATA_DIR` names, else `~/maestro_data`. It may
        not exist yet.

    Raises:
        UserError: It is the address of a bucket.
    """
    chosen = data_dir or os.environ.get(ENVIRONMENT_VARIABLE) or "~/maestro_data"
    # As a Path, gs://bucket would silently become the directory gs:/bucket.
    if "://" in str(chosen):
        raise UserError(
            f"the data directory {chosen} is not on a disk: mount the bucket (gcsfuse), or copy it."
        )
    return Path(chosen).expanduser()
