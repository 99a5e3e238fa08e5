"""The command line. Slow imports are inside the commands, so that --help is fast."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from simtrail.errors import InputError, TrainingError, listed

app = typer.Typer(
    help="From a folder of images to a registered SimCLR encoder, with a record of every step.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data = typer.Typer(help="Bring data into data/, which data.dvc versions.", no_args_is_help=True)
app.add_typer(data, name="data")
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="a value instead of that in params.yaml; can be given repeatedly"),
]

Uri = Annotated[str, typer.Argument(help="an encoder: models:/NAME@champion, models:/NAME/VERSION, or a folder")]
Images = Annotated[list[str], typer.Argument(help="images: folders, files, patterns, lists (.txt), tables with a path")]
Out = Annotated[Path, typer.Option("--out", "-o", help="folder for the result")]


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="a new or empty folder")]) -> None:
    """Start a project of your own: a folder with params.yaml and the pipeline, as a git and DVC repository."""
    from simtrail.pipeline.project import init

    init(folder)
    print(
        f"{folder}: a new project. Next:\n  cd {folder}\n  simtrail data add PATH --name images    # a folder of images"
        "\n  dvc repro"
    )


@app.command()
def settings(settings: Settings = None) -> None:
    """Write the parameters of every stage, defaults included, to artifacts/settings; DVC stages depend on them."""
    from simtrail.pipeline import stages

    stages.settings(settings or ())


@app.command()
def check(settings: Settings = None) -> None:
    """List all files of the dataset in a manifest and validate them; a page lists every offending file."""
    from simtrail.pipeline import stages

    stages.check(settings or ())


@app.command()
def prepare(settings: Settings = None) -> None:
    """Decode, mask, resize and pack the images; split them by group."""
    from simtrail.pipeline import stages

    stages.prepare(settings or ())


@app.command()
def plan(settings: Settings = None) -> None:
    """Choose every parameter that is auto: rules, measurements, and a pilot of the recipes of views."""
    from simtrail.pipeline import stages

    stages.plan(settings or ())


@app.command()
def pretrain(settings: Settings = None) -> None:
    """Train the encoder with SimCLR on the training split; continues where it was interrupted."""
    from simtrail.pipeline import stages

    stages.pretrain(settings or ())


@app.command()
def preview(
    images: Annotated[int, typer.Option(min=1, max=64, help="number of training images")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="seed that chooses the images and their views")] = 0,
    recipe: Annotated[str | None, typer.Option(help="a recipe instead of pretrain.recipe: photograph, sign, …")] = None,
    settings: Settings = None,
) -> None:
    """Draw training images and their augmented views with the present settings: artifacts/preview/views.png."""
    from simtrail.pipeline import stages

    stages.preview(images, seed, recipe, settings or ())


@app.command()
def embed(
    uri: Annotated[
        str | None,
        typer.Argument(help="an encoder: models:/NAME@champion, models:/NAME/VERSION, or a folder; none: the stage"),
    ] = None,
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="images: folders, files, patterns, lists (.txt) and tables with a column path"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="file for the features: .parquet, .npy, .csv; or a folder, for the projector"),
    ] = None,
    modality: Annotated[str | None, typer.Option(help="give only the features of this modality")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first file that can't be read")] = False,
    settings: Settings = None,
) -> None:
    """Compute the features of any images with an encoder; without one: of every image of the project.

    Exit code 3: done, but some files could not be read. They are listed beside the result.
    """
    if uri is None:
        if out or modality or strict:
            raise InputError("--out, --modality and --strict need an encoder: simtrail embed URI PATH… --out FILE")
        from simtrail.pipeline import stages

        return stages.embed(settings or ())
    if not paths or out is None or settings:
        raise InputError("must be: simtrail embed URI PATH… --out FILE; --set is only for the stage, without URI")
    from simtrail.pipeline.use import embed

    raise typer.Exit(3 if embed(uri, paths, out, modality, strict) else 0)


@app.command()
def evaluate(settings: Settings = None) -> None:
    """Score the encoder and its floors on the test split, with intervals; writes metrics and tables."""
    from simtrail.pipeline import stages

    stages.evaluate(settings or ())


@app.command()
def report(settings: Settings = None) -> None:
    """Write the report of the run (one HTML page), all figures, and the model card."""
    from simtrail.pipeline import stages

    stages.report(settings or ())


@app.command()
def register(settings: Settings = None) -> None:
    """Register the encoder in MLflow with its metrics and lineage."""
    from simtrail.pipeline import stages

    stages.register(settings or ())


@app.command()
def summary() -> None:
    """Print the result of the last pipeline run."""
    from simtrail.pipeline.summary import summary

    summary()


@app.command()
def ablate(
    name: Annotated[str, typer.Argument(help="the preset sweeps/ablations/NAME.yaml")],
    settings: Settings = None,
    seeds: Annotated[
        int,
        typer.Option(min=1, help="number of runs of every cell; their seeds count up from the first of pretrain.seeds"),
    ] = 1,
) -> None:
    """Train with every setting of a grid, such as a study of the SimCLR paper, and compare in a table and a figure."""
    from simtrail.sweep.ablation import ablate

    ablate(name, settings or [], seeds)


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(help="the search space sweeps/NAME.yaml")] = "default",
    trials: Annotated[
        int | None, typer.Option(min=1, help="number of trials, instead of budget.trials in the file")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="number of processes; default: one per GPU, or one")
    ] = None,
    join: Annotated[
        bool,
        typer.Option("--join", help="only add workers to a study that another machine runs (OPTUNA_STORAGE)"),
    ] = False,
    settings: Settings = None,
) -> None:
    """Search for better parameters, report the results, and register the best encoder."""
    from simtrail.sweep.sweep import sweep

    sweep(name, trials, workers, join, settings or [])


@app.command()
def apply(
    name: Annotated[str, typer.Argument(help="the search space sweeps/NAME.yaml of a finished study")] = "default",
) -> None:
    """Write the best values of a study into params.yaml."""
    from simtrail.sweep.apply import apply

    apply(name)


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(help="run ids (or their first digits), run names, or models:/NAME/VERSION")
    ],
) -> None:
    """Compare evaluated runs with the first one; differences with intervals: artifacts/compare/compare.html."""
    from simtrail.report.comparison import compare

    print(compare(runs, Path("artifacts/compare")))


@app.command()
def pull(
    uri: Annotated[str, typer.Argument(help="models:/NAME@champion or models:/NAME/VERSION")],
    out: Annotated[Path, typer.Option(help="folder for the encoder's files")],
) -> None:
    """Download a registered encoder: weights, configuration, card, and the code that runs it without simtrail."""
    from simtrail.tracking.pull import fetch

    print(fetch(uri, out))


@app.command()
def classify(
    uri: Uri,
    labels: Annotated[Path, typer.Argument(help="a table of labelled images: columns path and label")],
    paths: Images,
    out: Out = Path("classified"),
    label: Annotated[str | None, typer.Option(help="the column of labels, if it is not label")] = None,
    group: Annotated[
        str | None, typer.Option(help="a column such as specimen: its images are no independent ones")
    ] = None,
    error: Annotated[
        float,
        typer.Option(min=0.001, max=0.5, help="largest fraction of all images that may get a wrong label; 0.05 is 5 %"),
    ] = 0.05,
    suggest: Annotated[int, typer.Option(min=0, help="number of images to choose as the next to label")] = 0,
    target: Annotated[
        str, typer.Option(help="what a label is: class; tags (several, with ; between them, or -); or number")
    ] = "class",
    register: Annotated[
        str | None, typer.Option(metavar="NAME", help="register what was learned as a model of this name")
    ] = None,
) -> None:
    """Label many images from a few labelled ones; writes predictions.csv and sheet.html, a page to review them.

    Exit code 3: done, but some files could not be read. They are listed beside the result.
    """
    from simtrail.pipeline.labelling import classify

    bad = classify(uri, labels, paths, out, label, group, target, error, suggest, register)  # type: ignore[arg-type]
    raise typer.Exit(3 if bad else 0)


@app.command()
def finetune(
    uri: Uri,
    labels: Annotated[
        Path,
        typer.Argument(help="a table of labelled images, or a folder with metadata.csv or a folder for each class"),
    ],
    folders: Annotated[
        list[Path] | None, typer.Argument(help="folders that paths in the table are relative to, if not to its own")
    ] = None,
    out: Out = Path("finetuned"),
    label: Annotated[str | None, typer.Option(help="the column of labels, if it is not label")] = None,
    group: Annotated[
        str | None, typer.Option(help="a column such as specimen: its images are no independent ones")
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=1, help="at most; with few images, each has several passes over these")
    ] = 50,
    error: Annotated[
        float,
        typer.Option(min=0.001, max=0.5, help="largest fraction of all images that may get a wrong label; 0.05 is 5 %"),
    ] = 0.05,
    register: Annotated[str | None, typer.Option(metavar="NAME", help="register it as a model of this name")] = None,
) -> None:
    """Fine-tune an encoder on labelled images, and compare it with a classifier on frozen features."""
    from simtrail.pipeline.labelling import finetune

    finetune(uri, labels, folders or (), out, label, group, epochs, error, register)


@app.command()
def predict(
    uri: Annotated[str, typer.Argument(help="models:/NAME/VERSION with a head, or the folder of simtrail classify")],
    paths: Images,
    out: Out = Path("predicted"),
) -> None:
    """Predict classes, tags or numbers of images with what simtrail classify has learned; writes predictions.csv.

    Exit code 3: done, but some files could not be read. They are listed beside the result.
    """
    from simtrail.pipeline.labelling import predict

    raise typer.Exit(3 if predict(uri, paths, out) else 0)


@app.command()
def search(
    uri: Uri,
    paths: Images,
    query: Annotated[list[str], typer.Option(help="images to look for; can be given repeatedly")],
    top: Annotated[int, typer.Option(min=1, help="number of images to find for each query")] = 12,
    out: Out = Path("found"),
) -> None:
    """Find the images most like some images; writes found.html and found.csv.

    Exit code 3: done, but some files could not be read. They are listed beside the result.
    """
    from simtrail.pipeline.use import search

    raise typer.Exit(3 if search(uri, paths, query, top, out) else 0)


@app.command()
def cluster(
    uri: Uri,
    paths: Images,
    clusters: Annotated[
        int | None, typer.Option(min=2, help="number of clusters, by k-means; default: found by HDBSCAN")
    ] = None,
    smallest: Annotated[int, typer.Option(min=2, help="fewest images of a cluster that HDBSCAN finds")] = 10,
    out: Out = Path("clusters"),
) -> None:
    """Find clusters of like images; writes clusters.html, a page with examples of each, and clusters.csv.

    Exit code 3: done, but some files could not be read. They are listed beside the result.
    """
    from simtrail.pipeline.use import cluster

    raise typer.Exit(3 if cluster(uri, paths, clusters, smallest, out) else 0)


@app.command()
def outliers(
    uri: Uri,
    paths: Images,
    top: Annotated[int, typer.Option(min=1, help="number of images on the page")] = 60,
    out: Out = Path("outliers"),
) -> None:
    """Find the odd images, which are least like all others; writes outliers.html and outliers.csv.

    Exit code 3: done, but some files could not be read. They are listed beside the result.
    """
    from simtrail.pipeline.use import outliers

    raise typer.Exit(3 if outliers(uri, paths, top, out) else 0)


@app.command()
def duplicates(uri: Uri, paths: Images, out: Out = Path("duplicates")) -> None:
    """Find images that may be the same: equal files, and near copies; writes duplicates.html and duplicates.csv.

    Exit code 3: done, but some files could not be read. They are listed beside the result.
    """
    from simtrail.pipeline.use import duplicates

    raise typer.Exit(3 if duplicates(uri, paths, out) else 0)


@app.command()
def explore(uri: Uri, paths: Images, out: Out = Path("explored")) -> None:
    """Write map.html: a map of the images, on which like images are near; select some with Shift and save their paths.

    Exit code 3: done, but some files could not be read. They are listed beside the result.
    """
    from simtrail.pipeline.use import explore

    raise typer.Exit(3 if explore(uri, paths, out) else 0)


@app.command()
def verify(
    uri: Annotated[
        str, typer.Argument(help="models:/NAME@champion, models:/NAME/VERSION, or the folder of a pulled one")
    ],
) -> None:
    """Check that an encoder's files are unchanged, and that its own code gives its golden features here."""
    from simtrail.pipeline.use import verify

    verify(uri)


@app.command()
def serve(
    uri: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/VERSION, or a pulled folder")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="port on 127.0.0.1")] = 5001,
    limit: Annotated[int, typer.Option(min=1, help="megabytes of a request at most; raise it for large cubes")] = 64,
) -> None:
    """Serve an encoder or a classifier with MLflow's model server on 127.0.0.1: files or arrays in, JSON out."""
    from simtrail.pipeline.use import serve

    serve(uri, port, limit * 10**6)


@app.command()
def reproduce(
    uri: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/VERSION, or a pulled folder")],
    out: Annotated[Path, typer.Option("--out", "-o", help="a new folder, for the git worktree")] = Path("reproduced"),
    keep: Annotated[bool, typer.Option("--keep", help="keep this folder with all results")] = False,
) -> None:
    """Train an encoder again from its commit, data and parameters, and compare weights and scores."""
    from simtrail.pipeline.reproduce import reproduce

    reproduce(uri, out, keep)


@app.command()
def export(
    uri: Uri,
    folder: Annotated[Path, typer.Argument(help="a new folder")],
    form: Annotated[
        str,
        typer.Option("--format", help="folder (with the code that runs it), onnx, timm (a state dict), or huggingface"),
    ] = "folder",
) -> None:
    """Write an encoder for another tool: a folder that stands alone, an ONNX file, or weights that timm loads."""
    from simtrail.pipeline.use import export

    export(uri, folder, form)


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="the folder of simtrail pull, or simtrail export --format folder")],
    name: Annotated[str | None, typer.Option(help="name of the model here; default: the name it has there")] = None,
) -> None:
    """Register an encoder of another registry in this one, from its folder, with its trail."""
    from simtrail.tracking.derived import import_folder

    model, version, alias = import_folder(folder, name)
    print(f"import: models:/{model}/{version}{f', {alias}' if alias else ''}")


@app.command()
def trace(
    what: Annotated[
        str, typer.Argument(help="models:/NAME@champion, a pulled folder, a file of features, or the id of a run")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Print where a result comes from: run, parameters, commit, data version, environment, parents."""
    import json

    from simtrail.tracking.trace import lines, trace

    found = trace(what)
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(lines(found)))


@app.command()
def ui(port: Annotated[int, typer.Option(help="port on 127.0.0.1")] = 5000) -> None:
    """Open the MLflow UI on 127.0.0.1."""
    from simtrail.tracking.store import serve

    serve(port)


@data.command()
def demo() -> None:
    """Generate data/demo: images of butterfly-like specimens as 7-channel TIFF, the same bytes on every machine."""
    from simtrail.data import bring

    bring.demo()


@data.command()
def fetch() -> None:
    """Bring the dataset that params.yaml names, if it is missing: from the DVC remote, or generate the demo."""
    from simtrail.data import bring
    from simtrail.params import load_params

    bring.fetch(load_params().data.name)


@data.command()
def add(
    path: Annotated[Path, typer.Argument(help="a folder of images: class folders, flat, or with metadata.csv")],
    name: Annotated[str, typer.Option(help="name of the dataset, which becomes data/NAME")],
    label: Annotated[str | None, typer.Option(help="column of metadata.csv with the labels")] = None,
    group: Annotated[
        str | None, typer.Option(help="column of metadata.csv, such as specimen; a group is never split")
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="link the files instead of copying them; makes them read-only")
    ] = False,
) -> None:
    """Copy a folder of images to data/NAME and version it with DVC."""
    from simtrail.data import bring

    added = bring.add(path, name, label, group, link)
    print("\n".join(bring.add_lines(name, added)))
    from simtrail.params import load_params

    params = load_params() if Path("params.yaml").exists() else None
    if params and params.data.name == name:
        print("Next: dvc repro")
    else:
        print(f"Next: set data.name: {name} in params.yaml, then dvc repro")
        if params and (others := params.not_default()):  # such as those of the demo
            print(f"params.yaml also sets {listed(others, 9)}: are they right for these images?")


def main() -> None:
    """Runs the command line. Errors are one message on standard error; exit code 2: invalid input, 1: a failed run."""
    # OpenMP threads must not use the processor while they wait. torch reads the variable when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # removes temporary files
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
