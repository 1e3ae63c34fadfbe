"""Writing what the command line was asked to write; what cannot be written is found out before the work starts."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping

from ._cli_inputs import InputError
from ._files import check_writable


class OutputError(Exception):
    """The output cannot be written."""


def silence_stdout() -> None:
    """Nothing more can be said there: keep the interpreter from trying again, and complaining, when it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def writing(path: str, option: str = "--output") -> Iterator[None]:
    """Turn an OSError into an `OutputError` that names the option."""
    try:
        yield
    except OSError as error:
        name = "standard output" if path == "-" else repr(path)
        if path == "-":
            silence_stdout()
        raise OutputError(f"{option}: cannot write {name}: {error.strerror or error}") from None


def check_output(output: str, files: Mapping[str, str], option: str = "--output") -> None:
    """Find out before the long work whether its result can be kept, and that it overwrites no input."""
    if output == "-":
        return
    with writing(output, option):
        check_writable(output)
    for path in files.values():
        if os.path.isfile(output) and os.path.exists(path) and os.path.samefile(output, path):
            raise InputError(f"{option}: {output!r} is also an input and would be overwritten")
