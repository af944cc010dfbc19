"""`maestro quickstart`: looks at a directory, plans, pretrains, fine-tunes and evaluates.

Everything is in the output directory, so that a second call continues where the first one ended:

| path | content |
|---|---|
| `quickstart.json` | figures, choices, seconds used, stages that are done |
| `bad_recordings.tsv` | what is wrong with which recording, and whether it is used |
| `manifests/`, `data/` | the splits, and the records made of them |
| `gin/` | a gin file per stage |
| `pretrained/`, `recognition/`, `translation/` | model directories, each with `report.html` |
| `quickstart.md` | the data, the choices and the scores on one page |
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import logging
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from maestro_jax import provenance
from maestro_jax.data.corpora.speech_directory import (
    Entry,
    SpeechDirectory,
    read_speech_directory,
)
from maestro_jax.data.corpora.text_files import MAX_CHARACTERS
from maestro_jax.data.data_dir import data_scope
from maestro_jax.errors import UserError
from maestro_jax.evaluation.run_evaluation import RunScores
from maestro_jax.experiments.quickstart import rules
from maestro_jax.experiments.quickstart.budget import Pace, in_words
from maestro_jax.experiments.quickstart.figures import Figures, figures_of, likely_language
from maestro_jax.experiments.quickstart.gin_files import (
    StagePlan,
    StreamPlan,
    audio_of,
    gin_text,
    single_shape,
    tokens_of,
)
from maestro_jax.experiments.quickstart.prepared import (
    Tasks,
    prepare_all,
    write_lm_texts,
    write_manifests,
)
from maestro_jax.experiments.quickstart.scoring import TestSets, best_step, score_model
from maestro_jax.experiments.quickstart.splits import Splits, split_utterances
from maestro_jax.experiments.quickstart.survey import (
    NOTHING_BAD,
    Heard,
    Survey,
    pieces,
    survey,
)
from maestro_jax.files import local_directory, write_atomically
from maestro_jax.gin_utils import gin_config, run_record
from maestro_jax.provenance import command_line
from maestro_jax.reports.html_report import ReportWriter, update_report
from maestro_jax.tables import table
from maestro_jax.text.characters import without_surrogates
from maestro_jax.text.languages import base_language, normalize_language
from maestro_jax.training.trainer import train

log = logging.getLogger(__name__)

DEFAULT_BUDGET = 3600.0
"""Seconds, where no budget is given."""
DEFAULT_TARGET = "en"
"""Language of translations, where none is named."""
_RECORD, _SURVEY, _BAD = "quickstart.json", "survey.jsonl", "bad_recordings.tsv"
_DIRECTORIES = {"pretrain": "pretrained", "recognise": "recognition", "translate": "translation"}
_DOING = {
    "pretrain": "pretraining with MAESTRO",
    "recognise": "fine-tuning for speech recognition",
    "translate": "fine-tuning for speech translation",
}
_LEAST_STEPS = 20
_READING = 0.006
"""Seconds of a core per second of audio that is decoded and written."""
_LEAST_SECONDS = 15.0
"""Seconds that a stage gets even if the budget is used up, so that there is always a model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for.

    Attributes:
        source: Directory of the recordings.
        output: Directory of everything that is made.
        budget: Seconds for all of it.
        language: Code of the language of entries that name none; empty to guess it.
        target_language: Code of the language of translations that name none; `DEFAULT_TARGET` if
            it is empty.
        explain: Whether to print every choice with its rule.
        plan_only: Whether to stop once the gin files are written.
        workers: Number of processes that read audio; None for one per core.
    """

    source: Path
    output: Path
    budget: float = DEFAULT_BUDGET
    language: str = ""
    target_language: str = ""
    explain: bool = False
    plan_only: bool = False
    workers: int | None = None


def run_quickstart(request: Request) -> None:
    """Carries out a request, or continues it."""
    Quickstart(request).run()


class Quickstart:
    """Carries out a request; see this module.

    Args:
        request: What is asked for.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.source = local_directory(request.source, "directory of the recordings,").absolute()
        self.output = local_directory(request.output, "output directory").absolute()
        self.data = self.output / "data"
        self._began = time.monotonic()
        self._state: dict[str, Any] = {
            "seconds": 0.0,
            "slowness": 1.0,
            "done": [],
            "steps": {},
            "planned": {},
            "gin": {},
        }
        self._used_before = 0.0

    # ------------------------------------------------------------------------------------ parts

    def run(self) -> None:
        """Looks, plans, trains and evaluates."""
        self._load()
        if "figures" not in self._state:
            self._look()
        figures = Figures(**_figures_from_json(self._state["figures"]))
        recipe = self._recipe(figures)
        print(f"\n{figures.contents_in_words()}\n\n{table(figures.rows())}\n")
        print(figures.split_in_words())
        bad = self._state["bad"]
        listed = f"; {self.output / _BAD} names each" * (bad != NOTHING_BAD)
        print(f"{bad[:1].upper()}{bad[1:]}{listed}.")
        if figures.target_language and not figures.translated.get("train"):
            print("No recording of the training set is translated: there will be no translator.")
        if self.request.explain:
            print(f"\n{explanation(recipe)}\n")
        tasks, vocab_size = self._prepare(figures, recipe)
        for (kind, file), count in tasks.left_out.items():
            print(f"left out when the data were prepared: {count} {kind}; {file} names each.")
        if figures.utterances.get("test"):
            for name in (name for name, splits in tasks.splits.items() if "test" not in splits):
                print(f"{name} has too few recordings to hold any out, and is not scored.")
        stages = self._stages(figures, recipe, tasks, vocab_size)
        self._print_plan(stages, recipe)
        if self.request.plan_only:
            return
        for name in stages:
            self._train(name, stages, recipe)
        self._evaluate([name for name in stages if name != "pretrain"], recipe, figures, tasks)

    def _look(self) -> None:
        """Reads the directory, listens to it, divides it, and writes its manifests."""
        target_language = self.request.target_language or DEFAULT_TARGET
        directory = read_speech_directory(self.source, target_language)
        print(f"looking at {self.source}, whose layout is {directory.layout}", flush=True)
        for note in directory.notes:
            print(f"  {note}")
        for issue in directory.issues[:3]:
            print(f"  {issue.item}: {issue.kind}, {issue.detail}")
        if len(directory.issues) > 3:
            print(f"  and {len(directory.issues) - 3} more, in {self.output / _BAD}")
        entries, target = self._with_languages(directory)
        self.output.mkdir(parents=True, exist_ok=True)
        from maestro_jax.data.processes import Processes

        with Processes(self.request.workers) as processes:
            heard = survey(entries, self.output / _SURVEY, processes)
        self._write_bad(directory, heard)
        utterances, unpaired = [], []
        for one in heard.heard:
            if one.entry.audio and (one.entry.text or one.entry.translation):
                utterances.append(one)
            else:
                unpaired += pieces(one)
        splits = split_by_language(utterances) if utterances else None
        if splits is None or "train" not in splits.of:
            raise UserError(self._nothing_to_train_on(directory, heard, utterances))
        for name in ("validation", "test"):
            lost = sum(each.split == name and bool(each.audio) for each in directory.entries)
            if lost and name not in {one.entry.split for one in utterances}:
                log.warning(
                    "none of the %d recordings of the %s set can be used: others are held out",
                    lost,
                    name,
                )
        figures = figures_of(utterances, splits, unpaired, target)
        write_manifests(
            self.output / "manifests",
            [
                *((one.entry, split) for one, split in zip(utterances, splits.of, strict=True)),
                *((one.entry, "train") for one in unpaired),
            ],
            max_characters=min(max(figures.longest_line, 1), MAX_CHARACTERS),
        )
        self._state |= {
            "source": str(self.source),
            "language": self.request.language,
            "target_language": self.request.target_language,
            "content": content_of(directory),
            "layout": directory.layout,
            "bad": bad_summary(directory, heard),
            "figures": dataclasses.asdict(figures),
        }
        self._save()

    def _with_languages(self, directory: SpeechDirectory) -> tuple[list[Entry], str]:
        """Gives each entry the code of its language; returns the language of translations too."""
        entries = list(directory.entries)
        named = self.request.language
        unnamed = [entry for entry in entries if not entry.language]
        if named and not unnamed:
            log.warning("--language %s is not used: every line names its language", named)
        if unnamed and not named:
            named = self._likely(entries, unnamed)
        resolved = []
        for entry in entries:
            try:
                language = base_language(normalize_language(entry.language or named))
            except UserError as error:
                raise UserError(
                    f"{entry.id} in {self.source}: {error} --language CODE is for lines that name "
                    "none."
                ) from None
            resolved.append(dataclasses.replace(entry, language=language))
        targets = {
            normalize_language(one.target_language) for one in entries if one.target_language
        }
        if len(targets) > 1:
            raise UserError(
                f"{self.source} has translations into {', '.join(sorted(targets))}; keep those "
                "into one language."
            )
        target = self.request.target_language or DEFAULT_TARGET
        target = targets.pop() if targets else normalize_language(target)
        if not self.request.target_language and any(
            one.translation and not one.target_language and one.language == base_language(target)
            for one in resolved
        ):
            raise UserError(
                f"{self.source} has translations of {target} recordings, and does not say into "
                "which language; name it: --target_language CODE."
            )
        return resolved, target

    def _likely(self, entries: Sequence[Entry], unnamed: Sequence[Entry]) -> str:
        """Returns the language of entries that name none: that of the others, or by letters."""
        known = collections.Counter(entry.language for entry in entries if entry.language)
        texts = [entry.text for entry in unnamed if entry.text]
        named = likely_language(texts)
        if known and named not in known:
            named = known.most_common(1)[0][0]
        if texts and len(known) != 1:
            log.warning(
                "%d lines name no language: %s is assumed, by the letters; --language CODE says "
                "another",
                len(unnamed),
                named,
            )
        return named

    def _nothing_to_train_on(
        self, directory: SpeechDirectory, heard: Survey, utterances: Sequence[Heard]
    ) -> str:
        """Says why there is nothing to train on, and what would help."""
        if utterances:
            counts = collections.Counter(one.entry.split for one in utterances)
            listed = " and ".join(f"{count} of the {name} set" for name, count in counts.items())
            what = f"no usable recording to train on, only {listed}"
        else:
            what = "no usable recording with a transcript"
        reasons = []
        if left_out := [one for one in heard.bad if not one.kept]:
            first = left_out[0]
            detail = first.detail if len(first.detail) <= 160 else f"{first.detail[:160]} ..."
            reasons.append(f"{heard.bad_summary()}; the first: {first.kind}, {detail}")
        elif directory.issues:
            reasons += [f"{one.item}: {one.detail}" for one in directory.issues[:1]]
        elif not utterances:
            unpaired = sum(bool(entry.audio) for entry in directory.entries)
            reasons.append(
                f"there are {unpaired} recordings without one: list both in a manifest, or put "
                "a.txt beside a.wav, not in another folder"
            )
        reason = f" ({reasons[0].rstrip('.')})" if reasons else ""
        return f"{self.source} has {what}{reason}; {self.output / _BAD} names all."

    def _write_bad(self, directory: SpeechDirectory, heard: Survey) -> None:
        """Writes `bad_recordings.tsv`: bad recordings, and bad lines of tables."""
        lines = heard.bad_table()
        for issue in directory.issues:
            row = (issue.kind, "no", issue.split, issue.item, "", issue.detail)
            lines += "\t".join(" ".join(cell.split()) for cell in row) + "\n"
        content = lines.encode("utf-8", "backslashreplace")
        write_atomically(self.output / _BAD, content)

    def _recipe(self, figures: Figures) -> rules.Recipe:
        """Applies the rules to what is left of the budget; once chosen, sizes stay as they are."""
        chosen = self._state.get("chosen_for")
        if chosen is None:
            device = jax.devices()[0].platform
            count = len(os.sched_getaffinity(0)) if device == "cpu" else jax.device_count()
            # Preparing reads the audio a second time, on every core.
            reading = _READING * 3600 * figures.speech_hours / count
            seconds = max(self.left - reading, 4 * _LEAST_SECONDS)
            chosen = self._state["chosen_for"] = {
                "seconds": seconds,
                "kind": "cpu" if device == "cpu" else device,
                "count": count,
            }
            self._save()
        device = rules.Device(kind=chosen["kind"], count=chosen["count"])
        return rules.choose(figures, chosen["seconds"], device)

    def _prepare(self, figures: Figures, recipe: rules.Recipe) -> tuple[Tasks, int]:
        """Writes the records and trains the vocabulary; returns tasks and size of the latter."""
        from maestro_jax.data.processes import Processes
        from maestro_jax.data.vocabulary_training import VocabularyRequest, train_vocabulary

        with Processes(self.request.workers) as processes:
            tasks = prepare_all(
                self.output / "manifests",
                self.data,
                figures.languages,
                figures.target_language,
                processes,
            )
        request = VocabularyRequest(
            tasks=(*tasks.paired, *tasks.text, *tasks.st),
            kind=recipe.vocabulary,
            size=recipe.vocabulary_size,
            byte_fallback=recipe.byte_fallback,
            coverage=0.9995 if recipe.byte_fallback else 1.0,
        )
        trained = train_vocabulary("quickstart", request, data_dir=self.data)
        return tasks, trained.size

    def _stages(
        self, figures: Figures, recipe: rules.Recipe, tasks: Tasks, vocab_size: int
    ) -> dict[str, StagePlan]:
        """Plans the stages, and writes their gin files."""
        names = ["pretrain"]
        names += ["recognise"] * bool(tasks.paired) + ["translate"] * bool(tasks.st)
        stages: dict[str, StagePlan] = {}
        for position, name in enumerate(names):
            streams = self._streams(name, figures, recipe, tasks)
            seconds = getattr(recipe.shares, _SHARE[name])
            steps = self._state["steps"].get(name)
            steps = steps or self._expected_steps(name, streams, recipe, seconds)
            stages[name] = StagePlan(
                name=name,
                streams=streams,
                steps=steps,
                planned=self._state["planned"].get(name, 0),
                late_start=round(recipe.text_starts * steps) if name == "pretrain" else 0,
                init_from=self._model_dir(names[position - 1]) if position else None,
                vocab_size=vocab_size,
                command=self._command(name),
                has_validation=tasks.mixture(_STREAM[name], "validation") is not None,
            )
            self._write_gin(stages[name], recipe)
        return stages

    def _streams(
        self, stage: str, figures: Figures, recipe: rules.Recipe, tasks: Tasks
    ) -> dict[str, StreamPlan]:
        """Chooses the shapes of the batches of a stage."""
        per_token = recipe.characters_per_token
        if stage == "recognise":
            return {"paired": self._bucketed("paired", recipe, tasks, figures, recipe.buckets)}
        if stage == "translate":
            return {"st": self._bucketed("st", recipe, tasks, figures, recipe.buckets)}
        streams: dict[str, StreamPlan] = {}
        batch = recipe.batch_seconds
        for name in recipe.streams:
            if not tasks.of(name):
                continue
            if name == "speech":
                # Longer recordings are cropped.
                seconds = min(1.25 * figures.median_seconds, recipe.seconds)
                seconds = max(round(seconds / 0.08), 10) * 0.08
                rows = round(max(0.5 * batch, 16.0) / seconds)
                shape = single_shape(seconds=seconds, batch=rows)
                streams[name] = StreamPlan(tasks=tasks.speech, shapes=(shape,))
            elif name == "text":
                characters = min(max(figures.longest_text, figures.longest_line), MAX_CHARACTERS)
                # Lines that are longer than transcripts would take longer to say, too.
                longer = characters / max(min(figures.longest_text, characters), 1)
                shape = single_shape(
                    batch=round(0.5 * batch / max(figures.median_seconds, 1.0) / longer),
                    tokens=tokens_of(characters, per_token),
                )
                streams[name] = StreamPlan(tasks=tasks.text, shapes=(shape,))
            else:
                streams[name] = self._bucketed(
                    name, recipe, tasks, figures, recipe.pretrain_buckets if name != "st" else 1
                )
        return streams

    def _bucketed(
        self, stream: str, recipe: rules.Recipe, tasks: Tasks, figures: Figures, count: int
    ) -> StreamPlan:
        """Finds the buckets of a stream of transcribed or translated speech."""
        from maestro_jax.data.bucketing import find_buckets, mixture_lengths

        mixture: Any = tasks.mixture(stream)
        translated = tokens_of(max(figures.longest_translation, 1), recipe.characters_per_token)
        with data_scope(self.data):
            shapes = find_buckets(
                mixture_lengths(mixture),
                count=count,
                longest=round(recipe.seconds * 16_000),
                batch_size=max(round(recipe.batch_seconds / recipe.seconds), 1),
                text_tokens=tokens_of(figures.longest_text, recipe.characters_per_token)
                if stream == "paired"
                else 0,
                translation_tokens=translated if stream == "st" else 0,
                characters_per_token=recipe.characters_per_token,
            )
        return StreamPlan(
            tasks=tasks.of(stream),
            shapes=tuple(shapes),
            characters_per_token=recipe.characters_per_token,
        )

    # ---------------------------------------------------------------------------------- training

    def _expected_steps(
        self, stage: str, streams: Mapping[str, StreamPlan], recipe: rules.Recipe, seconds: float
    ) -> int:
        """Returns the number of steps that fits some seconds, before the stage is measured."""
        shapes = sum(len(each.shapes) for each in streams.values())
        compiling = rules.COMPILE_SECONDS
        if stage == "pretrain":
            compiling = rules.PRETRAINING_COMPILE_SECONDS
        left = max(seconds - compiling * shapes, 0.2 * seconds)
        per_step = self._expected_step(stage, streams, recipe) * self._state["slowness"]
        # Rather a few steps too few than a run that has to be restarted.
        return max(int(0.92 * left / per_step), _LEAST_STEPS)

    def _expected_step(
        self, stage: str, streams: Mapping[str, StreamPlan], recipe: rules.Recipe
    ) -> float:
        """Returns the seconds of a step on a machine of the speed that the rules assume."""
        device = rules.Device(
            kind=self._state["chosen_for"]["kind"], count=self._state["chosen_for"]["count"]
        )
        audio = sum(audio_of(each.shapes) for name, each in streams.items() if name != "text")
        cost = rules.PRETRAINING_COST if stage == "pretrain" else 1.0
        return max(audio, 1.0) * cost * recipe.size.cost / device.speed

    def _train(self, name: str, stages: dict[str, StagePlan], recipe: rules.Recipe) -> None:
        """Trains a stage, or continues it, within its time."""
        if name in self._state["done"]:
            print(f"\n{_DOING[name]}: done before, in {self._model_dir(name)}")
            return
        allotted = self._allotted(name, list(stages), recipe)
        stage = stages[name]
        if name not in self._state["steps"]:
            # The stages before have told how fast this machine is.
            steps = self._expected_steps(name, stage.streams, recipe, allotted)
            late = round(recipe.text_starts * steps) if stage.late_start else 0
            stage = stages[name] = dataclasses.replace(stage, steps=steps, late_start=late)
            self._state["steps"][name] = steps
            self._write_gin(stage, recipe)
        model_dir = self._model_dir(name)
        print(
            f"\n[{in_words(self.used)} of {in_words(self.request.budget)}] {_DOING[name]}: "
            f"{stage.steps} steps planned, {in_words(allotted)} for it",
            flush=True,
        )
        ends = time.monotonic() + allotted
        allow_changes = False
        for _ in range(8):
            run = gin_config.parse_and_build([str(self._gin(name))])
            record = run_record.RunRecord(gin_config.record_texts(), command_line())
            pace = Pace(
                ends - time.monotonic(),
                correct=not self._is_edited(name),
                later_cost=functools.partial(later_cost, stage),
                on_progress=self._on_progress,
            )
            train(
                run,
                model_dir,
                self.data,
                callbacks=[record, pace, ReportWriter()],
                allow_changes=allow_changes,
            )
            if pace.seconds_per_step:
                expected = self._expected_step(name, stage.streams, recipe)
                self._state["slowness"] = pace.seconds_per_step / expected
            if pace.new_steps is None:
                break
            steps = pace.new_steps
            late = stage.late_start
            if late > pace.stopped_at:
                late = round(recipe.text_starts * steps)
            planned = stage.planned or stage.steps
            stage = dataclasses.replace(stage, steps=steps, planned=planned, late_start=late)
            stages[name] = stage
            self._state["steps"][name], self._state["planned"][name] = steps, planned
            self._write_gin(stage, recipe)
            allow_changes = True
        update_report(model_dir, stage.steps)
        self._state["done"].append(name)
        self._save()

    def _allotted(self, name: str, names: Sequence[str], recipe: rules.Recipe) -> float:
        """Returns the seconds of a stage: its share of what is left among those still to come."""
        coming = [one for one in names[names.index(name) :] if one not in self._state["done"]]
        shares = {one: getattr(recipe.shares, _SHARE[one]) for one in coming}
        total = sum(shares.values()) + recipe.shares.evaluation
        return max(self.left * shares[name] / max(total, 1e-9), _LEAST_SECONDS)

    def _on_progress(self, step: int, steps: int, left: float) -> None:
        self._save()
        log.info(
            "step %d of %d; %s left of this stage, %s left of the budget",
            step,
            steps,
            in_words(left),
            in_words(self.left),
        )

    # -------------------------------------------------------------------------------- evaluation

    def _evaluate(
        self, names: Sequence[str], recipe: rules.Recipe, figures: Figures, tasks: Tasks
    ) -> None:
        """Tunes the searches on the validation sets, scores the test sets, writes the page."""
        files = write_lm_texts(self.output / "manifests", self.output / "texts")
        scores: dict[str, dict[str, RunScores]] = {}
        for position, name in enumerate(names):
            print(f"\n[{in_words(self.used)} of {in_words(self.request.budget)}] testing", end="")
            print(f" the {'recogniser' if name == 'recognise' else 'translator'}", flush=True)
            seconds = max(self.left, 30.0) / (len(names) - position)
            run = gin_config.load_run(self._model_dir(name))
            scores[name] = score_model(
                run,
                self._model_dir(name),
                self.data,
                TestSets.of(tasks, _STREAM[name]),
                metric="cer" if name == "recognise" else "bleu",
                lm_text=files.get(name),
                is_char=recipe.vocabulary == "char",
                seconds=seconds,
            )
        page = self._page(scores, recipe, figures)
        write_atomically(self.output / "quickstart.md", page.encode())
        self._state["scores"] = {
            name: {search: one.as_dict() for search, one in each.items()}
            for name, each in scores.items()
        }
        self._save()
        print()
        for each in scores.values():
            for search, one in each.items():
                print(f"{search}\n{one.text()}")
        print(f"Page:  {self.output / 'quickstart.md'}")
        for name in names:
            print(f"Model: {self._model_dir(name)}, report {self._model_dir(name) / 'report.html'}")
        print(f"Done in {in_words(self.used)}. To transcribe a file:")
        for name in names:
            target = f" --target_language {figures.target_language}" * (name == "translate")
            best = "/best" * (best_step(self._model_dir(name)) is not None)
            model = shlex.quote(f"{self._model_dir(name)}{best}")
            print(f"  maestro transcribe {model} FILE{target}")

    def _page(
        self, scores: Mapping[str, Mapping[str, RunScores]], recipe: rules.Recipe, figures: Figures
    ) -> str:
        """Returns the page: data, choices, scores, commands."""
        bad = self._state["bad"]
        parts = [
            f"# {self.source.name}: a quickstart",
            f"`{self.source}`, layout {self._state['layout']}.",
            "## Data",
            figures.contents_in_words(),
            table(figures.rows(), "pipe"),
            f"{figures.split_in_words()} {bad[:1].upper()}{bad[1:]}.",
            "## Scores",
        ]
        for name, each in scores.items():
            if not each:
                parts.append(f"{_DOING[name].capitalize()}: no recordings are held out to score.")
            for search, one in each.items():
                parts += [f"### {_DOING[name].capitalize()}: {search.lower()}", "```"]
                parts += [one.text().rstrip(), "```"]
        parts += ["## Choices", table(choice_rows(recipe), "pipe"), "## Runs"]
        parts += [f"    {self._command(name)}" for name in self._state["done"]]
        return "\n\n".join(parts) + "\n"

    # ------------------------------------------------------------------------------------- state

    @property
    def used(self) -> float:
        """Returns the seconds used so far, over all calls."""
        return self._used_before + time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Returns the seconds left of the budget."""
        return self.request.budget - self.used

    def _model_dir(self, stage: str) -> Path:
        return self.output / _DIRECTORIES[stage]

    def _command(self, stage: str) -> str:
        """Returns the command that runs the gin file of a stage."""
        options = {
            "--gin_file": self._gin(stage),
            "--model_dir": self._model_dir(stage),
            "--data_dir": self.data,
        }
        words = [str(word) for option in options.items() for word in option]
        return shlex.join(["maestro", "train", *words])

    def _gin(self, stage: str) -> Path:
        return self.output / "gin" / f"{_GIN_NAMES[stage]}.gin"

    def _is_edited(self, stage: str) -> bool:
        """Returns whether the user has changed the gin file of a stage."""
        path = self._gin(stage)
        written = self._state["gin"].get(stage)
        return path.is_file() and provenance.digest(path.read_text()) != written

    def _write_gin(self, stage: StagePlan, recipe: rules.Recipe) -> None:
        """Writes the gin file of a stage, unless the user has changed it."""
        path = self._gin(stage.name)
        if stage.name in self._state["gin"] and self._is_edited(stage.name):
            log.info("%s has been edited and stays as it is", path)
            return
        text = gin_text(stage, recipe)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
        self._state["gin"][stage.name] = provenance.digest(text)
        self._save()

    def _print_plan(self, stages: Mapping[str, StagePlan], recipe: rules.Recipe) -> None:
        """Prints what will be done, and when."""
        rows: list[dict[str, object]] = [
            {"part": "looking and preparing", "time": in_words(self.used), "steps": ""}
        ]
        names = list(stages)
        for name in names:
            done = name in self._state["done"]
            seconds = 0.0 if done else self._allotted_in_plan(name, names, recipe)
            rows.append(
                {
                    "part": _DOING[name],
                    "time": "done" if done else in_words(seconds),
                    "steps": f"about {stages[name].steps}",
                }
            )
        total = self._coming(names, recipe)
        evaluation = self.left * recipe.shares.evaluation / total
        rows += [
            {"part": "tuning the search and testing", "time": in_words(evaluation), "steps": ""},
            {"part": "all", "time": in_words(self.request.budget), "steps": ""},
        ]
        print(f"\n{table(rows)}\n", flush=True)
        coming = [name for name in names if name not in self._state["done"]]
        compiling = sum(
            rules.PRETRAINING_COMPILE_SECONDS if name == "pretrain" else rules.COMPILE_SECONDS
            for name in coming
        )
        if coming and self.left < 4 * compiling:
            print(
                f"{in_words(self.request.budget)} is short: compiling alone takes about "
                f"{in_words(compiling)}. Give a longer --budget for a model to use.\n",
                flush=True,
            )

    def _coming(self, names: Sequence[str], recipe: rules.Recipe) -> float:
        shares = recipe.shares
        coming = [getattr(shares, _SHARE[one]) for one in names if one not in self._state["done"]]
        return sum(coming) + shares.evaluation

    def _allotted_in_plan(self, name: str, names: Sequence[str], recipe: rules.Recipe) -> float:
        return self.left * getattr(recipe.shares, _SHARE[name]) / self._coming(names, recipe)

    def _load(self) -> None:
        """Reads the record of an earlier call, if there is one.

        Raises:
            UserError: A language is unknown; the output directory has something else, or is of
                another request or of data that have changed.
        """
        for code in filter(None, (self.request.language, self.request.target_language)):
            normalize_language(code)
        for path in (self.source, self.output):
            if without_surrogates(str(path)) != str(path):
                raise UserError(f"the name {ascii(str(path))} is not UTF-8; give it another.")
        elsewhere = "give another --output_dir"
        if self.output.resolve() == self.source.resolve():
            raise UserError(f"{self.output} is the directory of the recordings; {elsewhere}.")
        if self.output.exists() and not self.output.is_dir():
            raise UserError(f"{self.output} is a file; {elsewhere}.")
        path = self.output / _RECORD
        if not path.is_file():
            known = any((self.output / name).exists() for name in (_SURVEY, _BAD))
            if self.output.is_dir() and any(self.output.iterdir()) and not known:
                raise UserError(f"{self.output} has other files; {elsewhere}.")
            return
        try:
            self._state |= json.loads(path.read_text(encoding="utf-8"))
            if "figures" in self._state:
                Figures(**_figures_from_json(self._state["figures"]))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path} is damaged or of another version ({error}); {elsewhere}."
            ) from error
        self._used_before = self._state["seconds"]
        asked = {
            "source": str(self.source),
            "language": self.request.language,
            "target_language": self.request.target_language,
        }
        for name, value in asked.items():
            before = self._state.get(name, value)
            if before != value:
                raise UserError(
                    f"{self.output} was made with {name} {before or 'unnamed'}, and not "
                    f"{value or 'unnamed'}; {elsewhere}."
                )
        # Without the recordings, which are in the records, it can be continued, too.
        if "content" in self._state and self.source.is_dir():
            target_language = self.request.target_language or DEFAULT_TARGET
            content = content_of(read_speech_directory(self.source, target_language))
            if content != self._state["content"]:
                raise UserError(
                    f"{self.source} has changed since {self.output} was begun; {elsewhere}, or "
                    "undo the change."
                )
        print(f"continuing in {self.output}, after {in_words(self._used_before)}")

    def _save(self) -> None:
        self._state["seconds"] = self.used
        content = json.dumps(self._state, indent=2, ensure_ascii=False, default=str) + "\n"
        write_atomically(self.output / _RECORD, content.encode())


_STREAM = {"pretrain": "paired", "recognise": "paired", "translate": "st"}
_SHARE = {"pretrain": "pretrain", "recognise": "recognition", "translate": "translation"}
_GIN_NAMES = {"pretrain": "pretrain", "recognise": "finetune", "translate": "translate"}


def later_cost(stage: StagePlan, step: int) -> float:
    """Returns the mean time of the steps after a step beside that of the steps up to it."""
    late = stage.late_start
    if not late or step >= late or stage.steps <= step:
        return 1.0
    early = sum(audio_of(one.shapes) for name, one in stage.streams.items() if name in _EARLY)
    further = sum(
        audio_of(one.shapes) if name == "st" else 0.5 * early
        for name, one in stage.streams.items()
        if name not in _EARLY
    )
    after = (stage.steps - late) / (stage.steps - step)
    return 1.0 + after * further / max(early, 1e-9)


_EARLY = ("speech", "paired")


def split_by_language(utterances: Sequence[Heard]) -> Splits:
    """Divides the utterances of each language by themselves."""
    languages = dict.fromkeys(each.entry.language for each in utterances)
    if len(languages) == 1:
        return split_utterances(utterances)
    of = [""] * len(utterances)
    parts = []
    for language in languages:
        indices = [i for i, each in enumerate(utterances) if each.entry.language == language]
        part = split_utterances([utterances[index] for index in indices])
        parts.append(part)
        for index, split in zip(indices, part.of, strict=True):
            of[index] = split
    known = [part.speakers_apart for part in parts]
    return Splits(
        of=tuple(of),
        by=parts[0].by,
        speakers_apart=None if None in known else all(known),
        sentences_shared=max(part.sentences_shared for part in parts),
    )


def bad_summary(directory: SpeechDirectory, heard: Survey) -> str:
    """Returns the numbers of bad recordings and of lines that cannot be used, in one line."""
    summary = heard.bad_summary()
    if directory.issues:
        kinds = collections.Counter(issue.kind for issue in directory.issues)
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        count = len(directory.issues)
        what = "line or file" if count == 1 else "lines or files"
        summary += f"; {count} {what} that cannot be used: {counts}"
    return summary


def content_of(directory: SpeechDirectory) -> str:
    """Returns what tells the content of a directory from what it is after a change.

    The times of files are left out: copies have others.
    """
    sizes = {
        entry.audio: os.path.getsize(entry.audio) if os.path.isfile(entry.audio) else -1
        for entry in directory.entries
        if entry.audio
    }
    return provenance.digest(repr((directory.entries, sorted(sizes.items()))))


def choice_rows(recipe: rules.Recipe) -> list[dict[str, object]]:
    """Returns the choices as rows of a table."""
    return [
        {"choice": one.name, "value": one.value, "from": one.figure, "rule": one.rule}
        for one in recipe.choices
    ]


def explanation(recipe: rules.Recipe) -> str:
    """Returns every choice with its value, its rule and the figures that it came from."""
    lines = []
    for one in recipe.choices:
        lines += [f"{one.name}: {one.value}", f"    from  {one.figure}", f"    rule  {one.rule}"]
    return "\n".join(lines)


def _figures_from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
