"""What leaving out a single step does to the result, step by step: where in a run a cache may err.

python -m bench.one_step [--prompts 4] [--steps 24] [--size quick] [--frames 17] [--write]

All blocks of one step are left out and their change is continued along a line, as the temporal delta cache does; all
other steps are computed. The weight of early drift in that cache (`early`) rests on this.
"""

from __future__ import annotations

from typing import Any

from accel.measure.trial import Setting
from bench.comparison import main, setting


def settings(pipe: Any, steps: int) -> list[Setting]:
    """The plain pipeline, and one setting for each step that a line can be continued to."""
    found = [setting(f"plain, {steps} steps", steps)]
    for step in range(3, steps):
        # Nothing but this step is open to be left out, and no drift keeps it from that.
        alone = {"dense_steps": step / steps, "dense_final_steps": (steps - step - 1) / steps, "threshold": 1e9}
        cache = {"method": "tdc", "max_skips": 1, "early": 0.0, **alone}
        found.append(setting(f"without step {step}", steps, {"cache": cache}))
    return found


if __name__ == "__main__":
    main("one_step", "One step left out", __doc__, settings, None)
