"""Spans of time and counts in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """As in "45 s", "12 min" or "3 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def count(number: int, word: str) -> str:
    """As in "1 line" or "2,000 lines"."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
