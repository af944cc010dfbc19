"""Lets the tests here import what stands beside them, however pytest was started."""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
