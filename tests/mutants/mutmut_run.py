"""How much of what guards privacy the tests really hold: mutmut, by groups of files.

    python tests/mutants/mutmut_run.py [--share SHARE] [GROUP ...]

Copies the repository to a temporary folder, since mutmut writes beside the sources, and lets mutmut
run there, one process at a time. Prints what survived, then a table; exits with 1 where less than
85 % of a group was killed. Of a group with too many mutants for an evening a share is taken, by the
hash of their names: always the same ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT = Path(__file__).parents[2]
FOLDERS: Final = ("client", "common", "server", "simulations", "tests")
LEAST_KILLED: Final = 0.85
KILLED: Final = frozenset({"killed", "timeout", "segfault"})


@dataclass(frozen=True, slots=True)
class Group:
    """Files that are judged together, and the tests that judge them."""

    files: tuple[str, ...]
    tests: tuple[str, ...]
    without: str = "too_slow"  # in the names of tests that are too slow for this
    share: float = 1.0  # of the mutants


ACCOUNTS: Final = (
    "accounting", "epsilon", "lifetime", "mechanism", "noise", "not_covered", "plan", "randomness",
    "renyi", "sampling",
)  # fmt: skip
# Of test_budget.py what needs no hospital, which would take a minute a mutant.
BEGINNINGS: Final = (
    "a_study_is_begun_where_the_cap_allows_all_of_it",
    "what_was_begun_goes_on_until_the_cap",
    "what_others_have_spent_counts_at_the_start",
    "whom_later_rounds_touch_counts_at_the_start",
)
GROUPS: Final = {
    "site": Group(
        files=(
            "client/policy.py",
            "client/gate.py",
            "client/outbox.py",
            "client/receipts.py",
            "client/receipts_table.py",
        ),
        tests=(
            "tests/client/test_policy.py",
            "tests/client/test_gate.py",
            "tests/client/test_outbox.py",
            "tests/client/test_receipts.py",
            "tests/client/test_receipts_table.py",
        ),
    ),
    "ledger": Group(
        files=("client/ledger.py", "client/ledger_book.py", "client/ledger_commands.py"),
        tests=(
            *(f"tests/client/test_budget.py::test_{name}" for name in BEGINNINGS),
            "tests/client/test_ledger.py",
            "tests/client/test_ledger_commands.py",
        ),
        without="ten_thousand",
    ),
    # The two halves of common/privacy.
    "accounts": Group(
        files=tuple(f"common/privacy/{name}.py" for name in ACCOUNTS),
        tests=tuple(f"tests/common/privacy/test_{name}.py" for name in ACCOUNTS),
    ),
    "engines": Group(
        files=(
            "common/privacy/_opacus.py",
            "common/privacy/bookkeeping.py",
            "common/privacy/patient_sgd.py",
            "common/privacy/self_check.py",
        ),
        tests=(
            "tests/common/privacy/test_engines.py",
            "tests/common/privacy/test_patient_sgd.py",
            "tests/common/privacy/test_patient_sgd_volumes.py",
            "tests/common/privacy/test_self_check.py",
        ),
        share=0.25,
    ),
}
# A line that is nothing but a sentence for people isn't changed: tests don't pin its words.
SENTENCE: Final = r"^ *\"(?![A-Z]{4,} )[^\"]* [^\"]*\"[,)]*$"


@dataclass(frozen=True, slots=True)
class Tried:
    """One mutant that was tried."""

    name: str  # as mutmut calls it
    file: str
    status: str  # as mutmut calls it
    seconds: float  # by the wall clock
    change: str  # lines of a diff, if it survived

    @property
    def is_killed(self) -> bool:
        """Whether a test noticed."""
        return self.status in KILLED


def chosen(names: Iterable[str], share: float) -> list[str]:
    """A share of the names, in (0, 1], always the same: those whose hash is small."""
    return [
        name
        for name in names
        if int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < share * 2**64
    ]


def configuration(group: Group) -> str:
    """What mutmut reads in pyproject.toml."""
    said = {
        "source_paths": [*FOLDERS[:-1], "fedward.py"],
        "only_mutate": group.files,
        "do_not_mutate_patterns": [SENTENCE],
        "pytest_add_cli_args": [
            *("-p", "no:cacheprovider", "-p", "tests.mutants.fresh_caches"),
            *("-k", f"not {group.without}"),
        ],
        "pytest_add_cli_args_test_selection": group.tests,
        "timeout_constant": 5.0,  # seconds, added to what the tests took
        "timeout_multiplier": 5.0,
        "use_git_change_detection": False,
    }
    return "\n[tool.mutmut]\n" + "".join(f"{key} = {json.dumps(said[key])}\n" for key in said)


def mutants(file: str) -> list[str]:
    """The names of all mutants of a file; in the folder with the sources."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    made = mutate_file_contents(file, Path(file).read_text())
    return [get_mutant_name(Path(file), name) for name in made.mutant_names]


def result(name: str, file: str) -> Tried:
    """What became of a mutant; in the folder where mutmut ran."""
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code

    data = SourceFileMutationData(path=Path(file))
    data.load()
    status = status_by_exit_code[data.exit_code_by_key[name]]
    diff = [] if status in KILLED else get_diff_for_mutant(name, path=file).splitlines()[2:]
    change = "\n".join(line for line in diff if line[:1] in "+-")
    return Tried(name, file, status, data.durations_by_key.get(name) or 0.0, change)


def run(group: Group, share: float) -> list[Tried]:
    """Try a share of a group's mutants; in a copy of the repository of its own."""
    import mutmut.configuration

    with tempfile.TemporaryDirectory(prefix="fedward-mutants-") as folder:
        for name in FOLDERS:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, Path(folder, name), ignore=ignored)
        shutil.copy(ROOT / "fedward.py", folder)
        project = (ROOT / "pyproject.toml").read_text() + configuration(group)
        Path(folder, "pyproject.toml").write_text(project)
        before = Path.cwd()
        os.chdir(folder)
        mutmut.configuration.reset_config()
        file_of = {name: file for file in group.files for name in chosen(mutants(file), share)}
        print(f"{len(file_of)} mutants of {', '.join(group.files)}", flush=True)
        mutmut_run = subprocess.run(
            [Path(sys.executable).with_name("mutmut"), "run", "--max-children", "1", *file_of],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads don't survive a fork
        )
        if mutmut_run.returncode:
            sys.exit(mutmut_run.stdout[-5000:])
        tried = [result(name, file) for name, file in file_of.items()]
        os.chdir(before)
    return tried


def row(what: str, tried: Sequence[Tried]) -> tuple[str, ...]:
    """A line of the table."""
    status = Counter(one.status for one in tried)
    killed = sum(one.is_killed for one in tried)
    minutes = sum(one.seconds for one in tried) / 60
    score = f"{100 * killed / len(tried):.1f} %"
    numbers = len(tried), killed, status["timeout"], len(tried) - killed
    return (what, *map(str, numbers), score, f"{minutes:.1f}")


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, help="of the mutants of each group, in (0, 1]")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    given = parser.parse_args()
    rows, too_low = [], []
    for name in given.groups or GROUPS:
        tried = run(GROUPS[name], given.share or GROUPS[name].share)
        for one in tried:
            if not one.is_killed:
                print(f"{one.name} ({one.status})", one.change, "", sep="\n")
        for file in sorted({one.file for one in tried}):
            rows.append(row(file, [one for one in tried if one.file == file]))
        rows.append(row(f"all of {name}", tried))
        if sum(one.is_killed for one in tried) < LEAST_KILLED * len(tried):
            too_low.append(name)
    sys.path.insert(0, str(ROOT))
    from common.report import format_table

    header = ("", "mutants", "killed", "of them late", "survived", "score", "minutes")
    print(format_table(header, rows))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{(used.ru_utime + used.ru_stime) / 60:.0f} minutes of CPU in all.")
    if too_low:
        print(f"Less than {LEAST_KILLED:.0%} killed: {', '.join(too_low)}.")
    return bool(too_low)


if __name__ == "__main__":
    sys.exit(main())
