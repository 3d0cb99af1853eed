"""How every command ends: one line for what went wrong, and the exit code that says which kind it was.

0: done. 1: the run failed. 2: bad usage, or refused (`AccelError`). 130: interrupted. With ACCEL_DEBUG=1 in the
environment, the traceback is printed before the line, and warnings of other packages are shown.
"""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.main import get_command

from accel.errors import AccelError, AccelWarning

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
_LONGEST = 400
# These say what went wrong in their text; of the others the name is needed too.
_PLAIN = ("OSError", "ValueError", "RuntimeError", "RunFailed", "WriteError")


class RunFailed(RuntimeError):
    """A run that began and gave nothing usable; the message is one line."""


def run(app: typer.Typer, arguments: list[str]) -> int:
    """Runs the application and turns whatever it raises into one line on stderr and an exit code."""
    with _notes():
        try:
            # typer turns an interruption into this very code, or, in older versions, into Abort.
            code = get_command(app)(list(arguments), prog_name="accel", standalone_mode=False) or DONE
            if code != INTERRUPTED:
                return code
            line = "interrupted"
        except (KeyboardInterrupt, typer.Abort):
            code, line = INTERRUPTED, "interrupted"
        except Exception as error:
            code, line = _failure(error)
    if code == INTERRUPTED:
        typer.echo(f"accel: {line}", err=True)
    else:
        complain(line)
    return code


def complain(text: str) -> None:
    """What went wrong, on one line of stderr."""
    typer.echo(f"accel: error: {text}", err=True)


def note(text: str) -> None:
    """A remark on stderr, on one line."""
    typer.echo(f"accel: note: {' '.join(text.split())}", err=True)


def debugging() -> bool:
    """Whether the user asked to see tracebacks."""
    return os.environ.get("ACCEL_DEBUG", "") not in ("", "0")


def one_line(text: str) -> str:
    """Another package's message without line breaks, of bounded length."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _LONGEST else flat[: _LONGEST - 1] + "…"


def in_one_line(error: Exception) -> str:
    """What went wrong, for a person."""
    if isinstance(error, AccelError):
        return " ".join(str(error).split())
    name = type(error).__name__
    if name == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "out of memory: try --cpu-offload model, --vae-tiling, fewer frames or a smaller size"
    text = one_line(str(error))
    if not text:
        return f"{name} (ACCEL_DEBUG=1 shows where)"
    return text if name in _PLAIN else f"{name}: {text}"


def _failure(error: Exception) -> tuple[int, str]:
    message = getattr(error, "format_message", None)
    if callable(message):
        # What typer raises for bad usage; its class lives in another package in each version.
        text = one_line(message()).rstrip(".").replace("Value error, ", "")
        return REFUSED, text[:1].lower() + text[1:] + _where_to_look(error)
    if isinstance(error, AccelError):
        return REFUSED, in_one_line(error)
    if debugging():
        traceback.print_exception(error)
    return FAILED, in_one_line(error)


def _where_to_look(error: Exception) -> str:
    """Whose help tells what is possible, where the message itself does not."""
    path = getattr(getattr(error, "ctx", None), "command_path", None)
    return f"; {path} --help lists what there is" if path and "argument" in str(error) else ""


@contextmanager
def _notes() -> Iterator[None]:
    """Prints every `AccelWarning` once, as a note; other warnings are for developers."""
    seen: set[str] = set()

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
        text = str(message)
        if text in seen:
            return
        seen.add(text)
        note(text if issubclass(category, AccelWarning) else f"{filename}:{lineno}: {category.__name__}: {text}")

    with warnings.catch_warnings():
        warnings.simplefilter("default" if debugging() else "ignore")
        warnings.simplefilter("always", AccelWarning)
        warnings.showwarning = show
        yield
