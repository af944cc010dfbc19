"""VoxPopuli's unlabelled speech: 400 thousand hours of European Parliament in 23 languages.

Two layouts are read, for each language the first of them if both are there:

- cut by the project's scripts: `unlabelled_data/<language>/<year>/<event>_<segment>.ogg`;
- raw, as downloaded: `unlabelled_v2.tsv.gz`, whose rows are pieces of
  `raw_audios/<language>/<year>/<event>.ogg`; `10k_sd` takes the pieces between changes of the
  speaker from `unlabelled_sd.tsv.gz`, where columns are separated by pipes.

An event is `20190114-0900-PLENARY_de`: date, time, kind, language.

Source: see `maestro_jax.data.corpora.voxpopuli`; which event belongs to which subset is what its
`get_unlabelled_data.py` says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, Published, choose
from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.utterance import Utterance
from maestro_jax.data.corpora.voxpopuli import find_table
from maestro_jax.errors import UserError

HOURS: dict[str, tuple[float, float]] = {
    "en": (4500, 24100), "de": (4500, 23200), "fr": (4500, 22800), "es": (4400, 21400),
    "pl": (4500, 21200), "it": (4600, 21900), "ro": (4500, 17900), "hu": (4400, 17700),
    "cs": (4500, 18700), "nl": (4500, 19000), "fi": (4400, 14200), "hr": (2700, 8100),
    "sk": (4400, 12100), "sl": (4400, 11300), "et": (4300, 10600), "lt": (4300, 14400),
    "pt": (4400, 17500), "bg": (4300, 17600), "el": (4400, 17700), "lv": (4400, 13100),
    "mt": (4400, 9100), "sv": (4500, 16300), "da": (4300, 13600),
}  # fmt: skip
"""Hours by language, of the subsets 100k and 400k, to a hundred."""
LANGUAGES: tuple[str, ...] = tuple(HOURS)

SUBSETS: tuple[str, ...] = ("10k", "100k", "400k")
"""From the smallest to the largest, each a part of the next."""
SPEAKERS = "10k_sd"
"""The smallest one, cut where the speaker changes."""

_EVENT = re.compile(r"\d{8}.*_[a-z]{2}")
_FIRST_DAY, _DAY_AFTER = 20190101, 20200801  # Of the smallest subset.
_ENDINGS = (".ogg", ".opus", ".flac", ".wav", ".mp3")


class VoxPopuliUnlabelled(Corpus):
    """Unlabelled speech; a config is a subset and a language, as `100k_de`.

    `--languages de` asks for the smallest subset that holds whatever is there of a language.
    """

    name = "voxpopuli_unlabelled"
    title = "VoxPopuli unlabelled: unlabelled_data, or unlabelled_v2.tsv.gz and raw_audios"
    splits = ("train",)

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Subsets of the languages that have audio; see `Corpus`."""
        there = [language for language in LANGUAGES if _audio_directory(source, language)]
        subsets: dict[str, str | None] = {}
        for name in languages or there:
            subset, _, language = name.rpartition("_")
            if subset and subset not in (*SUBSETS, SPEAKERS):
                raise UserError(
                    f"there is no subset {subset!r} of VoxPopuli's unlabelled speech; there are "
                    f"{', '.join((*SUBSETS, SPEAKERS))}, as in 100k_{language}."
                )
            choose(there, [language], source, "languages with unlabelled speech")
            subsets[name if subset else f"{_smallest_subset(source, language)}_{language}"] = None
        return list(subsets) or choose(there, [], source, "languages with unlabelled speech")

    def utterances(self, source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
        """By year and name, or in the order of the table; see `Corpus`."""
        subset, language = config.rsplit("_", 1)
        if subset != SPEAKERS and (source / "unlabelled_data" / language).is_dir():
            yield from _cut_utterances(source, subset, language, problems)
        else:
            yield from _raw_utterances(source, subset, language, problems)

    def published(self, source: Path, config: str) -> Mapping[str, Published]:
        """Hours, but for the smallest subset, of which only the sum over languages is published."""
        del source
        subset, language = config.rsplit("_", 1)
        if subset not in ("100k", "400k"):
            return {}
        return {"train": Published(hours=HOURS[language][subset == "400k"])}


def is_in(subset: str, event: str) -> bool:
    """Whether an event belongs to a subset.

    Args:
        subset: One of `SUBSETS`, or `SPEAKERS`.
        event: Its name, which begins with its date.
    """
    if subset == "400k":
        return True
    if "PLENARY" not in event:
        return False
    return subset == "100k" or _FIRST_DAY <= int(event[:8]) < _DAY_AFTER


def _audio_directory(source: Path, language: str) -> Path | None:
    """Where the audio of a language is, cut or raw."""
    for parent in ("unlabelled_data", "raw_audios"):
        if (directory := source / parent / language).is_dir():
            return directory
    return None


def _smallest_subset(source: Path, language: str) -> str:
    directory = _audio_directory(source, language)
    assert directory is not None, language
    cut = directory.parent.name == "unlabelled_data"
    names = {_event_of(path) if cut else path.stem for path in _audio_files(directory)}
    events = [name for name in names if _EVENT.fullmatch(name)]
    return next(subset for subset in SUBSETS if all(is_in(subset, event) for event in events))


def _audio_files(directory: Path) -> Iterator[Path]:
    """All audio of a language, by year and name."""
    for year in sorted(path for path in directory.iterdir() if path.is_dir()):
        yield from sorted(path for path in year.iterdir() if path.suffix in _ENDINGS)


def _event_of(path: Path) -> str:
    return path.stem.rpartition("_")[0]


def _cut_utterances(
    source: Path, subset: str, language: str, problems: Problems
) -> Iterator[Utterance]:
    directory = source / "unlabelled_data" / language
    for path in _audio_files(directory):
        event = _event_of(path)
        if not _EVENT.fullmatch(event):
            _add_no_event(problems, f"{path.parent.name}/{path.name}")
        elif is_in(subset, event):
            yield Utterance(id=path.stem, split="train", language=language, audio=str(path))


def _raw_utterances(
    source: Path, subset: str, language: str, problems: Problems
) -> Iterator[Utterance]:
    if subset == SPEAKERS:
        table, delimiter = "unlabelled_sd", "|"
        columns = ("session_id", "id_", "start_time", "end_time")
    else:
        table, delimiter = "unlabelled_v2", "\t"
        columns = ("event_id", "segment_no", "start", "end")
    path = find_table(source, table, "unlabelled_data", "annotations")
    if path is None:
        raise UserError(
            f"there is no {table}.tsv.gz in {source}; download it, for it says where the speech is."
        )
    rows = tables.rows(path, problems, delimiter=delimiter, required=columns, split="train")
    ending = f"_{language}"
    for place, row in rows:
        event, segment, begin, end = (row[column] for column in columns)
        if not _EVENT.fullmatch(event):
            _add_no_event(problems, place)
            continue
        # The table is one of all languages and subsets.
        if not (event.endswith(ending) and is_in(subset, event)):
            continue
        try:
            span = (float(begin), float(end))
        except ValueError:
            span = (math.nan, math.nan)
        if not (0 <= span[0] < span[1] < math.inf):
            detail = f"from {begin} to {end} seconds"
            problems.add("bad value", split="train", item=f"{event}_{segment}", detail=detail)
            continue
        yield Utterance(
            id=f"{event}_{segment}",
            split="train",
            language=language,
            audio=str(source / "raw_audios" / language / event[:4] / f"{event}.ogg"),
            spans=(span,),
        )


def _add_no_event(problems: Problems, item: str) -> None:
    problems.add("bad value", split="train", item=item, detail="no date and language")
