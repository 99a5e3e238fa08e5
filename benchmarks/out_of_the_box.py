"""The defaults on image sets for which nobody set anything, beside their floors and Lightly's SimCLR.

    python benchmarks/out_of_the_box.py FOLDER NAME[:COUNT]=PATH[,LABEL[,GROUP]] …

For each set: `simtrail init`, `data add`, and all stages, with no key of params.yaml set but the name. Then, for each
set, Lightly's SimCLR, with its own default views and a ResNet-18 at the same image size, trains for as many processor
seconds as the stages plan and pretrain took, and is probed by our probe on the same split. PATH is a folder as `data
add` takes it, of which COUNT images are drawn with seed 0; `demo` without a path is the generated demo. Projects stay
in FOLDER; finished sets are not run again. Adds rows to benchmarks/results/out_of_the_box.csv.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from common import add
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from simtrail.data.pack import PackedImages
from simtrail.data.recipe import Recipe
from simtrail.evaluation.classifiers import knn_probabilities
from simtrail.evaluation.difference import paired
from simtrail.evaluation.probe import linear_probe
from simtrail.evaluation.tasks import main_task, small_pixels
from simtrail.model.encoder import Encoder
from simtrail.model.whitening import whitened
from simtrail.params import Evaluate

STAGES = ("check", "prepare", "plan", "pretrain", "embed", "evaluate", "report", "register")
TRAINING = ("plan", "pretrain")
BATCH = 64  # of Lightly: as ours


def main() -> None:
    folder, sets = Path(sys.argv[1]), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, object]] = {}
    for text in sets:
        title, _, given = text.partition("=")
        name, _, count = title.partition(":")
        project, source = folder / name, given.split(",") if given else []
        if not (project / "times.json").exists():
            if count:
                source[0] = str(drawn(Path(source[0]), int(count), folder / f"{name}-drawn"))
            times = ours(project, name, source)
            (project / "times.json").write_text(json.dumps(times))
        rows[name] = scores(project)
        add({"set": name, **rows[name]}, "out_of_the_box", "set")
    for name, row in rows.items():
        file = folder / name / "lightly.json"
        if not file.exists():
            file.write_text(json.dumps(lightly(folder / name)))
        add({"set": name, **row, **json.loads(file.read_text())}, "out_of_the_box", "set")


def drawn(source: Path, count: int, folder: Path) -> Path:
    """A folder with a seeded draw of the images of `source`, and with their rows of metadata.csv if there is one."""
    sheet = source / "metadata.csv"
    table = pd.read_csv(sheet, dtype=str, keep_default_na=False) if sheet.exists() else None
    files = (file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file())
    paths = sorted(files) if table is None else table["path"].to_list()
    rows = np.sort(np.random.default_rng(0).permutation(len(paths))[:count])
    for row in rows:
        (folder / paths[row]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / paths[row], folder / paths[row])
    if table is not None:
        table.iloc[rows].to_csv(folder / "metadata.csv", index=False)
    return folder


def ours(project: Path, name: str, source: list[str]) -> dict[str, float]:
    """Runs every stage; the seconds and the processor seconds of each."""

    def simtrail(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "simtrail", *arguments], cwd=project, check=True)

    if not project.exists():
        subprocess.run([sys.executable, "-m", "simtrail", "init", str(project)], check=True)
        options = [part for pair in zip(("--label", "--group"), source[1:], strict=False) for part in pair]
        simtrail(*(("data", "add", source[0], "--name", name, *options) if source else ("data", "demo")))
    params = yaml.safe_load((project / "params.yaml").read_text()) | {"data": {"name": name}}
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    times: dict[str, float] = {}
    for stage in STAGES:
        start, before = time.monotonic(), _processor_seconds()
        simtrail(stage)
        times |= {stage: time.monotonic() - start, f"{stage} processor": _processor_seconds() - before}
    return times


def scores(project: Path) -> dict[str, object]:
    """The linear probe and kNN of the encoder and of all floors, on the test split."""
    metrics = json.loads((project / "artifacts/evaluate/scores.json").read_text())
    task = next(iter(metrics["tasks"].values()))
    times = json.loads((project / "times.json").read_text())
    plan = yaml.safe_load((project / "artifacts/plan/params.yaml").read_text())["pretrain"]
    encoder = Encoder.load(project / "artifacts/pretrain")
    torch.manual_seed(0)
    images = _images(project)
    untrained = Encoder(encoder.config.model_copy(update={"whitened": 0}))
    random_features = untrained.features(images.rows(rows) for rows in _parts(images))
    if encoder.config.whitened:
        train = pd.read_parquet(project / "artifacts/prepare/split.parquet")["split"] == "train"
        random_features = whitened(torch.from_numpy(random_features), torch.tensor(train.to_numpy())).numpy()
    accuracy = {name: score["accuracy"] for name, score in task["scores"].items()}
    floors = ("raw_pixels", "random_encoder", "majority")
    gains = [task["gains"][name]["low"] for name in floors if name in task["gains"]]
    return {
        "groups": task["groups"],
        "minutes": sum(times[stage] for stage in STAGES) / 60,
        "recipe": plan["recipe"],
        "features": str(encoder.config.architecture.features),
        "probe": accuracy["linear_probe"],
        "probe_low": task["scores"]["linear_probe"]["accuracy_low"],
        "probe_high": task["scores"]["linear_probe"]["accuracy_high"],
        **{name: accuracy[name] for name in floors},
        "gain_low": min(gains),
        "knn": accuracy["knn"],
        "knn_pixels": _knn(project, small_pixels(images.rows(np.arange(len(images))), images.recipe.full_scale)),
        "knn_random": _knn(project, random_features),
    }


def lightly(project: Path) -> dict[str, float]:
    """The linear probe and kNN of Lightly's SimCLR; none for images that it can't read."""
    table, recipe = pd.read_parquet(project / "artifacts/prepare/split.parquet"), _recipe(project)
    if len(recipe.bands) not in (1, 3):
        return {}
    times = json.loads((project / "times.json").read_text())
    seconds = sum(times[f"{stage} processor"] for stage in TRAINING)
    root = next((project / "data").iterdir())
    paths = [root / path for path in table["path"]]
    features, spent = _train_lightly(paths, (table["split"] == "train").to_numpy(), recipe.size, seconds)
    truth, predicted = _probe(project, features)
    ours_correct = _correct(project)
    gain = paired((predicted == truth)[:, None], ours_correct[:, None], main_task(table).group[main_task(table).test])
    return {
        "lightly_probe": float((predicted == truth).mean()),
        "lightly_knn": _knn(project, features),
        "over_lightly_low": float(gain.low[0]),
        "processor_seconds": seconds,
        "lightly_seconds": spent,
    }


class _Files(Dataset):
    def __init__(self, paths: list[Path], transform: object):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> object:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def _train_lightly(paths: list[Path], train: np.ndarray, size: int, seconds: float) -> tuple[np.ndarray, float]:
    """The features of all images after this many processor seconds of training, as in Lightly's own example."""
    import torchvision
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    torch.manual_seed(0)
    backbone = torchvision.models.resnet18()
    backbone.fc = torch.nn.Identity()
    head, criterion = SimCLRProjectionHead(512, 512, 128), NTXentLoss()
    optimiser = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.06)
    chosen = [path for path, used in zip(paths, train, strict=True) if used]
    files, batch = _Files(chosen, SimCLRTransform(input_size=size)), min(BATCH, len(chosen))
    loader = DataLoader(files, batch, shuffle=True, drop_last=True)
    start, spent = time.process_time(), 0.0
    while spent < seconds:
        for first, second in loader:
            z = [head(backbone(view)) for view in (first, second)]
            loss = criterion(*z)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            spent = time.process_time() - start
            if spent > seconds:
                break
    backbone.eval()
    normal = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    whole = torchvision.transforms.Compose(
        [torchvision.transforms.Resize((size, size)), torchvision.transforms.ToTensor(), normal]
    )
    with torch.inference_mode():
        features = [backbone(batch) for batch in DataLoader(_Files(paths, whole), 256)]
    return torch.cat(features).numpy(), spent


def _probe(project: Path, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    task = main_task(pd.read_parquet(project / "artifacts/prepare/split.parquet"))
    result = linear_probe(features[task.rows], task.labels, task.split, len(task.names))
    return task.labels[task.test], result.probabilities.argmax(1)


def _knn(project: Path, features: np.ndarray) -> float:
    task, knn = main_task(pd.read_parquet(project / "artifacts/prepare/split.parquet")), Evaluate().knn
    x, bank = features[task.rows], ~task.test
    found = knn_probabilities(x[bank], task.labels[bank], x[task.test], knn.k, knn.temperature, len(task.names))
    return float((found.argmax(1) == task.labels[task.test]).mean())


def _correct(project: Path) -> np.ndarray:
    features = np.stack(pd.read_parquet(project / "artifacts/embed/embeddings.parquet")["vector"].to_list())
    truth, predicted = _probe(project, features)
    return truth == predicted


def _recipe(project: Path) -> Recipe:
    return Recipe.model_validate(json.loads((project / "artifacts/prepare/statistics.json").read_text())["recipe"])


def _images(project: Path) -> PackedImages:
    return PackedImages(project / "artifacts/prepare", _recipe(project))


def _parts(images: PackedImages) -> list[np.ndarray]:
    return np.array_split(np.arange(len(images)), len(images) // 256 + 1)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    main()
