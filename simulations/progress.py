"""What a run shows while it works: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Note: TypeAlias = Callable[[int], str]

_LOGGER = logging.getLogger("fedward")


@contextmanager
def shown(*, quiet: bool, note: Note = lambda _: "") -> Iterator[None]:
    """Show fedward's own log on standard error while the block runs.

    Args:
        quiet: show warnings only, since the output is for a program.
        note: what to add to the line of a round, by its number.
    """
    handler = _bar() if sys.stderr.isatty() and not quiet else logging.StreamHandler()
    handler.setFormatter(_Formatter(note))
    before = _LOGGER.level, _LOGGER.propagate
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.WARNING if quiet else logging.INFO)
    _LOGGER.propagate = False
    logging.getLogger("flwr").setLevel(logging.ERROR)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(before[0])
        _LOGGER.propagate = before[1]
        handler.close()


class _Formatter(logging.Formatter):
    """A record's message, with the note where it counts a round."""

    def __init__(self, note: Note) -> None:
        super().__init__()
        self._note = note

    def format(self, record: logging.LogRecord) -> str:
        number = getattr(record, "round_number", None)
        said = record.getMessage() + ("" if number is None else self._note(number))
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return said
        # Not an exception's own text, which may hold anything; what the system says is its own.
        why = error.strerror if isinstance(error, OSError) else None
        return f"{said}: {why or type(error).__name__}"


def _bar() -> logging.Handler:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    return _BarHandler(progress)


class _BarHandler(logging.Handler):
    """Records that count rounds move the bar; all are printed above it."""

    def __init__(self, progress: object) -> None:
        from rich.progress import Progress

        assert isinstance(progress, Progress)
        super().__init__()
        self._progress = progress
        self._task = progress.add_task("reading the data", total=None)
        progress.start()

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.console.print(self.format(record), markup=False, highlight=False)
        rounds = getattr(record, "rounds", None)
        if rounds is not None:
            self._progress.update(
                self._task,
                description="rounds",
                completed=getattr(record, "round_number", 0),
                total=rounds,
            )

    def close(self) -> None:
        self._progress.stop()
        super().close()
