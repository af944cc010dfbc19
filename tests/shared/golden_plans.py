"""The plans whose memory and shardings are kept in `tests/planning/golden/`.

Writes them again: `python tests/shared/golden_plans.py [NAME ...]`, all of them if none is named.
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import sys
from typing import Any

from maestro_jax.cli.main import main

DIRECTORY = pathlib.Path(__file__).parents[1] / "planning" / "golden"

_FILES = ("runs/pretrain.gin", "objectives/maestro.gin", "data/voxpopuli.gin")
_PAPER = (
    *("--gin.AUDIO_SAMPLES=480000", "--gin.VOCAB_SIZE=4096", "--gin.TOKENS=256"),
    *("--gin.MAX_TEXT_FRAMES=400", "--steps", "500000"),
)

# Name: (model, further arguments).
PLANS: dict[str, tuple[str, tuple[str, ...]]] = {
    "small_v5e_2x2": (
        "models/tiny.gin",
        (
            *("--topology", "v5e:2x2", "--mesh", "2,2,1", "--steps", "1000"),
            *(
                "--gin.AUDIO_SAMPLES=64000",
                "--gin.VOCAB_SIZE=4096",
                "--gin.TOKENS=32",
                "--gin.MAX_TEXT_FRAMES=100",
            ),
            *("--gin.SPEECH_BATCH=16", "--gin.PAIRED_BATCH=8", "--gin.TEXT_BATCH=8"),
            *("--gin.ConformerStack.scan=True", "--gin.DROPOUT=0.0"),
        ),
    ),
    **{
        f"xl_{chip}_{shape}": (
            "models/xl.gin",
            (*_PAPER, "--topology", f"{chip}:{shape}", "--decoding_rows", "4"),
        )
        for chip, shape in (
            ("v5e", "16x16"),
            ("v4", "4x4x8"),
            ("v5p", "4x4x4"),
            ("v6e", "16x16"),
        )
    },
}


def plan(name: str) -> dict[str, Any]:
    """What `maestro plan --exact --json` prints: of the programs that a run compiles."""
    model, arguments = PLANS[name]
    files = [word for file in (_FILES[0], model, *_FILES[1:]) for word in ("--gin_file", file)]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = main(["plan", *files, *arguments, "--exact", "--json"])
    if status:
        raise RuntimeError(f"maestro plan of {name} ended with {status}")
    return json.loads(output.getvalue())


def kept(plan: dict[str, Any]) -> dict[str, Any]:
    """What a golden file holds of a plan."""
    parts = ("arguments", "results", "temporaries", "code", "capacity", "used")
    return {
        "topology": plan["topology"],
        "mesh": plan["mesh"],
        "parameters": plan["parameters"],
        "model_flops": plan["roofline"]["model_flops"],
        "memory_bytes": {
            program: {part: plan[program]["memory"][part] for part in parts}
            for program in ("training", "decoding")
            if plan[program] is not None
        },
        "shardings": plan["shardings"],
    }


if __name__ == "__main__":
    for chosen in sys.argv[1:] or PLANS:
        text = json.dumps(kept(plan(chosen)), indent=1) + "\n"
        DIRECTORY.mkdir(exist_ok=True)
        (DIRECTORY / f"{chosen}.json").write_text(text)
        print(f"wrote {DIRECTORY / chosen}.json")
