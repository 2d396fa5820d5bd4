"""Shared by the tests of deploy/: one real study over the link, with all that the site sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MOST_S = 120.0


@dataclass(frozen=True)
class Captured:
    """A study of one site over gRPC, as the site's end saw it."""

    out: Path  # of the server
    site: Path  # the site's folder
    calls: list[tuple[str, Any]] = field(default_factory=list)  # name and request, in order
    headers: list[tuple[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="session")
def captured(
    tmp_path_factory: pytest.TempPathFactory,
    write_tiny: Callable[..., Path],
    enrol: Callable[..., Path],
) -> Iterator[Captured]:
    """Two private rounds, the closing evaluation and the statement of a site that releases all."""
    from client.app import app
    from client.link import Connection, run_site
    from common.config import load_site, load_study
    from server.serve import serve

    folder = tmp_path_factory.mktemp("captured")
    tiny = write_tiny(folder / "tiny", {"alpha": 12})
    settings = (
        f"data: {tiny / 'manifest.csv'}\ndeclared_patients: 10\nrandomness: seeded-for-testing\n"
        "policy: {approval: automatic}\n"
        "release: {metrics: [loss, accuracy, balanced_accuracy, macro_auroc], counts: true}"
    )
    federation = enrol(folder / "federation", {"alpha": settings})
    found = Captured(folder / "run", federation.parent / "alpha")
    stop, call = threading.Event(), Connection._call

    def noted(self: Connection, name: str, request: Any, **more: float) -> Any:
        if stop.is_set():
            raise SystemExit
        copy = type(request)()
        copy.CopyFrom(request)
        found.calls.append((name, copy))
        found.headers.extend(self._authentication())
        return call(self, name, request, **more)

    def run() -> None:
        with suppress(SystemExit):
            run_site(load_site(found.site / "site.yaml"), app)

    study = load_study(tiny / "study.yaml", ["privacy.enabled=true", "model.name=cnn-small"])
    site = threading.Thread(target=run, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "_call", noted)
        site.start()
        try:
            serve(study, federation, out=found.out)
        finally:
            stop.set()
            site.join(MOST_S)
    assert not site.is_alive()
    return found
