"""A federation on one machine, for a first try: its hospitals are made and signed in one step.

Here one person holds the keys of all; between hospitals each makes its own (`fedward site init`).
"""

from __future__ import annotations

import datetime
from pathlib import Path

from client.enrolment import ENROLMENT, init_site
from common.config import load_federation
from common.files import write_atomically
from server.federation import KITS, provision, sign


def make_trial(file: Path, *, now: datetime.datetime) -> list[Path]:
    """Provision, and enrol every site that isn't yet, in folders of their names beside the file.

    Args:
        file: federation.yaml.
        now: certificates are valid from an hour before.

    Returns:
        Each site's settings, site.yaml, ready to be edited.

    Raises:
        BadInput: as of provisioning, `fedward site init` and signing.
    """
    provision(file, now=now)
    federation, folder = load_federation(file), file.absolute().parent
    for name in federation.sites:
        if name not in federation.enrolled:
            init_site(folder / KITS / name, out=folder / name)
            signed = sign(file, folder / name / ENROLMENT, now=now)
            write_atomically(folder / name / "site.pem", signed.certificate.read_bytes())
    return [folder / name / "site.yaml" for name in federation.sites]
