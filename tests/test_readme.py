"""The READMEs are true: commands are taken, targets and links exist, code runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

import fedward

ROOT = Path(__file__).parents[1]
READMES = sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("[!.]*/*.md"))
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def _commands(program: str) -> list[str]:
    lines = [line for block in _blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith(f"{program} ")]


@pytest.mark.parametrize("line", _commands("fedward"))
def test_each_command_is_taken_by_the_command_line(line: str) -> None:
    """Every `fedward` line of the README names a command with options that it has."""
    words = shlex.split(line.partition(">")[0], comments=True)[1:]
    command = typer.main.get_command(fedward.app)
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)  # raises a usage error otherwise


def test_each_make_target_exists() -> None:
    """Every `make` line of the README names a target of the Makefile."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = {shlex.split(line, comments=True)[1] for line in _commands("make")}
    assert named
    assert named <= set(targets)


@pytest.mark.parametrize("page", READMES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    """Every relative link of a README leads to a file of the repository."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", READMES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_that_a_readme_names_exist(page: Path) -> None:
    """Every `path/to/module.py` that a README names is there, from its folder or the top."""
    named = re.findall(r"`([a-z_/]+\.(?:py|yaml))", page.read_text())
    own = ("study.yaml", "site.yaml", "federation.yaml")  # files that users write
    missing = [
        name
        for name in named
        if name not in own
        and not (ROOT / name).exists()
        and not list(page.parent.glob(f"**/{name}"))
    ]
    assert missing == []


def test_the_python_example_runs(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's Python, run beside a small study, trains and loads a model."""
    monkeypatch.chdir(tiny)
    (code,) = _blocks("python")
    names: dict[str, object] = {}
    exec(code, names)
    assert (tiny / "runs/mine/report.html").is_file()
    assert not names["model"].training  # type: ignore[attr-defined] # an nn.Module
