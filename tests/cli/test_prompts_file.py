"""The file of `--prompts`: what is a prompt, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel.cli.job.prompts import Line, read
from accel.errors import AccelError


def written(folder: Path, content: str | bytes) -> Path:
    file = folder / "p.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_text_and_json_lines_blanks_and_comments(tmp_path: Path) -> None:
    content = 'a red circle \n\n  # not this\n {"prompt": " kept ", "seed": 3, "guidance_scale": 2}\n"quoted" [words]'
    assert read(written(tmp_path, content)) == [
        Line(1, "a red circle"),
        Line(4, " kept ", {"seed": 3, "guidance_scale": 2}),
        Line(5, '"quoted" [words]'),
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_endings_of_lines_and_the_mark_of_byte_order(ending: str, mark: bytes, tmp_path: Path) -> None:
    text = ending.join(["# comment", "ein roter Kreis – groß", "", "赤い円"])
    found = read(written(tmp_path, mark + text.encode()))
    assert found == [Line(2, "ein roter Kreis – groß"), Line(4, "赤い円")]


def test_only_real_ends_of_lines_count(tmp_path: Path) -> None:
    # Characters at which Python splits lines, and editors do not.
    text = "one\u2028still one\x0b and\x85 more\ntwo"
    assert [line.number for line in read(written(tmp_path, text))] == [1, 2]


def test_a_large_file(tmp_path: Path) -> None:
    found = read(written(tmp_path, "".join(f"circle {n}\n" for n in range(10_000)) + "x" * 1_000_000))
    assert len(found) == 10_001 and found[9_999] == Line(10_000, "circle 9999") and len(found[-1].prompt) == 1_000_000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "p.txt has no prompts; write one on each line"),
        ("\n # only this\n", "has no prompts"),
        (b"\xff\xfea\0", "is not a text file in UTF-8"),
        (b"a\0b\0", "is not a text file in UTF-8"),
        ("fine\n{nope}", "p.txt, line 2: this is not valid JSON (expecting property name enclosed in double quotes at"),
        ('{"prompt": "x"} trailing', "line 1: this is not valid JSON (extra data"),
        ("{}", 'there is no "prompt"'),
        ('{"seed": 1}', 'there is no "prompt"'),
        ('{"prompt": ""}', '"prompt" is empty'),
        ('{"prompt": " \\t"}', '"prompt" is empty'),
        ('{"prompt": ["x"]}', '"prompt" must be a text, not ["x"]'),
        ('{"prompt": null}', '"prompt" is null'),
        ('{"prompt": "x", "steps": 3}', 'no setting "steps" for a line; did you mean "num_inference_steps"?'),
        ('{"prompt": "x", "frames": 3}', 'did you mean "num_frames"?'),
        ('{"promt": "x"}', 'did you mean "prompt"?'),
        ('{"prompt": "x", "zzz": 3}', "there are prompt, negative_prompt, seed"),
        ('{"prompt": "x", "seed": "1"}', '"seed" must be a whole number, not "1"'),
        ('{"prompt": "x", "seed": 1.5}', '"seed" must be a whole number, not 1.5'),
        ('{"prompt": "x", "seed": true}', '"seed" must be a whole number, not true'),
        ('{"prompt": "x", "guidance_scale": "high"}', '"guidance_scale" must be a number, not "high"'),
        ('{"prompt": "x", "guidance_scale": NaN}', "NaN is not a number that JSON knows"),
        ('{"prompt": "x", "seed": 1, "seed": 2}', '"seed" is there twice'),
        ('{"prompt": "x", "output": " "}', '"output" is empty'),
        ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
        ('{"prompt": ' + "[" * 100_000, "this is not"),
        ('{"prompt": "x", "seed": ' + "9" * 5_000 + "}", "this is not JSON that can be read"),
    ],
)
def test_refused(content: str | bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(AccelError) as refused:
        read(written(tmp_path, content))
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(("name", "says"), [("gone.txt", "no such file"), ("", "is a directory")])
def test_files_that_cannot_be_read(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(AccelError, match=f"cannot read the prompts .*{says}"):
        read(tmp_path / name)
