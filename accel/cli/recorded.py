"""What the side file says of a run, and what a replay checks against it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from accel.cli import call
from accel.cli.exits import note
from accel.cli.once import Done
from accel.cli.request import Request
from accel.errors import AccelError
from accel.measure.timing import machine
from accel.reporting import side_file

if TYPE_CHECKING:
    from accel.cli.run_generate import Ready


def describe(ready: Ready, done: Done, media: Path, comparison: dict[str, Any] | None) -> dict[str, Any]:
    """All that made the result, and what it is."""
    pipe, request = ready.pipe, ready.request
    sha256 = side_file.frames_sha256(done.frames)
    count, height, width = done.frames.shape[:3]
    size = {"frames": count, "height": height, "width": width, "fps": call.frames_per_second(pipe, request)}
    # Only an mp4 holds a sound.
    heard = None if done.sound is None else {**done.sound.described(), "kept": media.suffix.lower() == ".mp4"}
    return {
        "prompt": request.prompt,
        "seed": request.seed,
        "model": {
            "name": portable(request.model),
            "size": request.demo_size,
            "pipeline": type(pipe).__name__,
            "dtype": str(pipe.dtype).removeprefix("torch."),
        },
        "weights_hash": ready.weights,
        "call": call.effective_call(pipe, call.call_arguments(pipe, request), done.frames),
        "options": request.options(),
        "acceleration": ready.config.to_dict(),
        "output": {"file": media.name, **size, "sound": heard, "frames_sha256": sha256},
        "seconds": {"load": ready.load_seconds, "call": done.seconds, "loop": done.loop_seconds},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(request.device),
        "versions": side_file.versions(),
        "summary": done.summary.to_dict() if done.summary is not None else None,
        "comparison": comparison,
        "replay": _replayed(request.recorded, sha256),
    }


def check(request: Request, pipeline: str, weights: str | None) -> None:
    """Refuses a replay with other weights than the recorded ones; says what else may change the bits."""
    recorded = request.recorded
    if recorded is None:
        return
    there = recorded.get("weights_hash")
    if there != weights:
        raise AccelError(f"the weights of {request.model} have the hash {weights}; recorded was {there}")
    if recorded["model"].get("pipeline") != pipeline:
        raise AccelError(f"{request.model} is a {pipeline}; recorded was a {recorded['model'].get('pipeline')}")
    for name, here in side_file.versions().items():
        if recorded["versions"].get(name) != here:
            note(f"recorded with {name} {recorded['versions'].get(name)}, this is {here}: the bits may differ")
    here, there = machine(request.device)["device"], recorded.get("machine", {}).get("device")
    if there != here:
        note(f"recorded on {there}, this is {here}: the bits may differ")


@contextlib.contextmanager
def threads(recorded: Mapping[str, Any] | None) -> Iterator[None]:
    """Runs with the recorded number of threads, since the order of sums on a CPU depends on it."""
    wanted = (recorded or {}).get("machine", {}).get("threads")
    before = torch.get_num_threads()
    try:
        if isinstance(wanted, int) and wanted > 0:
            torch.set_num_threads(wanted)
        yield
    finally:
        torch.set_num_threads(before)


def _replayed(recorded: Mapping[str, Any] | None, sha256: str) -> dict[str, Any] | None:
    if recorded is None:
        return None
    there = recorded["output"].get("frames_sha256")
    return {"recorded_sha256": there, "same_bits": sha256 == there}


def portable(model: str) -> str:
    """A folder's name in full, since a replay may start elsewhere."""
    folder = Path(model).expanduser()
    return str(folder.absolute()) if model != "demo" and folder.is_dir() else model
