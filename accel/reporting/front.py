"""Quality against speed: which settings nothing else beats in both, and the plot of all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accel.errors import AccelError

_OURS, _FEWER, _RIVAL, _LINE, _INK = "#0b6e4f", "#8a8a8a", "#b5651d", "#0b6e4f", "#222222"
_KINDS = {
    "method": (_OURS, "o", "Accel"),
    "fewer": (_FEWER, "s", "plain, fewer steps"),
    "rival": (_RIVAL, "^", "rival"),
}


@dataclass(frozen=True)
class Point:
    """A setting: how many times as fast as the baseline, and its mean PSNR in dB.

    `kind` is "method", "fewer" (the plain pipeline with fewer steps) or "rival".
    """

    name: str
    speed_up: float
    psnr_db: float
    kind: str


def points(lines: Sequence[dict[str, Any]]) -> list[Point]:
    """Those lines of a benchmark of which a speed-up may be said, and whose clips differ from the baseline's."""
    found = []
    for line in lines:
        quality = line["quality"].get("psnr_db")
        if line["baseline"] or line["speed_up"] is None or quality is None:
            continue
        plain = line["config"]["config"] is None
        kind = "rival" if line["config"]["rival"] is not None else "fewer" if plain else "method"
        found.append(Point(line["setting"], line["speed_up"]["ratio"], quality["mean"], kind))
    return found


def front(found: Sequence[Point]) -> list[Point]:
    """The points that no other is at least as fast and as good as, from the slowest to the fastest."""
    best: list[Point] = []
    for point in sorted(found, key=lambda one: (-one.speed_up, -one.psnr_db)):
        if not best or point.psnr_db > best[-1].psnr_db:
            best.append(point)
    return best[::-1]


def draw(found: Sequence[Point], form: str) -> bytes:
    """The plot as a "png" or "svg" file.

    Raises:
        AccelError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise AccelError('the plot needs matplotlib: pip install "dit-accel[bench]"') from error
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "accel", "font.size": 9}):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        best = front(found)
        if len(best) > 1:
            axes.plot([p.speed_up for p in best], [p.psnr_db for p in best], color=_LINE, linewidth=1, alpha=0.6)
        for kind, (color, marker, title) in _KINDS.items():
            some = [point for point in found if point.kind == kind]
            if some:
                x, y = [p.speed_up for p in some], [p.psnr_db for p in some]
                axes.scatter(x, y, c=color, marker=marker, s=36, label=title, zorder=3)
        for point in found:
            weight = "bold" if point in best else "normal"
            where = (point.speed_up, point.psnr_db)
            said = axes.annotate(
                point.name, where, (5, 4), textcoords="offset points", fontsize=7.5, weight=weight, color=_INK
            )
            # A name may hold dollar signs, which are no formula.
            said.set_parse_math(False)
        axes.axvline(1, color=_FEWER, linewidth=0.8, linestyle=":")
        axes.set_xlabel("times as fast as the baseline (whole call)")
        axes.set_ylabel("mean PSNR to the baseline's clips, dB")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.18, y=0.12)
        axes.grid(alpha=0.25)
        if found:
            axes.legend(frameon=False, fontsize=8, loc="best")
        stream = io.BytesIO()
        # Without a date, so that the same figures give the same file.
        figure.savefig(stream, format=form, dpi=160, metadata={"Date": None} if form == "svg" else {})
    return stream.getvalue()
