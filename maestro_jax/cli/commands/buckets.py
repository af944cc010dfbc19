"""`maestro buckets`: finds the buckets with the least padding for a mixture, as gin bindings."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError
from maestro_jax.tables import table

if TYPE_CHECKING:
    from maestro_jax.data.bucketing import FoundBucket

_SAMPLE_RATE = 16_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("mixture", metavar="MIXTURE", help="task or mixture of one stream")
    parser.add_argument(
        "--count",
        type=options.positive,
        default=4,
        metavar="N",
        help="number of shapes; default: 4",
    )
    parser.add_argument(
        "--batch_size",
        type=options.positive,
        default=64,
        metavar="N",
        help="examples per step in the longest shape, that of the stream itself; default: 64",
    )
    parser.add_argument(
        "--batch_multiple",
        type=options.positive,
        default=8,
        metavar="N",
        help="all batch sizes are multiples of N, the devices that share a batch; default: 8",
    )
    parser.add_argument(
        "--seconds",
        type=options.positive,
        default=32,
        metavar="S",
        help="length of audio in the shape of the stream; default: 32",
    )
    parser.add_argument(
        "--tokens",
        type=options.positive,
        default=256,
        metavar="N",
        help="length of texts and translations in the shape of the stream; default: 256",
    )
    parser.add_argument(
        "--characters_per_token",
        type=options.positive_number,
        default=1.0,
        metavar="X",
        help="characters per token to assume; default: 1",
    )
    options.add_data_dir(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    environment.prepare_process(tensorflow=True)
    from maestro_jax.batches import STREAM_FEATURES
    from maestro_jax.data import bucketing
    from maestro_jax.data.bucketing import mixture_lengths
    from maestro_jax.data.data_dir import data_root, data_scope
    from maestro_jax.data.stream_tasks import stream_of
    from maestro_jax.data.task_registry import get_task_or_mixture

    if arguments.batch_size % arguments.batch_multiple:
        raise UserError(
            f"--batch_size {arguments.batch_size} is not a multiple of "
            f"--batch_multiple {arguments.batch_multiple}."
        )
    with data_scope(data_root(arguments.data_dir)):
        stream = stream_of(get_task_or_mixture(arguments.mixture))
        if stream is None:
            raise UserError(
                f"{arguments.mixture!r} has the features of no stream; name one that has."
            )
        distribution = mixture_lengths(arguments.mixture)
    features = STREAM_FEATURES[stream]
    by = "audio" if "audio" in features else "text"
    longest = arguments.seconds * _SAMPLE_RATE if by == "audio" else arguments.tokens
    found = bucketing.find_buckets(
        distribution,
        count=arguments.count,
        longest=longest,
        batch_size=arguments.batch_size,
        batch_multiple=arguments.batch_multiple,
        by=by,
        multiple=1280 if by == "audio" else 8,
        text_tokens=arguments.tokens if "text" in features else 0,
        translation_tokens=arguments.tokens if "translation" in features else 0,
        characters_per_token=arguments.characters_per_token,
    )
    limits = [bucket.limit for bucket in found]
    paddings = {
        "with_buckets": bucketing.padding(distribution, limits, by),
        "one_shape": bucketing.padding(distribution, limits[-1:], by),
    }
    if arguments.json:
        buckets = [dataclasses.asdict(bucket) for bucket in found]
        print(json.dumps({"stream": stream, "buckets": buckets, "padding": paddings}, indent=2))
        return
    print(table([_row(bucket, by) for bucket in found]), end="\n\n")
    print(
        f"# {arguments.mixture}: {paddings['with_buckets']:.2f} times the length of the examples, "
        f"against {paddings['one_shape']:.2f} with one shape. The last shape is that of the stream."
    )
    print(_gin(stream, found[:-1], by, arguments.characters_per_token))


def _row(bucket: FoundBucket, by: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if by == "audio":
        row["up to, s"] = f"{bucket.limit / _SAMPLE_RATE:.2f}"
    else:
        row["up to, tokens"] = bucket.limit
    for name in ("text_tokens", "translation_tokens"):
        if getattr(bucket, name):
            row[name.replace("_", " ")] = getattr(bucket, name)
    return row | {
        "batch size": bucket.batch_size,
        "of the examples": f"{bucket.share:.0%}",
        "padding": f"{bucket.padding:.2f}",
    }


def _gin(stream: str, buckets: Sequence[FoundBucket], by: str, characters: float) -> str:
    """Returns the bindings as a gin file, like those of gin/data/buckets."""
    if not buckets:
        return "# One shape is enough."
    columns = {
        "batch_sizes": [bucket.batch_size for bucket in buckets],
        "audio_samples" if by == "audio" else "text_tokens": [bucket.limit for bucket in buckets],
    }
    for name in ("text_tokens", "translation_tokens"):
        if getattr(buckets[0], name):
            columns[name] = [getattr(bucket, name) for bucket in buckets]
    lines = [
        "from __gin__ import dynamic_registration",
        "",
        "from maestro_jax import batches",
        "",
        f"{stream}/batches.StreamConfig.buckets = @{stream}/batches.Buckets()",
        f"{stream}/batches.Buckets:",
        *(f"  {name} = {tuple(values)}" for name, values in columns.items()),
    ]
    if characters != 1:
        lines.append(f"  characters_per_token = {characters:g}")
    return "\n".join(lines)
