"""One setting makes one clip: what is measured of it, and how it is kept so that a killed benchmark goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import accel
from accel.config import AccelConfig
from accel.measure.block_calls import count_block_calls
from accel.measure.one_run import timed_run
from accel.measure.prompt_accuracy import score
from accel.measure.quality import motion, psnr, ssim
from accel.measure.rivals import mag_ratios, rival
from accel.session import Session


@dataclass(frozen=True)
class Row:
    """One setting: the plain pipeline, Accel's methods, or a rival with its settings, and how many steps.

    `prepare` is called with the session of Accel's methods before the run, and `prepared` says what it does.
    """

    steps: int
    config: AccelConfig | None = None
    rival: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    prepared: str = ""
    prepare: Callable[[Session], None] | None = field(default=None, compare=False)

    def describe(self) -> list[dict[str, Any]]:
        """The setting as data: one entry for each method, none for the plain pipeline."""
        if self.rival is not None:
            return [{"rival": self.rival, **self.settings}]
        methods = () if self.config is None else self.config.methods
        found = [{"method": method.method, **method.model_dump(mode="json")} for method in methods]
        return [*found, {"prepared": self.prepared}] if self.prepared else found


class Maker:
    """Makes clips on one pipeline; `call` holds what all calls share."""

    def __init__(self, pipe: Any, prompts: list[str], call: dict[str, Any], calibration_prompt: str) -> None:
        self._pipe = pipe
        self._prompts = prompts
        self._call = call
        self._calibration_prompt = calibration_prompt
        self._ratios: dict[int, list[float]] = {}

    def make(self, row: Row, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        """The frames (T, H, W, 3) of the row's clip for one prompt, and what the run itself tells."""
        settings = dict(row.settings)
        if row.rival == "magcache":
            settings |= {"mag_ratios": self._mag_ratios(row.steps), "num_inference_steps": row.steps}
        session = other = None
        with ExitStack() as stack:
            calls = stack.enter_context(count_block_calls(self._pipe))
            if row.config is not None:
                session = stack.enter_context(accel.enable(self._pipe, row.config))
                if row.prepare is not None:
                    row.prepare(session)
            elif row.rival is not None:
                other = stack.enter_context(rival(self._pipe, row.rival, **settings))
            made = timed_run(self._pipe, self._arguments(self._prompts[index], row.steps, index))
        reports = {} if session is None else session.summary().to_dict()["runs"][0]["methods"]
        held = sum(report.get("held_bytes", 0) for report in reports.values())
        return made.output.frames[0], {
            "seconds": made.seconds,
            "loop_seconds": made.loop_seconds,
            "block_calls": calls.computed,
            "held_bytes": held if other is None else other.held_bytes,
            "left_behind": [] if other is None else other.left_behind,
            "methods": reports,
        }

    def _arguments(self, prompt: str, steps: int, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        return {
            **self._call,
            "prompt": prompt,
            "num_inference_steps": steps,
            "generator": generator,
            "output_type": "np",
        }

    def _mag_ratios(self, steps: int) -> list[float]:
        if steps not in self._ratios:
            arguments = {**self._arguments(self._calibration_prompt, steps, 1000), "output_type": "latent"}
            self._ratios[steps] = mag_ratios(self._pipe, steps, lambda: self._pipe(**arguments))
        return self._ratios[steps]


def judged(frames: np.ndarray, reference: np.ndarray | None, prompt: str) -> dict[str, Any]:
    """The figures of a clip's quality; likeness to the reference is None where it is the reference itself."""
    return {
        "psnr_db": None if reference is None else psnr(frames, reference),
        "ssim": None if reference is None else ssim(frames, reference),
        "motion": motion(frames),
        "score": score(frames, prompt),
    }


def key_of(group: int, row: Row, prompt: str, seed: int) -> str:
    """What a clip is known by: its setting, and the number of steps of the reference that it is compared with."""
    return json.dumps([group, row.steps, row.describe(), prompt, seed], sort_keys=True)


class Store:
    """The finished clips of a benchmark: a line of figures for each, and the frames of the references."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lines = folder / "clips.jsonl"
        self._known: dict[str, dict[str, Any]] = {}
        if self._lines.exists():
            texts = self._lines.read_text().splitlines(keepends=True)
            # The last line of a killed run may be half a line.
            whole = [text for text in texts if text.endswith("\n")]
            self._lines.write_text("".join(whole))
            for text in whole:
                line = json.loads(text)
                self._known[line["key"]] = line["clip"]

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str) -> dict[str, Any] | None:
        """The figures of a clip that is done."""
        return self._known.get(key)

    def add(self, key: str, clip: dict[str, Any]) -> None:
        """Keeps the figures of a clip."""
        self._known[key] = clip
        with self._lines.open("a") as lines:
            lines.write(json.dumps({"key": key, "clip": clip}) + "\n")

    def reference(self, steps: int, seed: int) -> np.ndarray:
        """The frames that :meth:`keep_reference` kept."""
        return np.load(self._frames(steps, seed))

    def keep_reference(self, steps: int, seed: int, frames: np.ndarray) -> None:
        """Keeps the frames of a clip that others are compared with."""
        np.save(self._frames(steps, seed), frames)

    def _frames(self, steps: int, seed: int) -> Path:
        return self._folder / f"reference_{steps}_{seed}.npy"
