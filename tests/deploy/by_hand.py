"""Runs the Dockerfile's steps without an engine, in two copies of a bare system; then the image.

    debootstrap --variant=minbase --include=python3-venv bookworm BASE
    ln -s /usr/bin/python3 BASE/usr/local/bin/python
    python tests/deploy/by_hand.py BASE WHEELHOUSE PLACE

BASE stands for the image that FROM names, WHEELHOUSE is of `make wheelhouse` (pip's only index:
there is no network), PLACE is a new folder for the stages. What is built is then run much as by
compose.yaml: as its user, without capabilities, on a read-only root; also without a network. It
needs root.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "container" / "Dockerfile"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.safetensors")  # as the ignore file says
# Bind mounts and /proc are seen by this process alone; the machine's /dev is left alone.
ALONE = (
    "unshare",
    "--mount",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--propagation",
    "private",
)
PREPARE = """\
set -eu
root=$1 wheelhouse=$2
mount --bind "$root" "$root"
mount -t proc none "$root/proc"
if [ -n "$wheelhouse" ]; then
  mount -t tmpfs -o mode=755 none "$root/mnt"
  mkdir "$root/mnt/wheelhouse"
  mount --bind "$wheelhouse" "$root/mnt/wheelhouse"
else
  for folder in data cache; do mount --bind "$root/$folder" "$root/$folder"; done
  mount -o remount,bind,ro "$root"
  mount -t tmpfs -o mode=1777,noexec,nosuid,nodev none "$root/tmp"
fi
shift 2
exec chroot "$root" "$@"
"""
TRIED = (
    "--help",
    "models",
    "simulate quick --no-baselines --rounds 1 --set simulation.phantom.patients=60 --out /data/run",
)


@dataclass
class Stage:
    """What a FROM begins."""

    root: Path
    folder: str = "/"
    user: str = "0:0"
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin"}
    )
    entry: list[str] = field(default_factory=list)

    def run(self, *command: str, wheelhouse: Path | None = None) -> None:
        """Run a command in it; on a read-only root, unless there are wheels to install."""
        uid, gid = self.user.split(":")
        who = ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--no-new-privs"]
        if wheelhouse is None:
            who += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
        there = ["env", "--chdir", self.folder, *command]
        index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/mnt/wheelhouse"} if wheelhouse else {}
        subprocess.run(
            [*ALONE, "sh", "-c", PREPARE, "sh", self.root, wheelhouse or "", *who, *there],
            env=self.environment | index,
            check=True,
        )


def steps(text: str) -> list[tuple[str, str]]:
    """Instructions with their arguments, each on one line."""
    whole = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [
        (kind, rest.strip()) for kind, rest in re.findall(r"^([A-Z]+) (.*)$", whole, re.MULTILINE)
    ]


def build(base: Path, wheelhouse: Path, place: Path) -> Stage:
    """Each step in order; the last stage."""
    stages: dict[str, Stage] = {}
    for kind, rest in steps(DOCKERFILE.read_text()):
        print(f"--- {kind} {rest}", flush=True)
        if kind == "FROM":
            name = rest.partition(" AS ")[2] or "last"
            stage = stages[name] = Stage(place / name)
            subprocess.run(["cp", "--archive", base, stage.root], check=True)
        elif kind == "RUN":
            stage.run("/bin/sh", "-c", rest, wheelhouse=wheelhouse)
        elif kind == "COPY":
            copy(rest.split(), stage, stages)
        elif kind == "ENV":
            pairs = dict(word.split("=", 1) for word in shlex.split(rest))
            stage.environment |= {
                k: v.replace("$PATH", stage.environment["PATH"]) for k, v in pairs.items()
            }
        elif kind == "USER":
            stage.user = rest
        elif kind == "WORKDIR":
            stage.folder = rest
            (stage.root / rest.strip("/")).mkdir(exist_ok=True)
        elif kind == "ENTRYPOINT":
            stage.entry = json.loads(rest)
        else:
            raise SystemExit(f"{kind}: not known here")
    return stage


def copy(words: list[str], stage: Stage, stages: dict[str, Stage]) -> None:
    """COPY of files and folders, from the repository or from a stage."""
    *sources, target = words
    if sources[0].startswith("--from="):
        here = stages[sources.pop(0).removeprefix("--from=")].root
        (source,) = sources
        subprocess.run(
            ["cp", "--archive", here / source.strip("/"), stage.root / target.strip("/")],
            check=True,
        )
        return
    for source in sources:
        # An absolute target, too, is below the stage's root and nowhere else.
        below = (
            target.strip("/") if target.startswith("/") else f"{stage.folder.strip('/')}/{target}"
        )
        path, there = ROOT / source, stage.root / below
        if path.is_dir():
            shutil.copytree(path, there, ignore=LEFT_OUT)
        else:
            shutil.copy(path, there)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build and run the container's image by hand.")
    for name in ("base", "wheelhouse", "place"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    given.place.mkdir()
    image = build(given.base.absolute(), given.wheelhouse.absolute(), given.place.absolute())
    for words in TRIED:
        print(f"--- as {image.user}: {words}", flush=True)
        image.run(*image.entry, *words.split())
    image.run(
        "sh", "-c", "! touch /opt/fedward/x && ! touch /etc/x && touch /data/x /cache/x /tmp/x"
    )
    print("--- nothing but /data, /cache and /tmp could be written")


if __name__ == "__main__":
    main()
