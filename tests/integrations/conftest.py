"""One tiny Wan for all tests of stored weights, saved once as it is and once stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integrations.stored import config, load
from tests.methods.quantized import CASE


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is, in float32."""
    folder = tmp_path_factory.mktemp("original")
    CASE.build().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With its weights in NVFP4, rotated."""
    folder = tmp_path_factory.mktemp("stored")
    load(original, config()).save_pretrained(folder)
    return folder
