"""Quality against speed: which settings nothing else beats in both, and the plot of all."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from accel.errors import AccelError

_OURS, _FEWER, _RIVAL, _LINE, _INK = "#0b6e4f", "#8a8a8a", "#b5651d", "#0b6e4f", "#222222"
# Points above are drawn at this height with their figure, so that the others are told apart; chosen by us.
_MOST_DB = 60.0
_KINDS = {
    "method": (_OURS, "o", "Accel"),
    "fewer": (_FEWER, "s", "plain, fewer steps"),
    "rival": (_RIVAL, "^", "rival"),
}


@dataclass(frozen=True)
class Point:
    """A setting: how many times as fast as the baseline, and its mean PSNR in dB.

    `faster` is False where noise could be all that it is faster by, and where it is slower. `kind` is "method", "fewer"
    (the plain pipeline with fewer steps) or "rival".
    """

    name: str
    speed_up: float
    psnr_db: float
    kind: str
    faster: bool


def points(lines: Sequence[dict[str, Any]]) -> list[Point]:
    """Those lines of a benchmark of which a speed-up may be said, and whose clips differ from the baseline's."""
    found = []
    for line in lines:
        quality = line["quality"].get("psnr_db")
        if line["baseline"] or line["speed_up"] is None or quality is None:
            continue
        found.append(Point(line["setting"], line["speed_up"]["ratio"], quality["mean"], kind_of(line), faster(line)))
    return found


def faster(line: dict[str, Any]) -> bool:
    """Whether a line is faster than the baseline by more than noise; of too few pairs to tell that, by its ratio."""
    said = line["speed_up"]
    return said is not None and said["ratio"] > 1 and said["measurable"] is not False


def kind_of(line: dict[str, Any]) -> str:
    """Whether a line of a benchmark is of a "method" of Accel, a "rival", or the plain pipeline with "fewer" steps."""
    if line["config"]["rival"] is not None:
        return "rival"
    return "fewer" if line["config"]["config"] is None else "method"


def front(found: Sequence[Point]) -> list[Point]:
    """The points that no other is at least as fast and as good as, from the slowest to the fastest.

    One that is no faster than the baseline, or by no more than noise, is none of them: the baseline has its own clips.
    """
    best: list[Point] = []
    for point in sorted(found, key=lambda one: (-one.speed_up, -one.psnr_db)):
        if point.faster and (not best or point.psnr_db > best[-1].psnr_db):
            best.append(point)
    return best[::-1]


def check_drawing() -> None:
    """Refuses before any work where no plot can be drawn.

    Raises:
        AccelError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise AccelError('the plot needs matplotlib: pip install "dit-accel[bench]"') from error


def draw(found: Sequence[Point], form: str, named: Collection[str] | None = None) -> bytes:
    """The plot as a "png" or "svg" file, with the names of the points that `named` has; None for all.

    Raises:
        AccelError: matplotlib is not installed.
    """
    check_drawing()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "accel", "font.size": 9}):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        best = front(found)
        if len(best) > 1:
            axes.plot([p.speed_up for p in best], [_height(p) for p in best], color=_LINE, linewidth=1, alpha=0.6)
        for kind, (color, marker, title) in _KINDS.items():
            some = [point for point in found if point.kind == kind]
            if some:
                x, y = [p.speed_up for p in some], [_height(p) for p in some]
                axes.scatter(x, y, c=color, marker=marker, s=36, label=title, zorder=3)
        for point in found if named is None else [point for point in found if point.name in named]:
            weight = "bold" if point in best else "normal"
            where = (point.speed_up, _height(point))
            name = point.name if point.psnr_db <= _MOST_DB else f"{point.name} ({point.psnr_db:.0f} dB)"
            said = axes.annotate(
                name, where, (5, 4), textcoords="offset points", fontsize=7.5, weight=weight, color=_INK
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


def _height(point: Point) -> float:
    return min(point.psnr_db, _MOST_DB)
