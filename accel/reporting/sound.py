"""The sound of a video, and the wav file that an encoder reads it from."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_LOUDEST = 32767


@dataclass(frozen=True)
class Sound:
    """Samples (channels, N), float32 in -1..1, and how many of them are a second."""

    samples: np.ndarray
    rate: int

    def described(self) -> dict[str, Any]:
        """As the side file has it."""
        channels, count = self.samples.shape
        return {"channels": channels, "samples_per_second": self.rate, "seconds": count / self.rate}

    def write_wav(self, path: Path) -> None:
        """Writes it in 16 bits; what is louder than can be is cut off."""
        steps = np.rint(np.clip(self.samples, -1, 1) * _LOUDEST).astype("<i2")
        with wave.open(str(path), "wb") as file:
            file.setparams((len(steps), 2, self.rate, steps.shape[1], "NONE", ""))
            file.writeframes(steps.T.tobytes())
