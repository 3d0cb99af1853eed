"""What was measured, as text for people."""

from __future__ import annotations

from typing import Any

from bench.kernels.measuring import Row
from bench.kernels.sizes import SIZES
from bench.kernels.table import NOT_TIMED, OPERATIONS

_HEAD = ("operation", "variant", "shape", "ms (20th to 80th percentile)", "GFLOP/s", "GB/s", "error", "beside")


def page(settings: dict[str, Any], rows: list[Row]) -> str:
    """Markdown: the settings, a table for each size, and below it what was not run or was wrong."""
    machine = ", ".join(f"{key}: {value}" for key, value in settings["machine"].items() if value is not None)
    others = ", ".join(f"{key}: {settings[key]}" for key in ("dtype", "density", "block_size"))
    best = settings["ceilings"]
    others += f"; a matrix product reaches {best['flops'] / 1e9:.0f} GFLOP/s, a copy {best['bandwidth'] / 1e9:.0f} GB/s"
    lines = ["# Operations of the kernels", "", f"Printed by `{settings['command']}`.", "", others, "", machine]
    for size in dict.fromkeys(row["size"] for row in rows):
        lines += ["", f"## {size}", "", SIZES[size].source]
        own = [row for row in rows if row["size"] == size]
        if any("ms" in row for row in own):
            lines += ["", _line(_HEAD), "|" + "---|" * len(_HEAD)]
            lines += [_line(_cells(row)) for row in own if "ms" in row]
        if said := [f"- {note}" for row in own for note in notes(row)]:
            lines += ["", *said]
    return "\n".join(lines) + "\n"


def progress(row: Row) -> str:
    """One line as soon as a row is there."""
    if "ms" not in row:
        return notes(row)[0]
    beside = "; ".join(_beside(name, rival) for name, rival in row["rivals"].items())
    return f"{row['size']}: {row['operation']}, {row['variant']} ({row['shape']}): {_ms(row)} ms; {beside}"


def notes(row: Row) -> list[str]:
    """What has to be said of a row beside its figures."""
    name = f"{row['operation']}, {row['variant']} ({row['shape']})"
    found = [f"{name}: {kind}: {row[kind]}" for kind in ("skipped", "failed") if kind in row]
    if row.get("correct") is False:
        found.append(
            f"{name}: wrong, error {_number(row['error'])} with the bound {row['bound']:g}: no speed-up is said"
        )
    return found + [f"{name}: {rival} does not run here: {why}" for rival, why in row.get("refused", {}).items()]


def listing() -> str:
    """The sizes and the operations that there are."""
    lines = ["Sizes:"]
    for name, size in SIZES.items():
        text = f", {size.text} of them text" if size.text else ""
        lines.append(f"  {name}: {size.tokens} tokens{text}, {size.heads} heads of {size.head_size}, ")
        lines[-1] += f"feed-forward {size.feed_forward} ({size.source})"
    lines += ["Operations:", *(f"  {name}" for name in OPERATIONS), "Not timed:"]
    return "\n".join([*lines, *(f"  {name}: {why}" for name, why in NOT_TIMED.items())])


def _cells(row: Row) -> tuple[str, ...]:
    flops = "" if row["flop_per_s"] is None else f"{row['flop_per_s'] / 1e9:.1f}"
    moved = f"{row['bytes_per_s'] / 1e9:.1f}"
    beside = "; ".join(_beside(name, rival) for name, rival in row["rivals"].items())
    return (row["operation"], row["variant"], row["shape"], _ms(row), flops, moved, _number(row["error"]), beside)


def _beside(name: str, rival: Row) -> str:
    said = "" if rival["speed_up"] is None else f": {rival['speed_up']['text']}"
    apart = "" if rival["apart"] is None else f", apart {_number(rival['apart'])}"
    return f"{name} {rival['ms']:.3g} ms{said}{apart}"


def _ms(row: Row) -> str:
    return f"{row['ms']:.3g} ({row['ms_p20']:.3g} to {row['ms_p80']:.3g})"


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.1e}" if value else "0"


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
