"""`accel generate --prompts` started again: what it takes for done, what it refuses, and what it says meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from accel.cli.job.claims import LOCK_FILE, Claims
from accel.errors import AccelError
from tests.cli.conftest import Accel, listing
from tests.cli.test_many_prompts import JOB, write

FIRST = "a red circle moving left"


def test_what_the_methods_refuse_leaves_no_folder(accel: Accel, tmp_path: Path) -> None:
    write(tmp_path, FIRST)
    before = listing(tmp_path)
    plain = [word for word in JOB if word not in ("--preset", "none")]
    refused = accel(*plain, "--attention", "pisa", "--cache", "flashblock")
    assert refused.code == 2 and "would both stand for the blocks that are not exact" in refused.err
    assert listing(tmp_path) == before


@pytest.mark.parametrize("kind", ["a folder", "read only"])
def test_a_lock_file_that_cannot_be_written_is_refused(kind: str, tmp_path: Path) -> None:
    if kind == "a folder":
        (tmp_path / LOCK_FILE).mkdir()
    elif os.geteuid() == 0:
        pytest.skip("nothing is read only for the superuser")
    else:
        (tmp_path / LOCK_FILE).touch(mode=0o444)
    with pytest.raises(AccelError, match=r"^cannot write .*\.accel\.lock, by which .*: (is a dir|permission)") as error:
        Claims(tmp_path)
    assert "\n" not in str(error.value)
