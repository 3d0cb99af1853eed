"""Files appear together or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from accel.errors import AccelError
from accel.reporting.files import WriteError, check_folder, check_free, leftovers, write_together


def text(value: str):
    return lambda path: path.write_text(value)


def failing(error: BaseException):
    def write(path: Path) -> None:
        path.write_text("half")
        raise error

    return write


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_both_are_written(tmp_path: Path) -> None:
    write_together({tmp_path / "a": text("1"), tmp_path / "new" / "b": text("2")})
    assert (tmp_path / "a").read_text() == "1" and contents(tmp_path / "new") == {"b": "2"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("odd")])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failing_writer_changes_nothing(error: BaseException, overwrite: bool, tmp_path: Path) -> None:
    if overwrite:
        (tmp_path / "a").write_text("old")
    before = contents(tmp_path)
    raised = WriteError if isinstance(error, OSError) else type(error)
    with pytest.raises(raised, match="b: no space left on device" if isinstance(error, OSError) else None):
        files = {tmp_path / "a": text("1"), tmp_path / "b": failing(error), tmp_path / "c" / "d": text("3")}
        write_together(files, overwrite=overwrite)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing_move", [1, 2])
def test_a_failing_move_is_taken_back(
    error: BaseException, failing_move: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("old")
    moves = 0
    replace = os.replace

    def breaking(*args: Path) -> None:
        nonlocal moves
        moves += 1
        if moves == failing_move:
            raise error
        replace(*args)

    monkeypatch.setattr(os, "replace", breaking)
    with pytest.raises(WriteError if isinstance(error, OSError) else KeyboardInterrupt):
        write_together({tmp_path / "a": text("1"), tmp_path / "b": text("2")}, overwrite=True)
    assert contents(tmp_path) == {"a": "old"}


@pytest.mark.parametrize("killed_at", range(1, 7))
def test_a_kill_leaves_nothing_that_does_not_belong_together(
    killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two old files are replaced by two new ones; whenever the process dies, no old one is beside a new one."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")

    class Killed(BaseException):
        pass

    calls = 0

    def dying(act):
        def counted(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls >= killed_at:
                # Nothing after this moment reaches the disk.
                raise Killed
            return act(*args, **kwargs)

        return counted

    monkeypatch.setattr(os, "replace", dying(os.replace))
    monkeypatch.setattr(Path, "unlink", dying(Path.unlink))
    with pytest.raises(Killed):
        write_together({tmp_path / "a": text("new"), tmp_path / "b": text("new")}, overwrite=True)
    monkeypatch.undo()
    there = {name: (tmp_path / name).read_text() for name in ("a", "b") if (tmp_path / name).exists()}
    assert set(there.values()) in ({"old"}, {"new"}, set())
    # The last comes last.
    assert there.get("b") != "new" or there.get("a") == "new"
    hidden = sum(len(paths) for paths in leftovers(tmp_path).values())
    assert hidden == len(list(tmp_path.iterdir())) - len(there)


def test_a_file_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    def meanwhile(path: Path) -> None:
        path.write_text("1")
        (tmp_path / "a").write_text("theirs")

    with pytest.raises(AccelError, match="exists"):
        write_together({tmp_path / "a": meanwhile})
    assert contents(tmp_path) == {"a": "theirs"}


def test_what_is_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("a", "link"):
        with pytest.raises(AccelError, match="exists"):
            check_free([tmp_path / name], overwrite=False)
    check_free([tmp_path / "a"], overwrite=True)
    with pytest.raises(AccelError, match="is a folder"):
        check_free([tmp_path], overwrite=True)


def test_folders_are_tried_and_left_clean(tmp_path: Path) -> None:
    check_folder(tmp_path / "not" / "yet")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(AccelError, match="is not a folder"):
        check_folder(tmp_path / "file" / "below")
    with pytest.raises(AccelError, match="cannot write into"):
        check_folder(Path("/proc/nowhere"))
