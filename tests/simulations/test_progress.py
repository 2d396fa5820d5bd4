"""What people see while a run works: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import logging

import pytest

from simulations.progress import shown

LOG = logging.getLogger("fedward.test")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def printed(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *, quiet: bool = False) -> str:
    """What a run of two rounds shows on standard error."""
    monkeypatch.setattr("sys.stderr", stream)
    with shown(quiet=quiet):
        LOG.info("round %d of 2", 1, extra={"round_number": 1, "rounds": 2, "fold": 0})
        LOG.warning("site [north] was left out")
    LOG.info("afterwards")
    return stream.getvalue()


def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line a message, without control characters, and none after the run."""
    lines = printed(monkeypatch, io.StringIO()).splitlines()
    assert lines == ["round 1 of 2", "site [north] was left out"]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are printed as they are, above a bar that counts rounds."""
    monkeypatch.setenv("TERM", "xterm-256color")
    text = printed(monkeypatch, Terminal())
    assert "round 1 of 2" in text
    assert "site [north] was left out" in text
    assert "1/2" in text
    assert "afterwards" not in text


def test_only_warnings_beside_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that reads standard output is told no news."""
    assert printed(monkeypatch, Terminal(), quiet=True) == "site [north] was left out\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(28, "No space left on device", "/srv/name-of-a-patient"),
            "No space left on device",
        ),
        (ValueError("a patient's name"), "ValueError"),
    ],
)
def test_why_something_failed_is_said_without_its_text(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    """What the system says, else what kind of error it was; an error's text may hold anything."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with shown(quiet=False):
        try:
            raise error
        except type(error):
            LOG.exception("a call failed")
    assert stream.getvalue() == f"a call failed: {said}\n"
