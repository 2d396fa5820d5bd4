"""The command line: one thin Typer app over the packages, which it imports only when needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
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
app.add_typer(privacy_app, name="privacy")
app.add_typer(data_app, name="data")

StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study.yaml, or one of: quick, ild, chest-xray.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the study; repeatable."),
]
DataPath = Annotated[
    Path | None,
    typer.Option("--data", metavar="PATH", help="The images: a manifest.csv, or ILD trees."),
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


@data_app.command("phantom")
def data_phantom(
    kind: Annotated[str, typer.Argument(metavar="ild", help="Which data set to imitate.")],
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that isn't there yet.")
    ],
    patients: Annotated[int, typer.Option(min=1, help="Patients over all hospitals.")] = 110,
    hospitals: Annotated[int, typer.Option(min=1, help="Number of hospitals.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other patients.")] = 0,
) -> None:
    """Write a generated data set in the format of a real one."""
    with _edge():
        from common.errors import BadInput
        from simulations.phantoms.ild import IldPhantom, write_ild_phantom

        if kind != "ild":
            raise BadInput(f"data phantom: the kind must be ild; got {kind}.")
        phantom = IldPhantom(patients=patients, hospitals=hospitals, seed=seed)
        write_ild_phantom(directory, phantom)
        typer.echo(f"{directory}: {phantom.label}, {patients} patients, {hospitals} hospitals")


@app.command()
def schema(
    which: Annotated[str, typer.Argument(metavar="study|site", help="Which file.")],
    as_yaml: Annotated[
        bool, typer.Option("--yaml/--json", help="A commented file ready to edit, or JSON schema.")
    ] = True,
) -> None:
    """Print every key of a file with its default and its meaning."""
    with _edge():
        from common.config import SiteSettings, Study, schema_yaml
        from common.errors import BadInput

        schemas: dict[str, type[Study] | type[SiteSettings]]
        schemas = {"study": Study, "site": SiteSettings}
        if which not in schemas:
            raise BadInput(f"schema: the file must be study or site; got {which}.")
        chosen = schemas[which]
        typer.echo(schema_yaml(chosen) if as_yaml else _json(chosen.model_json_schema()))


@contextmanager
def _edge(hint: str = "") -> Iterator[None]:
    """Turn what can go wrong into a sentence and an exit code: 2 bad input, 1 the run failed."""
    from common.errors import BadInput, RunFailed

    try:
        yield
    except BadInput as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    except RunFailed as error:
        typer.echo(f"Failed: {error}", err=True)
        raise typer.Exit(1) from None
    except OSError as error:  # a full disk, a folder that vanished: the machine's, not the study's
        where = f": {error.filename}" if error.filename else ""
        typer.echo(f"Failed: {error.strerror or error}{where}. {hint}".rstrip(), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(f"\nStopped. {hint}".rstrip(), err=True)
        raise typer.Exit(1) from None


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
