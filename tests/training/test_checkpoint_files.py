"""Checkpoints that a full disk, an interrupted copy or a crash has damaged."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.training import checkpoint_files
from maestro_jax.training.checkpoint_files import ARRAYS, FILES, damage
from maestro_jax.training.checkpoints import SET_ASIDE, Checkpoints
from maestro_jax.training.partial_restore import partial_restore, restore_params
from maestro_jax.training.saved_checkpoints import (
    _hide_late_answers,
    find_checkpoint,
    saved_record,
    saved_shapes,
)
from maestro_jax.training.state import TrainState
from maestro_jax.training.trainer import train

KINDS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "a hole": lambda content: (
        content[: len(content) // 3] + bytes(len(content) // 3) + content[len(content) // 3 * 2 :]
    ),
    "one bit": lambda content: (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 1])
        + content[len(content) // 2 + 1 :]
    ),
}


def state(step: int) -> TrainState:
    values = np.random.default_rng(0).normal(size=(2, 60, 50)).astype(np.float32)
    params = {"up": {"kernel": jnp.asarray(values[0])}, "bias": jnp.ones(7, jnp.bfloat16)}
    ema = {"up": {"kernel": jnp.asarray(values[1])}, "bias": jnp.zeros(7)}
    return TrainState(jnp.int32(step), params, (params, jnp.int32(step)), ema)


def abstract() -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0)
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with checkpoints of the steps 4 and 5."""
    directory = tmp_path_factory.mktemp("model")
    checkpoints = Checkpoints(directory)
    for step in (4, 5):
        checkpoints.save(state(step), {"step": step, "seed": 0})
    checkpoints.close()
    return directory


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def files(model: Path) -> list[Path]:
    """What is read of the newest checkpoint, relative to it."""
    step = model / "checkpoints" / "5"
    return [Path(ARRAYS)] + [
        path.relative_to(step)
        for item in ("state", "data")
        for path in sorted((step / item).rglob("*"))
        if path.is_file() and path.name != "commit_success.txt"
    ]


def cut_newest(model: Path) -> str:
    """Cuts the largest file of the newest checkpoint; returns its name."""
    step = model / "checkpoints" / "5"
    name = max(files(model), key=lambda name: (step / name).stat().st_size)
    (step / name).write_bytes((step / name).read_bytes()[:1000])
    return str(name)


def test_whole_checkpoints_are_whole(model: Path) -> None:
    for step in ("4", "5"):
        listed = json.loads((model / "checkpoints" / step / FILES).read_text())
        assert len(listed) >= 5 and "data/metadata" in listed and "state/_METADATA" in listed
        assert damage(model / "checkpoints" / step) is None
    assert set(map(str, files(model))) == set(
        json.loads((model / "checkpoints" / "5" / FILES).read_text())
    )


def test_a_checkpoint_is_complete_before_large_files_are_digested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that is about to stop may have no time for another reading of the state."""
    digested = []

    def digest(path: Path) -> str:
        digested.append((tmp_path / "checkpoints" / "5").is_dir())
        return "0" * 32

    monkeypatch.setattr(checkpoint_files, "_digest", digest)
    monkeypatch.setattr(checkpoint_files, "_SMALL", 500)
    listed = tmp_path / "checkpoints" / "5" / FILES
    monkeypatch.setattr(Checkpoints, "_add_digests", lambda self, step: None)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(5), {"step": 5})
    checkpoints.close()
    sizes = json.loads(listed.read_text()).values()
    assert all(bool(digest) == (size <= 500) for size, digest in sizes)
    assert len(digested) == sum(size <= 500 for size, _ in sizes) < len(sizes)
    assert not any(digested)
    checkpoint_files.add_digests(listed.parent)
    assert all(digest for _, digest in json.loads(listed.read_text()).values())


@pytest.mark.parametrize("change", ["removed", "cut short"])
def test_digests_that_come_late_do_not_hide_what_was_lost_before(
    copied: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    step = copied / "checkpoints" / "5"
    for small in (0, 1 << 20):  # The file has no digest yet, or it has.
        monkeypatch.setattr(checkpoint_files, "_SMALL", small)
        checkpoint_files.write_list(step)
        path = step / "state" / "_METADATA"
        content = path.read_bytes()
        if change == "removed":
            path.unlink()
        else:
            path.write_bytes(content[:-1])
        checkpoint_files.add_digests(step)
        assert "state/_METADATA" in (damage(step) or "")
        path.write_bytes(content)
        checkpoint_files.add_digests(step)
        assert damage(step) is None


@pytest.mark.parametrize("kind", ["one bit", "zeroed", "a hole"])
def test_damage_is_found_although_large_files_have_no_digest_yet(
    copied: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The process was killed right after saving."""
    step = copied / "checkpoints" / "5"
    monkeypatch.setattr(checkpoint_files, "_SMALL", 2000)
    checkpoint_files.write_list(step)
    large = [name for name in files(copied) if (step / name).stat().st_size > 2000]
    assert large and damage(step) is None
    for name in large:
        content = (step / name).read_bytes()
        for at in range(0, len(content), 97):
            changed = (
                content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
                if kind == "one bit"
                else KINDS[kind](content)
            )
            (step / name).write_bytes(changed)
            found = damage(step)
            if found is None:
                # Bytes that nobody reads: copies of an index, gaps.
                restored, _ = Checkpoints(copied).restore_latest(abstract())
                jax.tree.map(np.testing.assert_array_equal, restored, state(5))
            else:
                assert "of" in found or "state" in found
            if kind != "one bit":
                break
        (step / name).write_bytes(content)


def test_arrays_are_compared_with_their_sums_where_files_are_not_read_twice(
    copied: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a bucket. Here the values are whole and the list tells of others."""
    step = copied / "checkpoints" / "5"
    listed = json.loads((step / ARRAYS).read_text())
    assert len(listed) == 8 and listed["params/bias"][0] == "bfloat16"
    listed["ema_params/up/kernel"][1] ^= 1
    (step / ARRAYS).write_text(json.dumps(listed))
    checkpoint_files.write_list(step)
    monkeypatch.setattr(checkpoint_files, "_damage", lambda directory, thorough: None)
    monkeypatch.setattr("maestro_jax.training.saved_checkpoints.is_remote", lambda path: True)
    told = "the array ema_params/up/kernel in state has other values than were written"
    with pytest.raises(UserError, match=rf"5 is damaged \({told}\); use \S+4, the newest that is"):
        restore_params(step)
    assert restore_params(step, "params")["up"]["kernel"].shape == (60, 50)
    monkeypatch.undo()
    checkpoints = Checkpoints(copied)
    monkeypatch.setattr(checkpoint_files, "damage", lambda directory: None)
    restored, _ = checkpoints.restore_latest(abstract())
    assert int(restored.step) == 4 and told in caplog.text
    checkpoints.close()


def test_a_file_that_the_machine_cannot_read_is_damage(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = checkpoint_files._digest

    def bad_sector(path: Path) -> str:
        if "checkpoints/5" in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return digest(path)

    monkeypatch.setattr(checkpoint_files, "_digest", bad_sector)
    assert "Input/output error" in (damage(copied / "checkpoints" / "5") or "")
    checkpoints = Checkpoints(copied)
    restored = checkpoints.restore_latest(abstract())
    checkpoints.close()
    assert restored is not None and restored[1]["step"] == 4


@pytest.mark.parametrize("kind", [*KINDS, "gone"])
def test_damage_to_any_file_is_found_by_the_list(copied: Path, kind: str) -> None:
    step = copied / "checkpoints" / "5"
    for name in files(copied):
        content = (step / name).read_bytes()
        (step / name).unlink()
        if kind != "gone":
            (step / name).write_bytes(KINDS[kind](content))
        assert str(name) in (damage(step) or "")
        (step / name).write_bytes(content)
    assert damage(step) is None
    (step / FILES).write_text((step / FILES).read_text()[:20])
    assert FILES in (damage(step) or "")
    shutil.rmtree(step / "state")
    assert damage(step)


@pytest.mark.parametrize("kind", ["empty", "cut", "zeroed", "gone"])
def test_without_a_list_what_is_damaged_is_found_or_not_needed(copied: Path, kind: str) -> None:
    step = copied / "checkpoints" / "5"
    (step / FILES).unlink()
    assert damage(step) is None
    found = 0
    for name in files(copied):
        content = (step / name).read_bytes()
        (step / name).unlink()
        if kind != "gone":
            (step / name).write_bytes(KINDS[kind](content))
        if damage(step):
            found += 1
        elif name.name not in ("_sharding", "process_0"):
            tree = restore_params(step, "params")
            np.testing.assert_array_equal(tree["up"]["kernel"], state(5).params["up"]["kernel"])
        (step / name).write_bytes(content)
    assert found >= 4


def test_readers_take_the_newest_that_is_whole_and_refuse_a_damaged_one_by_name(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = cut_newest(copied)
    newest, older = (copied / "checkpoints" / step for step in "54")
    damaged = rf"{newest} is damaged \({name} has 1000 of \d+ bytes\); "
    with pytest.raises(UserError, match=rf"{damaged}use {older}, the newest that is whole"):
        restore_params(newest)
    with pytest.raises(UserError, match=damaged):
        partial_restore(state(0).params, newest)
    assert not caplog.records
    for directory in (copied, copied / "checkpoints", copied / "latest"):
        assert find_checkpoint(directory) == older
        assert restore_params(directory)["up"]["kernel"].shape == (60, 50)
    [line] = [record.getMessage() for record in caplog.records]
    assert re.search(rf"{damaged}taking that of step 4", line)
    (newest / "state" / "_METADATA").unlink()
    with pytest.raises(UserError, match=r"is damaged \(state/_METADATA is missing"):
        saved_shapes(newest)
    (newest / "data" / "metadata").write_bytes(b"")
    with pytest.raises(UserError, match="5 is damaged"):
        saved_record(newest)
    shutil.rmtree(newest / "state")
    with pytest.raises(UserError, match=rf"{newest} is damaged .* use {older}"):
        find_checkpoint(newest)
    shutil.rmtree(older)
    with pytest.raises(UserError, match=r"5 is damaged .*; copy it again from where it is whole"):
        restore_params(newest)
    with pytest.raises(UserError, match=r"No checkpoint is whole: \S+5 \("):
        find_checkpoint(copied)


def test_no_later_step_than_the_last_that_is_asked_for_is_restored(copied: Path) -> None:
    checkpoints = Checkpoints(copied)
    cut_newest(copied)
    restored, record = checkpoints.restore_latest(abstract(), last_step=4)
    assert (int(restored.step), record["step"]) == (4, 4)
    # The damaged one after it is not even looked at.
    assert checkpoints.all_steps() == [4, 5]
    assert checkpoints.restore_latest(abstract(), last_step=3) is None
    checkpoints.close()


def test_restoring_to_other_types_verifies_those_that_were_saved(copied: Path) -> None:
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, jnp.bfloat16 if x.dtype == jnp.float32 else x.dtype, sharding=x.sharding
        ),
        abstract(),
    )
    checkpoints = Checkpoints(copied)
    restored, _ = checkpoints.restore_latest(wanted)
    checkpoints.close()
    expected = np.asarray(state(5).params["up"]["kernel"]).astype(jnp.bfloat16)
    np.testing.assert_array_equal(restored.params["up"]["kernel"], expected)


def test_another_optimizer_is_said_so(copied: Path) -> None:
    other = abstract().replace(opt_state=(abstract().params, abstract().params))
    checkpoints = Checkpoints(copied)
    with pytest.raises(UserError, match="is of another optimizer: its state 1"):
        checkpoints.restore_latest(other)
    checkpoints.close()


def test_training_goes_on_from_the_newest_that_is_whole(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut_newest(copied)
    checkpoints = Checkpoints(copied)
    with caplog.at_level(logging.WARNING):
        restored, record = checkpoints.restore_latest(abstract())
    assert (int(restored.step), record["step"]) == (4, 4)
    [line] = [one.getMessage() for one in caplog.records if "damaged" in one.getMessage()]
    assert f"{copied / 'checkpoints' / '5'} is damaged" in line and "continuing from step 4" in line
    assert (copied / SET_ASIDE / "5" / "state").is_dir()
    assert checkpoints.all_steps() == [4]
    # The step is saved anew when training comes to it.
    checkpoints.save(state(5), {"step": 5, "seed": 0})
    checkpoints.settle()
    assert int(checkpoints.restore_latest(abstract())[0].step) == 5
    checkpoints.close()


def test_a_list_that_is_being_written_is_no_damage(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = copied / "checkpoints" / "5"
    found = checkpoint_files.files_below
    # Found by a walk through the directory, and renamed before its size is asked for.
    part = directory / f"{FILES}.part"
    monkeypatch.setattr(checkpoint_files, "files_below", lambda path: [*found(path), part])
    assert damage(directory) is None
    cut_newest(copied)
    assert "has 1000 of" in (damage(directory) or "")


def test_where_none_is_whole_nothing_is_begun_anew(copied: Path) -> None:
    cut_newest(copied)
    shutil.rmtree(copied / "checkpoints" / "4" / "state")
    checkpoints = Checkpoints(copied)
    with pytest.raises(UserError, match=r"No checkpoint is whole: \S+5 \(.*\), nor 1 before it"):
        checkpoints.restore_latest(abstract())
    checkpoints.close()
    assert not (copied / SET_ASIDE).exists()


def test_a_run_whose_newest_checkpoint_is_damaged_ends_as_if_it_were_not(toy, tmp_path) -> None:
    run = toy.run(steps=4, checkpoint_every=2)
    whole = train(run, tmp_path / "whole", batches=toy.batches)
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    newest = tmp_path / "damaged" / "checkpoints" / "4"
    (newest / "data" / "metadata").write_bytes(b"")
    again = train(run, tmp_path / "damaged", batches=toy.batches)
    toy.assert_trees_equal(jax.device_get(again), jax.device_get(whole))
    assert damage(newest) is None


@pytest.mark.parametrize(
    ("message", "is_printed"), [("Event loop is closed", False), ("another reason", True)]
)
def test_threads_that_call_a_closed_event_loop_print_nothing(
    message: str, is_printed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorStore's threads print what they raise by this hook, once one of many arrays failed."""
    Checkpoints(tmp_path).save({"params": jnp.ones(2)}, {"step": 1})
    thread = threading.Thread(
        target=lambda: sys.excepthook(RuntimeError, RuntimeError(message), None)
    )
    thread.start()
    thread.join()
    assert (message in capsys.readouterr().err) is is_printed


def test_late_answers_of_a_closed_event_loop_are_hidden() -> None:
    """C++ prints them through `sys.excepthook`; nothing else is hidden."""
    loop = asyncio.new_event_loop()
    loop.close()
    shown = []
    hook = _hide_late_answers(lambda *error: shown.append(error[1]))
    try:
        loop.call_soon_threadsafe(print)
    except RuntimeError as error:
        # As it is where C++ calls: without the frame of this file.
        assert error.__traceback__ is not None
        hook(RuntimeError, error, error.__traceback__.tb_next)
        assert not shown
        hook(RuntimeError, error, error.__traceback__)
    other = ValueError("other")
    hook(ValueError, other, None)
    assert [type(error) for error in shown] == [RuntimeError, ValueError]
