"""What a folder of `accel bench` holds, read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.errors import AccelError
from accel.measure.cells import HEADER_FILE, Cell, Place, Store, read_header
from accel.measure.lines import Line, lines_of
from accel.measure.trial import Setting


@dataclass(frozen=True)
class Results:
    """What a folder holds of a plan: the settings, which of them is the baseline, the runs and what they share."""

    settings: tuple[Setting, ...]
    baseline: Setting
    places: tuple[Place, ...]
    least_psnr: float
    identity: dict[str, Any]
    plan: dict[str, Any]
    store: Store

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Those of a folder that `accel bench` has written. Raises `AccelError` for another."""
        header = read_header(folder)
        plan = header["plan"]
        try:
            settings = {name: Setting.from_dict(name, data) for name, data in plan["settings"].items()}
            return cls(
                tuple(settings.values()),
                settings[plan["baseline"]],
                places_of(plan["prompts"], plan["seeds"], plan["repeats"], plan["batches"]),
                plan["least_psnr_db"],
                header["identity"],
                plan,
                Store.read(folder),
            )
        except (KeyError, TypeError) as error:
            raise AccelError(f"{folder / HEADER_FILE} is damaged: {error} is missing or of the wrong type") from error

    @property
    def keeps_clips(self) -> bool:
        """Whether there are clips of the baseline to be looked at."""
        return any(self.store.clip(self.baseline, place) is not None for place in self.places)

    def lines(self) -> list[Line]:
        """A line of figures for each setting, of the plan's runs alone: the folder may know more."""

        def cells(setting: Setting) -> list[Cell]:
            return [cell for place in self.places if (cell := self.store.find(setting, place)) is not None]

        return lines_of(self.settings, self.baseline, cells, least_psnr=self.least_psnr)


def places_of(prompts: Sequence[str], seeds: Sequence[int], repeats: int, batches: Sequence[int]) -> tuple[Place, ...]:
    """The runs of each setting, round by round; larger batches, which are for the throughput, of the first alone."""
    single = [Place(prompt, seed, repeat) for repeat in range(repeats) for prompt in prompts for seed in seeds]
    larger = [Place(prompts[0], seeds[0], repeat, batch) for repeat in range(repeats) for batch in batches if batch > 1]
    return (*single, *larger)
