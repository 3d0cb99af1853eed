"""What diffusers and transformers say while they work, in the command line's own form."""

from __future__ import annotations

import logging
import os
import sys

from accel.cli.exits import note, one_line
from accel.cli.printing import Format


def quiet_libraries(model: str = "demo", form: Format = Format.HUMAN, *, silent: bool = False) -> None:
    """Turns the log lines of diffusers into notes, and those of its companions off.

    Progress bars are kept where a model that takes time to load is loaded before the eyes of a person. Must come before
    transformers is imported, since it speaks while it is.
    """
    bars = model != "demo" and form is Format.HUMAN and sys.stderr.isatty() and not silent
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    # It repeats a request that fails, with a line for each time; what came of them is in the exception.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    diffusers_logging.disable_default_handler()
    logger = logging.getLogger("diffusers")
    if not any(isinstance(handler, _Notes) for handler in logger.handlers):
        logger.addHandler(_Notes())
    for library in (diffusers_logging, transformers_logging):
        if bars:
            library.enable_progress_bar()
        else:
            library.disable_progress_bar()


class _Notes(logging.Handler):
    """Shows each warning of a library once, as one line."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno > logging.WARNING:
            # What is logged as an error is raised as well.
            return
        text = one_line(record.getMessage())
        if text not in self._seen:
            self._seen.add(text)
            note(f"{record.name.partition('.')[0]}: {text}")
