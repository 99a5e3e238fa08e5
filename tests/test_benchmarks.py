from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, photographs
from typer import BadParameter

SCRIPT = ROOT / "benchmarks/cifar10.py"
ABSENT = ("kornia", "mlflow", "dvc", "optuna", "great_expectations")
FEW_EPOCHS = {
    "pretrain.encoder.model": "test_resnet",
    "pretrain.epochs": 4,
    "pretrain.batch_size": 8,
    "pretrain.compile": False,
    "pretrain.monitor.every": 2,
}


@pytest.fixture(scope="module")
def cifar10():
    spec = spec_from_file_location("cifar10", SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SETTINGS = FEW_EPOCHS
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar10") / "images"
    photographs(folder / "train", each=8, size=(32, 32))
    photographs(folder / "test", each=5, size=(32, 32))
    return folder


@pytest.mark.slow
def test_it_trains_without_kornia_and_the_mlops_packages(folder, tmp_path):
    code = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT}))  # importing any of them fails
from pathlib import Path
from runpy import run_path
cifar10 = run_path({str(SCRIPT)!r})
params = cifar10["settings"]({FEW_EPOCHS})
pictures = cifar10["read"](Path({str(folder)!r}), 24, params.prepare, Path({str(tmp_path)!r}))
cifar10["run"](pictures, params.pretrain)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_the_curve_starts_with_the_floors_and_ends_with_the_last_epoch(cifar10, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.setattr(cifar10, "ROOT", tmp_path)
    cifar10.main(folder, images=24, epochs=4, batch_size=8, model="test_resnet")
    (csv,) = (tmp_path / "benchmarks/results").glob("*.csv")
    curve = pd.read_csv(csv)
    assert curve["features"].tolist() == ["16×16 pixels", "random weights", "SimCLR", "SimCLR"]
    assert curve["epoch"].tolist()[1:] == [0, 2, 4]
    assert curve["seconds"][1:].is_monotonic_increasing
    assert curve[["knn", "linear"]].iloc[0].tolist() == [1, 1]  # these classes are easy to distinguish
    assert csv.with_suffix(".png").stat().st_size > 10_000
    assert "seconds of training to kNN accuracy" in capsys.readouterr().out


def test_a_run_ends_at_the_first_validation_after_its_minutes(cifar10, folder, tmp_path):
    params = cifar10.settings(FEW_EPOCHS)
    curve = cifar10.run(cifar10.read(folder, 24, params.prepare, tmp_path), params.pretrain, minutes=0)
    assert curve["epoch"].max() == 2


def test_a_part_of_the_training_images_is_balanced_and_all_test_images_are_kept(cifar10, folder, tmp_path):
    packed, labels, train = cifar10.read(folder, 10, cifar10.settings({}).prepare, tmp_path)
    assert train == 10
    assert sorted(np.bincount(labels[:train])) == [3, 3, 4]
    assert np.bincount(labels[train:]).tolist() == [5, 5, 5]
    assert len(packed) == 25


def test_an_archive_gives_the_images_of_its_folder(cifar10, folder, tmp_path):
    prepare = cifar10.settings({}).prepare
    archive = shutil.make_archive(str(tmp_path / "cifar10"), "xztar", folder.parent)
    arrays = []
    for name, data in (("a", folder), ("b", archive)):
        (tmp_path / name).mkdir()
        arrays.append(cifar10.read(cifar10.Path(data), 24, prepare, tmp_path / name).packed.rows(np.arange(24)))
    assert np.array_equal(*arrays)


def test_more_training_images_than_exist_are_an_error(cifar10, folder, tmp_path):
    with pytest.raises(BadParameter, match="25 of 24 training and 15 test images"):
        cifar10.read(folder, 25, cifar10.settings({}).prepare, tmp_path)


def test_the_time_to_an_accuracy_ends_at_the_first_validation_that_reaches_it(cifar10):
    curve = pd.DataFrame({"knn": [0.3, 0.7, 0.86, 0.84, 0.88], "seconds": [math.nan, 0, 10, 20, 30]})
    curve = curve.assign(features="SimCLR", epoch=range(5), linear=0.5, images_per_second=1.0, peak_mb=1.0)
    assert cifar10.summary(curve).endswith("kNN accuracy: 80%: 10, 85%: 10, 88%: 30")


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_whole_without_one():
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "benchmarks/gpu.sh", "--smoke"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "of_ceiling" in done.stdout
    assert "NT-Xent and its gradient, 64 images" in done.stdout
