"""The scenes that the built-in model was trained on: attributes, captions, and captions read back.

One object, in one colour, in one motion, on one background. The captions are a closed language: the
model's tokenizer knows the words that :meth:`Scene.caption` and :meth:`Scene.paraphrase` use and no others.
Needs no torch.
"""

import re
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import zip_longest
from random import Random

from accel.errors import AccelError

RGB = tuple[float, float, float]

SHAPES = ("circle", "square", "triangle", "ring")
COLORS: dict[str, RGB] = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.75, 0.20),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.95, 0.88, 0.10),
    "purple": (0.70, 0.15, 0.85),
    "cyan": (0.10, 0.85, 0.90),
}
MOTIONS = ("left", "right", "up", "down", "growing", "shrinking")
BACKGROUNDS: dict[str, RGB] = {
    "black": (0.06, 0.06, 0.06),
    "gray": (0.50, 0.50, 0.50),
    "white": (0.94, 0.94, 0.94),
    "navy": (0.08, 0.10, 0.30),
    "brown": (0.40, 0.27, 0.16),
}
TEXTURES = ("plain", "striped", "checkered")

#: What a striped or checkered background adds to all three channels of its second tone.
TEXTURE_CONTRAST = {"black": 0.14, "gray": -0.16, "white": -0.16, "navy": 0.16, "brown": 0.16}

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "color": tuple(COLORS),
    "motion": MOTIONS,
    "background": tuple(BACKGROUNDS),
    "texture": TEXTURES,
}
_VERBS = {"grows": "growing", "shrinks": "shrinking"}


@dataclass(frozen=True)
class Scene:
    """What one clip shows; every field is one of the words in :data:`ATTRIBUTES`.

    Raises:
        AccelError: a word that its attribute does not have.
    """

    shape: str
    color: str
    motion: str
    background: str
    texture: str = "plain"

    def __post_init__(self) -> None:
        for field in fields(self):
            word, known = getattr(self, field.name), ATTRIBUTES[field.name]
            if word not in known:
                near = get_close_matches(str(word), known, n=1) or known
                raise AccelError(f"{field.name} {word!r} is none of {', '.join(known)}; try {near[0]!r}")

    @classmethod
    def random(cls, rng: Random) -> "Scene":
        """One scene, uniform over all 2,160; the same state of `rng` gives the same scene."""
        return cls(**{name: rng.choice(words) for name, words in ATTRIBUTES.items()})

    def caption(self) -> str:
        """The canonical caption: "a red circle moving left on a plain black background"."""
        motion = self.motion if self.motion in _VERBS.values() else f"moving {self.motion}"
        return f"a {self.color} {self.shape} {motion} on a {self.texture} {self.background} background"

    def paraphrase(self, rng: Random) -> str:
        """One of the ways in which the training captions say it; texture or background may go unsaid."""
        article = rng.choice(("a", "a", "the", "one", ""))
        subjects = (f"{self.color} {self.shape}", f"{self.shape} that is {self.color}")
        subject = rng.choices(subjects, (88, 12))[0]
        where = rng.choices(
            (
                f"{rng.choice(('on', 'over', 'in front of'))} a {self.texture} {self.background} background",
                f"on a {self.background} background",
                f"on {self.background} with {self.texture} texture",
                f"{self.background} background",
                "",
            ),
            (60, 15, 10, 7, 8),
        )[0]
        opening = rng.choices(("", "a video of"), (90, 10))[0]
        return " ".join(f"{opening} {article} {subject} {self._motion_words(rng)} {where}".split())

    def _motion_words(self, rng: Random) -> str:
        for verb, participle in _VERBS.items():
            if self.motion == participle:
                return rng.choice((participle, f"that is {participle}", verb))
        verb = rng.choice(("moving", "moves", "going", "sliding", "drifting"))
        sideways = self.motion in ("left", "right")
        return f"{verb} {rng.choice(('', 'to the ', 'towards the ')) if sideways else ''}{self.motion}"


def parse(prompt: str) -> dict[str, str | None]:
    """The attributes that a prompt names: a word, or None, for each key of :data:`ATTRIBUTES`.

    Of several words for one attribute the first counts, with two exceptions that follow from word order: a
    colour right before "background" is not the object's, and a background's word right before a shape is not
    the background's (the model has no blue backgrounds and no white circles).
    """
    words = re.findall(r"\w+", prompt.lower())
    found: dict[str, str | None] = dict.fromkeys(ATTRIBUTES)
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        word = _VERBS.get(word, word)
        for attribute, known in ATTRIBUTES.items():
            if word not in known or found[attribute] is not None:
                continue
            misplaced = (attribute == "color" and following == "background") or (
                attribute == "background" and following in SHAPES
            )
            if not misplaced:
                found[attribute] = word
    return found
