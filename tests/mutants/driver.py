"""Run tests against one mutated module at a time: each in a child forked from one warm process.

Reads a JSON object a line: {"module", "before", "after", "tests"}; answers with one a line:
{"status": pytest's exit code, or a text where the mutant couldn't be made; "output": what it said}.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 240  # a job; less than the test that asked waits, so answers stay in step


class MutatedLoader(importlib.machinery.SourceFileLoader):
    """Compiles a module from changed source; never reads or writes bytecode."""

    source = b""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the one mutated module before anybody else does."""

    def __init__(self, module: str, path: Path, source: bytes) -> None:
        self.module, self.path, self.source = module, path, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module:
            return None
        loader = MutatedLoader(fullname, str(self.path))
        loader.source = self.source
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)


def mutate(module: str, before: str, after: str) -> Finder:
    """The finder of a module in which `before`, which stands there once, is `after`."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    source = path.read_text()
    if source.count(before) != 1:
        raise ValueError(f"{module} holds {source.count(before)} times: {before!r}")
    return Finder(module, path, source.replace(before, after).encode())


def run(job: dict[str, str], tests: list[str]) -> int:
    """Pytest's exit code on the mutated module; in the child, which ends by SIGALRM if it hangs.

    Asserts stay plain: where `CI` is set, pytest draws the whole difference of two models' bytes,
    which takes it longer than any timeout.
    """
    import pytest

    signal.alarm(LONGEST_SECONDS)
    sys.meta_path.insert(0, mutate(job["module"], job["before"], job["after"]))
    quiet = ("-q", "--no-header", "--assert=plain", "-p", "no:cacheprovider", "-o", "timeout=0")
    return int(pytest.main(["-x", *quiet, *tests]))


def main() -> None:
    """Import what is slow and not ours, then fork a child a job."""
    import hypothesis
    import numpy
    import opacus
    import opacus.accountants
    import pytest
    import scipy.optimize
    import scipy.stats
    import sklearn.metrics
    import torch
    import torch._dynamo
    import torchvision

    for warm in (hypothesis, numpy, opacus, pytest, scipy, sklearn, torch, torchvision):
        assert warm.__name__ in sys.modules
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    out = os.fdopen(os.dup(1), "w")
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        job = json.loads(line)
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if not child:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                code = 99
                try:
                    code = run(job, job["tests"])
                except BaseException as error:
                    print(repr(error), flush=True)
                finally:
                    sys.stdout.flush()
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            said.seek(0)
            output = said.read().decode(errors="replace")[-3000:]
        out.write(json.dumps({"status": os.waitstatus_to_exitcode(status), "output": output}))
        out.write("\n")
        out.flush()


if __name__ == "__main__":
    main()
