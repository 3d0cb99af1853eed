"""The 64 combinations of attributes that training leaves out, to measure what the model has understood.

A combination is a shape, a colour, a motion and a background; training sees none of the 64 on any texture, but
every pair of words in other company. Every word occurs about equally often.
"""

import json
from functools import cache
from pathlib import Path
from random import Random

from accel.pipelines.demo.scenes import Scene


@cache
def held_out() -> tuple[Scene, ...]:
    """The 64 scenes, each with the texture that it is evaluated on; the order is always the same."""
    rows = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return tuple(Scene(*row) for row in rows)


@cache
def _combinations() -> frozenset[tuple[str, ...]]:
    return frozenset(_combination(scene) for scene in held_out())


def _combination(scene: Scene) -> tuple[str, ...]:
    return scene.shape, scene.color, scene.motion, scene.background


def is_held_out(scene: Scene) -> bool:
    """Whether training leaves the scene out: its texture does not matter."""
    return _combination(scene) in _combinations()


def training_scene(rng: Random) -> Scene:
    """One scene, uniform over all that training may see."""
    while is_held_out(scene := Scene.random(rng)):
        pass
    return scene
