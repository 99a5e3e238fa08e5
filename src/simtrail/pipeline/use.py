"""What the commands for a finished encoder do: find it, call `downstream`, and say what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from simtrail.data.sources import Source, image_files
from simtrail.errors import InputError
from simtrail.model import HEAD_CONFIG, MANIFEST
from simtrail.tracking.pull import origin

if TYPE_CHECKING:
    from simtrail.model.encoder import Encoder

EXAMPLES = 24  # images of a cluster on its page
NEAR = "Files are equal, or the angle of their features is below a tenth of the median to the most like image."
CLUSTERED = 20  # images from which on clusters are looked for on a map


def verify(uri: str) -> None:
    """Says how far the golden features of an encoder are from those of the day it was registered."""
    from simtrail.tracking import bundle

    found = bundle.verify(origin(uri)[0])
    print(
        f"verify: {uri}: all files are unchanged, and it gives the features of the day it was registered (largest "
        f"difference {found:.1g} of the largest feature)"
    )


def export(uri: str, out: Path, form: str) -> None:
    """Writes an encoder to a folder in the form of another tool."""
    from simtrail.downstream.export import export

    export(origin(uri)[0], out, form)  # type: ignore[arg-type]  # it names the forms that it knows
    print(f"export: {uri} as {form}: {out}")


def serve(uri: str, port: int, limit: int) -> None:
    """Serves an encoder, or a head with its encoder, on 127.0.0.1 until it is stopped."""
    from simtrail.downstream.head import Head
    from simtrail.downstream.service import Service
    from simtrail.model.encoder import Encoder
    from simtrail.tracking.server import serve

    folder = origin(uri)[0]
    head = Head.load(folder) if (folder / HEAD_CONFIG).is_file() else None
    service = Service(Encoder.load(folder), head)
    print(f"serve: {uri}: POST http://127.0.0.1:{port}/invocations (stop with Ctrl-C)", flush=True)
    serve(service.answer, port, limit)


def embed(uri: str, paths: Sequence[str], out: Path, modality: str | None, strict: bool) -> int:
    """Writes the features of all images that the paths mean; returns the number of files that could not be read."""
    from simtrail.downstream.embedding import check_format, embed_files
    from simtrail.model.encoder import Encoder

    check_format(out)
    sources, (folder, about) = image_files(paths), origin(uri)
    rejected = embed_files(Encoder.load(folder), sources, out, about, modality, strict)
    print(f"embed: {len(sources) - len(rejected)} images: {out}")
    tell_rejected(rejected, out.with_name(out.stem + ".rejected.csv"))
    return len(rejected)


def tell_rejected(rejected: pd.DataFrame, listing: Path) -> None:
    """Prints how many files could not be read, and where they are listed."""
    if len(rejected):
        first, files = rejected.iloc[0], "file" if len(rejected) == 1 else "files"
        print(f"{len(rejected)} {files} can't be read, such as {first['path']}: {first['reason']}; all: {listing}")


class Embedded(NamedTuple):
    """Image files with their features, and the encoder that made them."""

    encoder: Encoder
    about: dict[str, str]  # where the encoder comes from
    paths: np.ndarray  # names, of the images that could be read
    features: np.ndarray
    files: dict[str, Path]  # of each name
    rejected: int


def require_no_encoder(out: Path) -> None:
    """Raises InputError for the folder of a pulled encoder, which must stay as it is."""
    if (out / MANIFEST).exists():
        raise InputError(f"{out}: is the folder of a pulled encoder; name another with --out")


def embedded(uri: str, sources: Sequence[Source], out: Path) -> Embedded:
    """The features of image files, which are kept in `out`/features.parquet for the next time."""
    from simtrail.downstream.embedding import embed_files
    from simtrail.model.encoder import Encoder

    require_no_encoder(out)
    folder, about = origin(uri)
    encoder = Encoder.load(folder)
    out.mkdir(parents=True, exist_ok=True)
    rejected = embed_files(encoder, sources, out / "features.parquet", about)
    tell_rejected(rejected, out / "features.rejected.csv")
    table = pd.read_parquet(out / "features.parquet")
    files = {source.name: source.path for source in sources}
    features = np.stack(table["vector"].to_list())
    return Embedded(encoder, about, table["path"].to_numpy(object), features, files, len(rejected))


def search(uri: str, paths: Sequence[str], queries: Sequence[str], top: int, out: Path) -> int:
    """Finds the images most like each query; writes found.csv and found.html to `out`."""
    from simtrail.downstream.structure import search
    from simtrail.report.sheet import Card, gallery

    known, asked = embedded(uri, image_files(paths), out), image_files(queries)
    names = np.array([source.name for source in asked], dtype=object)
    features = known.encoder.embed([source.path for source in asked]).to_numpy()
    table = search(known.features, known.paths, features, names, top)
    table.to_csv(out / "found.csv", index=False)
    sections = {}
    for name, rows in table.groupby("query", sort=False):
        found = [Card(row.path, f"{row.similarity:.3f}") for row in rows.itertuples()]
        sections[name] = [Card(name, "the query", query=True), *found]
    files = {source.name: source.path for source in asked} | known.files
    note = f"The {top} of {len(known.paths)} images most like each query, by the cosine of their features."
    gallery(f"{len(asked)} queries", note, sections, files, known.encoder.config.recipe, out / "found.html")
    print(f"search: {len(asked)} queries among {len(known.paths)} images: {out / 'found.html'}, {out / 'found.csv'}")
    return known.rejected


def cluster(uri: str, paths: Sequence[str], count: int | None, smallest: int, out: Path) -> int:
    """Finds clusters of like images; writes clusters.csv and clusters.html to `out`."""
    from simtrail.downstream.structure import clusters
    from simtrail.report.sheet import Card, gallery

    known = embedded(uri, image_files(paths), out)
    table = clusters(known.features, count, smallest).assign(path=known.paths)
    table = table.sort_values(["cluster", "similarity"], ascending=[True, False], kind="stable")
    table[["path", "cluster", "similarity"]].to_csv(out / "clusters.csv", index=False)
    parts = [(number, rows) for number, rows in table.groupby("cluster") if number]
    between = int((table["cluster"] == 0).sum())
    sections = {
        f"cluster {number}: {len(rows)} images": [Card(row.path, f"{row.similarity:.3f}") for row in _spread(rows)]
        for number, rows in parts
    }
    rest = f"; {between} images are in none (0 in the table)" if between else ""
    note = f"{len(known.paths)} images{rest}. Of each cluster: from the most to the least typical image."
    gallery(f"{len(parts)} clusters", note, sections, known.files, known.encoder.config.recipe, out / "clusters.html")
    print(f"cluster: {len(parts)} clusters of {len(known.paths)} images{rest}: {out / 'clusters.html'}")
    return known.rejected


def outliers(uri: str, paths: Sequence[str], top: int, out: Path) -> int:
    """Finds the odd images; writes outliers.csv (all images) and outliers.html to `out`."""
    from simtrail.downstream.structure import outliers
    from simtrail.report.sheet import Card, gallery

    known = embedded(uri, image_files(paths), out)
    table = outliers(known.features, known.paths)
    table.to_csv(out / "outliers.csv", index=False)
    cards = [Card(row.path, f"distance {row.distance:.3f}") for row in table.head(top).itertuples()]
    note = f"The {len(cards)} of {len(table)} images least like any other, the oddest first."
    gallery("Odd images", note, {"": cards}, known.files, known.encoder.config.recipe, out / "outliers.html")
    print(f"outliers: {len(table)} images, the oddest first: {out / 'outliers.html'}, {out / 'outliers.csv'}")
    return known.rejected


def duplicates(uri: str, paths: Sequence[str], out: Path) -> int:
    """Finds images that may be the same; writes duplicates.csv (pairs) and duplicates.html (sets) to `out`."""
    from simtrail.data.manifest import file_sha256
    from simtrail.downstream.structure import duplicates
    from simtrail.report.sheet import Card, gallery

    known = embedded(uri, image_files(paths), out)
    hashes = np.array([file_sha256(known.files[path]) for path in known.paths])
    table = duplicates(known.features, known.paths, hashes)
    table.to_csv(out / "duplicates.csv", index=False)
    sections = {}
    for number, pairs in table.groupby("set"):
        same = "equal files" if (pairs["kind"] == "exact").all() else f"up to {pairs['angle'].max():.2f}° apart"
        members = pd.unique(pairs[["path", "copy"]].to_numpy().ravel())
        sections[f"set {number}: {len(members)} images, {same}"] = [Card(path, path) for path in members[:EXAMPLES]]
    note = f"{len(table)} pairs among {len(known.paths)} images. {NEAR}"
    recipe = known.encoder.config.recipe
    gallery(f"{len(sections)} sets of like images", note, sections, known.files, recipe, out / "duplicates.html")
    print(
        f"duplicates: {len(table)} pairs in {len(sections)} sets: {out / 'duplicates.html'}, {out / 'duplicates.csv'}"
    )
    return known.rejected


def explore(uri: str, paths: Sequence[str], out: Path) -> int:
    """Writes map.html to `out`: a map of the features, with pictures, coloured by folder, cluster or oddity."""
    from simtrail.downstream.structure import NEIGHBOURS, clusters, outliers
    from simtrail.evaluation.structure import map_coordinates
    from simtrail.report.map import map_page
    from simtrail.report.sheet import small_pictures

    known = embedded(uri, image_files(paths), out)
    rows, points = map_coordinates(known.features, 0)
    folders = [Path(path).parent.name for path in known.paths]
    columns = pd.DataFrame({"folder": folders, "path": known.paths} if len(set(folders)) > 1 else {"path": known.paths})
    if len(columns) >= CLUSTERED:
        found = clusters(known.features)["cluster"]
        columns.insert(
            columns.shape[1] - 1, "cluster", found.map(lambda number: f"cluster {number}" if number else "in none")
        )
    if len(columns) > NEIGHBOURS + 1:
        distance = outliers(known.features, known.paths).set_index("path")["distance"]
        columns.insert(columns.shape[1] - 1, "distance to the images most like it", distance[known.paths].to_numpy())
    recipe = known.encoder.config.recipe

    def pictures(indices: np.ndarray) -> np.ndarray:
        return small_pictures([known.files[path] for path in known.paths[rows[indices]]], recipe)

    map_page(points, pictures, columns.iloc[rows], out / "map.html", f"{len(columns)} images")
    print(f"explore: {len(columns)} images: {out / 'map.html'}")
    return known.rejected


def _spread(rows: pd.DataFrame) -> list[Any]:
    """At most `EXAMPLES` of the rows, evenly spaced."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, EXAMPLES).round().astype(int))
    return list(rows.iloc[chosen].itertuples())
