"""`accel generate --prompts` in several processes, which are killed at any moment and started again."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import imageio_ffmpeg
import pytest

from accel.cli.job.claims import LOCK_FILE
from accel.reporting.files import leftovers
from tests.cli.test_many_prompts import JOB, NAMES, outputs

LINES = 8
_PATIENCE = 300


def run_in_process(rank: int, world: int, port: int, folder: str, arguments: list[str], environment: dict) -> None:
    """One process of a job, as a launcher would start it; its output goes to files."""
    os.chdir(folder)
    os.environ.update(
        {
            **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
            **{name: str(world) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
            **environment,
        }
    )
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if "FAILS" in environment:
        # One line of the second process.
        from accel.cli.job import run

        real = run.call_once

        def call_once(pipe, request, arguments):
            if environment["FAILS"] in request.prompt:
                raise RuntimeError("the fan fell off")
            return real(pipe, request, arguments)

        run.call_once = call_once
    if "REFUSES" in environment:
        import accel

        def enable(pipe, config):
            raise accel.AccelError(environment["REFUSES"])

        accel.enable = enable
    from accel.cli import main

    code = main(arguments)
    sys.stdout.flush()
    os._exit(code)


@dataclass(frozen=True)
class Started:
    """The processes of one start."""

    processes: list[BaseProcess]

    def kill(self, *ranks: int) -> None:
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].kill()
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].join(_PATIENCE)

    def codes(self) -> list[int | None]:
        for process in self.processes:
            process.join(_PATIENCE)
        return [process.exitcode for process in self.processes]


Start = Callable[..., Started]


@pytest.fixture(scope="module")
def fresh() -> Iterator[multiprocessing.context.BaseContext]:
    """Forks of a process that has imported everything and has no threads yet."""
    with pytest.MonkeyPatch.context() as patch:
        # Read by the server when it begins.
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["accel.cli.job.run", "accelerate", "diffusers.pipelines.wan.pipeline_wan"])
        yield context


@pytest.fixture
def start(fresh: multiprocessing.context.BaseContext, tmp_path: Path) -> Iterator[Start]:
    """Starts a job in several processes; whatever is left of it is killed at the end."""
    started: list[Started] = []

    def run(world: int, *options: str, **environment: str) -> Started:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        arguments = (world, port, str(tmp_path), [*JOB, *options], environment)
        processes = [fresh.Process(target=run_in_process, args=(rank, *arguments)) for rank in range(world)]
        for process in processes:
            process.start()
        started.append(Started(processes))
        return started[-1]

    yield run
    for each in started:
        each.kill()


def complete(folder: Path) -> dict[str, tuple[int, int]]:
    """The outputs that stand there with their side files: which file it is, and when it was written."""
    found = folder.glob("*.mp4") if folder.is_dir() else ()
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in found
        if not path.name.startswith(".") and path.with_suffix(".json").exists()
    }


def wait_for_changes(folder: Path, count: int, started: Started) -> None:
    """Returns when the names in the folder have changed `count` times, or the job has ended."""
    before: set[str] = set(os.listdir(folder)) if folder.is_dir() else set()
    while count and any(process.is_alive() for process in started.processes):
        now = set(os.listdir(folder)) if folder.is_dir() else set()
        if now != before:
            count -= 1
            before = now
        time.sleep(0.001)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_any_moment_every_line_is_made_once(seed: int, start: Start, tmp_path: Path) -> None:
    chance = random.Random(seed)
    (tmp_path / "p.txt").write_text("".join(f"circle {number}\n" for number in range(1, LINES + 1)))
    folder = tmp_path / "out"
    kept: dict[str, tuple[int, int]] = {}
    for world in (2, 1, 2):
        started = start(world)
        wait_for_changes(folder, chance.randint(4, 12), started)
        started.kill()
        now = complete(folder)
        assert kept.items() <= now.items(), "a line that was there has been made again"
        kept = now
    assert kept
    last = start(2)
    assert last.codes() == [0, 0], (tmp_path / "err0.txt").read_text()

    made = complete(folder)
    assert kept.items() <= made.items()
    assert sorted(made) == [f"{number:04d}-circle-{number}.mp4" for number in range(1, LINES + 1)]
    assert set(outputs(tmp_path)) == {f"{Path(name).stem}{end}" for name in made for end in (".mp4", ".json")}
    assert not leftovers(folder)
    for number, name in enumerate(sorted(made), start=1):
        frames = imageio_ffmpeg.read_frames(folder / name)
        assert next(frames)["size"] == (32, 32) and sum(1 for _ in frames) == 5
        side = json.loads((folder / name).with_suffix(".json").read_text())
        assert side["prompt"] == f"circle {number}" and side["job"]["line"] == number


def test_two_processes_share_the_lines_and_report_as_one(start: Start, tmp_path: Path) -> None:
    lines = ("a red circle moving left", "a white disc", "a green square", "a blue ring")
    (tmp_path / "p.txt").write_text("\n".join(lines))
    assert start(2, "--format", "json", FAILS="disc").codes() == [1, 1]
    data = json.loads((tmp_path / "out0.txt").read_text())
    assert data["processes"] == 2
    assert [line["state"] for line in data["lines"]] == ["made", "failed", "made", "made"]
    assert "accel: error: p.txt, line 2: the fan fell off\n" in (tmp_path / "err0.txt").read_text()
    # The second one says nothing of its own.
    assert (tmp_path / "out1.txt").read_text() == (tmp_path / "err1.txt").read_text() == ""

    # With another number of processes, what was refused is said once as well.
    assert start(2, "--steps", "3").codes() == [2, 2]
    assert len((tmp_path / "err0.txt").read_text().splitlines()) == 1 and (tmp_path / "err1.txt").read_text() == ""
    assert start(3).codes() == [0, 0, 0]
    out = (tmp_path / "out0.txt").read_text()
    assert "4 lines into out/, 3 done before, 1 to make, by 3 processes" in out
    assert "line 2 failed last time and is tried again: the fan fell off" in out
    assert "4 lines of p.txt in out/: 1 made, 3 there before" in out
    assert set(os.listdir(tmp_path / "out")) >= {LOCK_FILE, f"{NAMES[0]}.mp4", "0002-a-white-disc.mp4"}


def test_what_is_refused_is_refused_by_one_with_nothing_left_too(start: Start, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red circle\na white disc\n")
    assert start(2, "--preset", "balanced").codes() == [0, 0]
    (tmp_path / "out" / "0002-a-white-disc.mp4").unlink()
    assert start(2, "--preset", "balanced", REFUSES="not on this model").codes() == [2, 2]
    assert (tmp_path / "err0.txt").read_text() == "accel: error: not on this model\n"
    assert (tmp_path / "err1.txt").read_text() == ""
    assert start(2, "--preset", "balanced").codes() == [0, 0]


@pytest.mark.slow
def test_torchrun_starts_a_job(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red circle\na white disc\na blue ring\n")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "accel", *JOB, "--device", "cpu"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "3 lines into out/, 0 done before, 3 to make, by 2 processes" in done.stdout
    assert len(complete(tmp_path / "out")) == 3


def test_when_one_process_dies_the_other_says_so(start: Start, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("".join(f"circle {number}\n" for number in range(1, LINES + 1)))
    started = start(2)
    wait_for_changes(tmp_path / "out", 3, started)
    started.kill(1)
    assert started.processes[0].join(_PATIENCE) is None and started.processes[0].exitcode == 1
    error = (tmp_path / "err0.txt").read_text().splitlines()[-1]
    assert error == "accel: error: another process of this job ended before its lines were done; start it again"
    # Its own share is there.
    assert {f"{number:04d}-circle-{number}.mp4" for number in range(1, LINES + 1, 2)} <= set(complete(tmp_path / "out"))


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (
            {"WORLD_SIZE": "2", "RANK": ""},
            "RANK is '', which is no whole number; start with accelerate launch or torchrun",
        ),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', which is no whole number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, but WORLD_SIZE 2 has 0 to 1 only"),
    ],
)
def test_an_environment_that_tells_nonsense(
    environment: dict[str, str], says: str, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a red circle")
    assert start(1, **environment).codes() == [2]
    assert says in (tmp_path / "err0.txt").read_text()
    assert not (tmp_path / "out").exists()
