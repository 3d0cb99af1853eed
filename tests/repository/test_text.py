"""The project's text speaks of the project alone, and is finished."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.repository.tree import ROOT, tracked

TEXT = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
    ".cfg",
    ".json",
    ".html",
    ".css",
    ".sh",
    ".csv",
    ".svg",
    "",
}

# What no text may hold -> why. This file is the one place where these may stand.
BANNED = {
    r"(?<![\w.~-])/(?:work|root|home|Users|opt|mnt|srv)/\w": "a path of one machine",
    r"[A-Z]:\\Users": "a path of one machine",
    r"\bpypi\.org|pythonhosted\.org|download\.pytorch\.org|conda\.anaconda\.org|\bnpmjs\.|proxy\.golang": (
        "the host of a package registry: where packages come from is the user's setting"
    ),
    r"\blocalhost:\d|\b(?:10|192\.168|127)\.\d+\.\d+\.\d+": "the address of one machine",
    r"\b(?:TODO|FIXME|XXX|HACK)\b": "unfinished work: do it, or write it down where work is tracked",
    r"(?i)\blorem ipsum\b": "filler",
    r"(?i)\bsub-?agents?\b|\b(?:Claude|ChatGPT)\b|\bworkplace\b": "about how it was written",
    r"^(?:<<<<<<<|>>>>>>>) ": "a merge that was not finished",
}


def found_in(text: str) -> list[tuple[int, str, str]]:
    """Line number, match and reason of each banned pattern in a text."""
    return [
        (number, match.group(), why)
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, why in BANNED.items()
        if (match := re.search(pattern, line))
    ]


def test_nothing_banned() -> None:
    texts = [path for path in tracked() if path.suffix in TEXT and path != Path(__file__)]
    assert ROOT / "pyproject.toml" in texts
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {match!r} is {why}"
        for path in texts
        for number, match, why in found_in(path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "cd /home/somebody/accel",
        "see (/root/notes)",
        "pip install --index-url https://pypi.org/simple accel",
        "extra-index-url https://download.pytorch.org/whl/cpu",
        "# TODO: finish",
        "written by a subagent",
        ">>>>>>> theirs",
    ],
)
def test_the_check_sees(line: str) -> None:
    assert len(found_in(line)) == 1


@pytest.mark.parametrize("line", ["frame/work/piece", "docs/home/index", "a methodology", "hugging the optimum"])
def test_the_check_lets_pass(line: str) -> None:
    assert found_in(line) == []


def test_the_changelog_speaks_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert "Unreleased" in headings or version in headings


def test_one_version() -> None:
    import accel

    assert accel.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
