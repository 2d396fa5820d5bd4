"""The command line: one thin Typer app over the packages, which it imports only when needed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from common.config import Study

HERE = Path(__file__).parent  # the packages lie beside this module, installed or not

app = typer.Typer(
    help="Federated learning for medical images: hospitals train together, only weights leave.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
privacy_app = typer.Typer(
    help="Differential privacy: what a study costs each hospital.", no_args_is_help=True
)
data_app = typer.Typer(help="Data sets.", no_args_is_help=True)
ledger_app = typer.Typer(
    help="A site's ledger: what its patients have lost; stays at the site.", no_args_is_help=True
)
site_app = typer.Typer(help="A hospital's side: what it allows, what left.", no_args_is_help=True)
federation_app = typer.Typer(
    help="The coordinator's side: who belongs to the federation.", no_args_is_help=True
)
app.add_typer(privacy_app, name="privacy")
privacy_app.add_typer(ledger_app, name="ledger")
app.add_typer(data_app, name="data")
app.add_typer(site_app, name="site")
app.add_typer(federation_app, name="federation")

StudyName = Annotated[
    str,
    typer.Argument(metavar="STUDY", help="A study.yaml, or one of: quick, ild, mrnet, chest-xray."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the study; repeatable."),
]
DataPath = Annotated[
    Path | None,
    typer.Option("--data", metavar="PATH", help="The images: a manifest.csv, ILD or MRNet trees."),
]
SitePath = Annotated[Path, typer.Argument(metavar="SITE.yaml", help="The hospital's own file.")]
FederationPath = Annotated[
    Path, typer.Argument(metavar="FEDERATION.yaml", help="The coordinator's own file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
def simulate(
    study: StudyName = "quick",
    engine: Annotated[str, typer.Option(help="How the sites run: inline, in this process.")] = (
        "inline"
    ),
    rounds: Annotated[int | None, typer.Option(help="Rounds; training.rounds.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all that is public.")] = None,
    data: DataPath = None,
    baselines: Annotated[
        bool, typer.Option(help="Also train the models that the federated one is compared with.")
    ] = True,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run directory; a new one in runs/.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Simulate a whole federation on this machine and evaluate its model."""
    changes = list(overrides or [])
    changes += [] if rounds is None else [f"training.rounds={rounds}"]
    changes += [] if seed is None else [f"seed={seed}"]
    with _edge():
        loaded = _study(study, changes, data)
        folder = out or _new_folder(loaded.name, resume=resume)
        with _edge(hint=f"Go on with the same command and --out {folder} --resume."):
            import simulations
            from simulations.progress import shown
            from simulations.report import text
            from simulations.statements import round_note

            with shown(quiet=as_json, note=round_note(loaded)):
                result = simulations.run(
                    loaded, out=folder, engine=engine, baselines=baselines, resume=resume
                )
        typer.echo(_json(result.as_json()) if as_json else text(result))
        if not as_json:
            typer.echo(f"\nReport: {folder / 'report.html'}\nNumbers: {folder / 'result.json'}")


@app.command()
def evaluate(
    models: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR|MODEL...", help="Runs or model files.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="PATH",
            help="A manifest.csv, ILD trees, a site.yaml, or a study.yaml that names its data.",
        ),
    ],
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="COLUMN", help="Also by this column's values; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write evaluation.json and report.html.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score models on data: per site and over all, with intervals."""
    with _edge():
        from simulations.evaluate import evaluate_models, text, write

        scored = evaluate_models(models, data=data, by=by or ())
        typer.echo(_json([one.as_json() for one in scored]) if as_json else text(scored))
        if out is not None:
            write(out, scored)


@app.command("models")
def list_models(
    probe: Annotated[
        bool, typer.Option("--probe", help="Also take a training step of each on this machine.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the models, what each is for and what it costs under privacy."""
    with _edge():
        if not probe:
            from common.catalogue import CATALOGUE, text

            lines = {name: model.as_json() for name, model in CATALOGUE.items()}
            typer.echo(_json(lines) if as_json else text())
            return
        from simulations import probe as probing

        with _counting("steps") as count:
            probes = probing.probe_models(on_step=count)
        lines = {one.name: one.as_json() for one in probes}
        typer.echo(_json(lines) if as_json else probing.text(probes))


@app.command()
def server(
    study: StudyName,
    federation: Annotated[
        Path,
        typer.Option("--federation", metavar="FILE", help="federation.yaml: sites, address, keys."),
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run directory; the same one again goes on there."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Without --out: go on with the last run in runs/.")
    ] = False,
) -> None:
    """Run a study with the hospitals of a federation, over the network.

    Ctrl-C or SIGTERM stops it, and the same command goes on; SIGUSR1 pauses it, SIGUSR2 ends the
    pause.
    """
    with _edge():
        loaded = _study(study, list(overrides or []), None)
        folder = out or _new_folder(loaded.name, resume=resume)
        with _stoppable(), _edge(hint=f"Go on with the same command and --out {folder}."):
            from server.serve import serve
            from simulations.progress import shown

            with shown(quiet=False):
                serve(loaded, federation, out=folder)
        typer.echo(f"Report:  {folder / 'report.html'}")
        typer.echo(f"Numbers: {folder / 'result.json'}")


@app.command()
def watch(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="The --out of a simulation or a server.")
    ],
) -> None:
    """Watch a study on the terminal, running or finished: rounds, sites, curves, privacy, faults.

    Ends with the study, with exit code 1 once no process is at work on it, or by Ctrl-C, which
    stops nothing else.
    """
    with _edge():
        from server.watch import watch as show
        from simulations.statements import spent_so_far

        with suppress(KeyboardInterrupt):
            show(run_dir, spent=spent_so_far)


@privacy_app.command("plan")
def privacy_plan(
    study: StudyName,
    data: DataPath = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show sigma and epsilon for every site before anything runs."""
    with _edge():
        loaded = _study(study, overrides or [], data)
        from simulations.planning import plan_study

        planned = plan_study(loaded)
        typer.echo(_json(planned.as_json()) if as_json else planned.text())


@ledger_app.command("show")
def ledger_show(site: SitePath, as_json: AsJson = False) -> None:
    """Show by study what the worst-off patient has lost, and what is left of the budget."""
    with _edge():
        from client.ledger_commands import show
        from common.config import load_site

        shown = show(load_site(site))
        typer.echo(_json(shown.as_json()) if as_json else shown.text())


@ledger_app.command("verify")
def ledger_verify(
    site: SitePath,
    head: Annotated[
        str | None,
        typer.Option(metavar="COUNT:HASH", help="What somebody remembers; beside the receipts."),
    ] = None,
) -> None:
    """Look for anything that was changed, torn, cut off or put back; exit code 1 if so."""
    with _edge():
        from client.ledger_commands import verify
        from common.config import load_site

        typer.echo(f"The ledger is whole; its head is {verify(load_site(site), head)}")


@ledger_app.command("restore")
def ledger_restore(
    site: SitePath,
    studies: Annotated[
        list[Path] | None,
        typer.Option(
            "--study",
            metavar="STUDY.yaml",
            help="A study that may have run and that the state folder doesn't know; repeatable.",
        ),
    ] = None,
    heads: Annotated[
        list[str] | None,
        typer.Option(
            "--head",
            metavar="COUNT:HASH",
            help="A head of the lost receipts that a server remembers (the log says it); "
            "repeatable.",
        ),
    ] = None,
) -> None:
    """Go on from a backup, or with a new ledger: charges all of every approved study first.

    Approved are those that `fedward site status` lists so, or as withdrawn, and those named here.
    What was spent since the backup is unknown, but at most that. Each use charges it again. Heads
    that are given up by it are listed by `fedward site receipts`.
    """
    with _edge():
        from client.ledger_commands import restore, to_charge
        from common.config import load_site, load_study

        settings, now = load_site(site), datetime.now(UTC)
        loaded = to_charge(settings, [load_study(path) for path in studies or ()])
        head = restore(settings, loaded, receipts_heads=heads or [], now=now)
        typer.echo(f"Studies charged whole: {len(loaded)}. The ledger's head is {head}")


@data_app.command("phantom")
def data_phantom(
    kind: Annotated[str, typer.Argument(metavar="ild|mrnet", help="Which data set to imitate.")],
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that isn't there yet.")
    ],
    patients: Annotated[
        int | None, typer.Option(min=1, help="Patients (mrnet: exams) over all hospitals.")
    ] = None,
    hospitals: Annotated[int, typer.Option(min=1, help="Number of hospitals.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other patients.")] = 0,
    shift: Annotated[
        float, typer.Option(min=0, max=2, help="How much hospitals differ; 0: exchangeable.")
    ] = 1.0,
    label_noise: Annotated[
        float, typer.Option(min=0, max=0.05, help="Share of the labels that are wrong.")
    ] = 0.0,
) -> None:
    """Write a generated data set in the format of a real one."""
    with _edge():
        from common.config import IldPhantomConfig, MrnetPhantomConfig, parse
        from common.errors import BadInput
        from simulations.phantoms import described, phantom_of, write_phantom

        said = {"hospitals": hospitals, "seed": seed, "shift": shift, "label_noise": label_noise}
        counted = {} if patients is None else {"exams" if kind == "mrnet" else "patients": patients}
        if kind == "ild":
            phantom = phantom_of(parse(IldPhantomConfig, said | counted, where="data phantom"))
        elif kind == "mrnet":
            phantom = phantom_of(parse(MrnetPhantomConfig, said | counted, where="data phantom"))
        else:
            raise BadInput(f"data phantom: the kind must be ild or mrnet; got {kind}.")
        write_phantom(directory, phantom)
        typer.echo(f"{directory}: {described(phantom)}")


@data_app.command("pull")
def data_pull(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The PACS: https://pacs.example.org/dicom-web.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where images/ and manifest.csv go, or go on.")
    ],
    modality: Annotated[
        list[str], typer.Option(metavar="CODE", help="DICOM Modality: CT, MR, DX; repeatable.")
    ],
    listed: Annotated[
        Path | None,
        typer.Option(
            "--list",
            metavar="FILE",
            help="Only these: a line PatientID, AccessionNumber or StudyInstanceUID, "
            "then one a line.",
        ),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option("--from", metavar="DAY", formats=["%Y-%m-%d"], help="First day of studies."),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option("--to", metavar="DAY", formats=["%Y-%m-%d"], help="Last day of studies."),
    ] = None,
    study_description: Annotated[
        str, typer.Option(metavar="TEXT", help="Only such studies; * and ? are wildcards.")
    ] = "*",
    series_description: Annotated[
        str, typer.Option(metavar="TEXT", help="Only such series; * and ? are wildcards.")
    ] = "*",
    site: Annotated[
        str, typer.Option(metavar="NAME", help="What the column site says; else there is none.")
    ] = "",
    label: Annotated[
        str, typer.Option(metavar="NAME", help="The class of all that is new; else fill it in.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most N studies, to try it.")
    ] = None,
) -> None:
    """Fetch de-identified series from a PACS (DICOMweb); the same command again goes on.

    A password comes from the environment: FEDWARD_DICOMWEB_USER and FEDWARD_DICOMWEB_PASSWORD, or
    FEDWARD_DICOMWEB_TOKEN; a hospital's own authority by FEDWARD_DICOMWEB_CA (a PEM file).
    """
    with _edge(hint="Run the same command again: it goes on where it stopped."):
        from client.dicomweb import open_service
        from client.pull import Query, pull, read_list
        from common.errors import RunFailed

        query = Query(
            modalities=tuple(modality),
            listed=None if listed is None else read_list(listed),
            since=since and since.date(),
            until=until and until.date(),
            study_description=study_description,
            series_description=series_description,
        )
        with _counting("series") as count:
            pulled = pull(
                open_service(url, os.environ),
                query,
                out,
                site=site,
                label=label,
                limit=limit,
                on_series=count,
            )
        typer.echo(pulled.text())
        if pulled.failure():
            raise RunFailed(pulled.failure())


@data_app.command("check")
def data_check(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Images: a folder, a manifest.csv, ILD or MRNet trees, a site.yaml, a study.yaml.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Look for what a site must mend before it joins; changes nothing.

    Counts by class and patient; unreadable, double and contradictory images; and what tells who
    a patient is (DICOM PS3.15 Annex E). Exit code 1 where something has to be mended. The report
    stays at the site: names of files and folders can identify.
    """
    with _edge():
        from client.check import check

        with _counting("files") as count:
            checked = check(path, on_file=count)
        typer.echo(_json(checked.as_json()) if as_json else checked.text())
        if checked.mend:
            raise typer.Exit(1)


@data_app.command("manifest")
def data_manifest(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="DICOM files, images or both.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The manifest, in DIR or above it; DIR/manifest.csv if not given."
        ),
    ] = None,
    site: Annotated[str, typer.Option(metavar="NAME", help="What the column site says.")] = "",
    folders: Annotated[
        str,
        typer.Option(
            metavar="patient|label",
            help="What the folders in DIR stand for; patient counts where no header names one.",
        ),
    ] = "",
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures", help="One line a file; else a folder of one CT, MR or PET series is one."
        ),
    ] = False,
) -> None:
    """Draft a manifest of DICOM files and images: fill in its labels; it is never overwritten."""
    with _edge():
        from client.draft import draft

        with _counting("files") as count:
            drafted = draft(
                directory,
                out or directory / "manifest.csv",
                site=site,
                folders=folders,
                pictures=pictures,
                on_file=count,
            )
        typer.echo(drafted.text())


@data_app.command("prune")
def data_prune(
    older_than: Annotated[
        int,
        typer.Option(
            "--older-than",
            metavar="DAYS",
            min=1,
            help="Also what was not used for so many days; it is made again when needed.",
        ),
    ] = 30,
) -> None:
    """Remove from the cache what killed processes left, and what was not used for long."""
    with _edge():
        import time

        from common.data.cache import prune
        from common.files import cache_folder

        cache = cache_folder()
        pruned = prune(cache, unused_days=older_than, now_s=time.time())
        typer.echo(f"{cache}: {pruned.text()}")
        if pruned.stuck:
            raise typer.Exit(1)


StudyHash = Annotated[
    str,
    typer.Argument(metavar="HASH", help="The study's hash, or its first 8 or more digits."),
]


@site_app.command("init")
def site_init(
    kit: Annotated[
        Path, typer.Argument(metavar="KIT", help="The folder that the coordinator sent.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The site's folder; the kit's name, here.")
    ] = None,
) -> None:
    """Make a site of the coordinator's kit: settings, its own keys, and what it sends back.

    Run again it changes no key, and writes the enrolment anew (to renew the certificate).
    """
    with _edge():
        from client.enrolment import init_site

        typer.echo(init_site(kit, out=out).text())


@site_app.command("run")
def site_run(site: SitePath) -> None:
    """Take part in the federation's studies until stopped (Ctrl-C, SIGTERM)."""
    with _edge(), _stoppable():
        from client.app import app as client_app
        from client.link import run_site
        from common.config import load_site
        from simulations.progress import shown

        with shown(quiet=False):
            try:
                run_site(load_site(site), client_app)
            except KeyboardInterrupt:
                typer.echo("Stopped. The same command goes on.", err=True)


@site_app.command("check")
def site_check(
    site: SitePath,
    study: Annotated[
        str | None,
        typer.Option("--study", metavar="STUDY", help="Also: may it run here, what would leave."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look whether a site is ready to join, and at what would leave; sends nothing of it.

    Data, policy, state folder, keys, clock, device, privacy engine, ledger and receipts; and, where
    there is a `link`, whether the server would let the site in. Exit code 1 where something must
    be mended. The report stays at the site.
    """
    with _edge():
        from client.site_check import check_site

        asked = None if study is None else _study(study, [], None)
        with _counting("files") as count:
            checked = check_site(site, asked, on_file=count)
        typer.echo(_json(checked.as_json()) if as_json else checked.text())
        if checked.mend:
            raise typer.Exit(1)


@site_app.command("status")
def site_status(site: SitePath, as_json: AsJson = False) -> None:
    """Show every study that a server has asked for: what it would mean, and what was decided."""
    with _edge():
        from client.approval import seen_studies
        from client.steward import show, text
        from common.config import load_site

        settings = load_site(site)
        shown = [show(seen, settings) for seen in seen_studies(settings)]
        typer.echo(_json([one.as_json() for one in shown]) if as_json else text(shown))


@site_app.command("approve")
def site_approve(site: SitePath, study: StudyHash) -> None:
    """Let the site take part in a study that `status` has shown."""
    with _edge():
        import time

        from client.approval import approve
        from common.config import load_site

        approved = approve(load_site(site), study, now_s=time.time())
        typer.echo(f"Approved: study {approved.sha256} trains from the next message on.")


@site_app.command("withdraw")
def site_withdraw(site: SitePath, study: StudyHash) -> None:
    """End the site's part in a study, before its next message; what has left can't be undone."""
    with _edge():
        import time

        from client.approval import withdraw
        from common.config import load_site

        withdrawn = withdraw(load_site(site), study, now_s=time.time())
        typer.echo(f"Withdrawn: study {withdrawn.sha256} gets no further reply.")


@site_app.command("receipts")
def site_receipts(
    site: SitePath,
    verify: Annotated[
        bool, typer.Option("--verify", help="Say whether all is as it was written.")
    ] = False,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT:HASH",
            help="Verify, and compare with a head that the server or the journal remembers.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what has left the site, message after message, and what it refused.

    With --verify: exit code 1 where a line was changed, moved, put in, taken out or cut off.
    """
    with _edge():
        from client.receipts_table import list_receipts, verify_receipts
        from common.config import load_site

        settings = load_site(site)
        if not verify and head is None:
            listed = list_receipts(settings)
            typer.echo(_json(listed.as_json()) if as_json else listed.text())
            return
        verified = verify_receipts(settings, head)
        typer.echo(_json(verified.as_json()) if as_json else verified.text())
        if verified.problems:
            raise typer.Exit(1)


@federation_app.command("provision")
def federation_provision(
    file: FederationPath,
    trial: Annotated[
        bool,
        typer.Option("--trial", help="All on this machine: make and sign the sites too."),
    ] = False,
) -> None:
    """Make authority, certificates, keys and a kit for each site; what is there and good stays."""
    with _edge():
        if trial:
            from simulations.trial import make_trial

            made = "\n".join(f"  {path}" for path in make_trial(file, now=datetime.now(UTC)))
            typer.echo(f"The sites, for a trial; edit their data and policy:\n{made}")
        else:
            from server.federation import provision

            typer.echo(provision(file, now=datetime.now(UTC)).text())


@federation_app.command("sign")
def federation_sign(
    file: FederationPath,
    enrolment: Annotated[Path, typer.Argument(metavar="ENROLMENT.pem", help="What the site sent.")],
) -> None:
    """Let a site in, or renew its certificate."""
    with _edge():
        from server.federation import sign

        typer.echo(sign(file, enrolment, now=datetime.now(UTC)).text())


@federation_app.command("revoke")
def federation_revoke(
    file: FederationPath,
    site: Annotated[str, typer.Argument(metavar="SITE", help="Its name in the file.")],
) -> None:
    """Shut a site out at once, of running servers too."""
    with _edge():
        from server.federation import revoke

        typer.echo(revoke(file, site))


@app.command()
def schema(
    which: Annotated[str, typer.Argument(metavar="study|site|federation", help="Which file.")],
    as_yaml: Annotated[
        bool, typer.Option("--yaml/--json", help="A commented file ready to edit, or JSON schema.")
    ] = True,
) -> None:
    """Print every key of a file with its default and its meaning."""
    with _edge():
        from common.config import FederationFile, SiteSettings, Study, schema_yaml
        from common.errors import BadInput

        schemas: dict[str, type[Study] | type[SiteSettings] | type[FederationFile]]
        schemas = {"study": Study, "site": SiteSettings, "federation": FederationFile}
        if which not in schemas:
            raise BadInput(f"schema: the file must be study, site or federation; got {which}.")
        chosen = schemas[which]
        typer.echo(schema_yaml(chosen) if as_yaml else _json(chosen.model_json_schema()))


@contextmanager
def _counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of how many are done, of how many, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM end what runs as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _edge(hint: str = "") -> Iterator[None]:
    """Turn what can go wrong into a sentence and an exit code: 2 bad input, 1 the run failed."""
    from common.errors import BadInput, RunFailed

    try:
        yield
    except BadInput as error:
        typer.echo(f"Error: {_writable(error)}", err=True)
        raise typer.Exit(2) from None
    except RunFailed as error:
        typer.echo(f"Failed: {_writable(error)}", err=True)
        raise typer.Exit(1) from None
    except OSError as error:  # a full disk, a folder that vanished: the machine's, not the study's
        where = f": {error.filename}" if error.filename else ""
        said = f"Failed: {error.strerror or error}{where}. {hint}".rstrip()
        typer.echo(_writable(said), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(f"\nStopped. {hint}".rstrip(), err=True)
        raise typer.Exit(1) from None


def _writable(said: object) -> str:
    """Text with names of files that are no UTF-8, which a terminal would refuse, written out."""
    return str(said).encode("utf-8", "backslashreplace").decode()


def _study(name: str, overrides: list[str], data: Path | None) -> Study:
    """A study file, or one that fedward brings, with the command line's changes."""
    from common.config import load_study
    from common.errors import BadInput

    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        bundled = {file.stem: file for file in (HERE / "simulations/studies").glob("*.yaml")}
        if name not in bundled:
            known = ", ".join(sorted(bundled))
            raise BadInput(f"STUDY must be a .yaml file or one of {known}; got {name}.")
        path = bundled[name]
    if data is not None:
        overrides = [
            *overrides,
            f"simulation.data={json.dumps(str(data.absolute()))}",
            "simulation.phantom=null",
        ]
    return load_study(path, overrides)


def _new_folder(name: str, *, resume: bool) -> Path:
    """runs/NAME, or the next that is free; with --resume, the last that is there."""
    candidates = [Path("runs") / name] + [Path("runs") / f"{name}-{i}" for i in range(2, 10_000)]
    there = [path for path in candidates if path.exists()]
    if resume and there:
        return there[-1]
    return next(path for path in candidates if path not in there)


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, sort_keys=True)


def main() -> None:
    """The console command `fedward`."""
    app()


if __name__ == "__main__":
    main()
