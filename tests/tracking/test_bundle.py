from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from conftest import rgb_config
from safetensors.numpy import load_file, save_file

from simtrail.errors import InputError
from simtrail.model.encoder import Encoder
from simtrail.tracking import bundle, golden
from simtrail.tracking.bundle import INFERENCE, verify

# As if no package were installed but the seven and those that these need.
ONLY_SEVEN = """
import sys
FORBIDDEN = {"pydantic", "mlflow", "dvc", "optuna", "kornia", "scipy", "sklearn", "matplotlib", "imagecodecs", "h5py",
    "pyarrow", "great_expectations", "typer", "threadpoolctl", "psutil", "umap", "openpyxl", "pi_heif"}
from importlib.machinery import PathFinder
found = PathFinder.find_spec
absent = lambda cls, name, *rest: None if name.split(".")[0] in FORBIDDEN else found(name, *rest)
PathFinder.find_spec = classmethod(absent)
import simtrail
assert "code" in simtrail.__file__, simtrail.__file__
features = simtrail.load_encoder("encoder").embed("photos")
import numpy as np
np.save("features.npy", features.to_numpy())
loaded = [getattr(m, "__file__", None) for name, m in sys.modules.items() if name.split(".")[0] == "simtrail"]
print("\\n".join(sorted(file for file in loaded if file)))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    encoder = Encoder(rgb_config({"pretrain.encoder.model": "test_resnet"})).eval()
    encoder.save(folder / "trained")
    bundle.bundle(folder / "trained", "# card\n", {"run": "abc", "data": {"md5": "123"}}, folder / "encoder")
    (folder / "photos").mkdir()
    for i in range(3):
        image = np.random.default_rng(i).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        tifffile.imwrite(folder / f"photos/{i}.tif", image, photometric="rgb")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "a")
    return tmp_path / "a"


def test_an_encoder_runs_by_its_own_code_with_seven_packages_and_needs_all_of_that_code(folder):
    (folder / "run.py").write_text(ONLY_SEVEN)
    environment = {**os.environ, "PYTHONPATH": str(folder / "encoder/code")}
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = Encoder.load(folder / "trained").embed(folder / "photos").to_numpy()
    np.testing.assert_allclose(np.load(folder / "features.npy"), expected, atol=1e-5)
    used = {line.split("/code/simtrail/")[1] for line in done.stdout.splitlines()}
    lazy = {"data/tables.py", "data/reading/arrays.py", "data/reading/envi.py", "data/reading/photographs.py"}
    assert set(INFERENCE) - used <= lazy | {"tracking/__init__.py", "tracking/golden.py"}
    assert used <= set(INFERENCE)


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None), SimpleNamespace(origin="simtrail/__init__.py")])
def test_mlflow_loads_the_own_code_of_a_model_only_where_simtrail_is_not_installed(folder, monkeypatch, spec):
    from simtrail.tracking import pyfunc

    monkeypatch.setattr(pyfunc, "find_spec", lambda name: spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    pyfunc.EncoderModel().load_context(SimpleNamespace(artifacts={"encoder": str(folder / "encoder")}))
    assert (str(folder / "encoder/code") in sys.path) == (getattr(spec, "origin", None) is None)


def test_an_encoder_gives_its_golden_features(folder):
    assert verify(folder / "encoder") < 1e-6
    assert not list(folder.rglob("*.pkl"))
    files = {path.relative_to(folder / "encoder").as_posix() for path in (folder / "encoder").rglob("*.*")}
    code = {file for file in files if file.startswith("code/")}
    assert code == {f"code/simtrail/{name}" for name in INFERENCE}
    others = {"encoder.safetensors", "config.json", "golden.safetensors", "files.json", "model_card.md"}
    assert files - code == others | {"requirements.txt", "trail.json"}
    assert "torch==" in (folder / "encoder/requirements.txt").read_text()


@pytest.mark.parametrize(
    "name", ["encoder.safetensors", "config.json", "golden.safetensors", "code/simtrail/model/backbone.py"]
)
def test_every_change_of_a_file_is_named(folder, name):
    file = folder / "encoder" / name
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=f"{name}: changed since the encoder was registered"):
        verify(folder / "encoder")
    file.unlink()
    with pytest.raises(InputError, match=f"{name}: no such file; pull it again, or register it again"):
        verify(folder / "encoder")


def reseal(folder, name: str) -> None:
    """Makes files.json agree with a changed file, as a clumsy repair would."""
    hashes = json.loads((folder / "files.json").read_text())
    import hashlib

    hashes[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "files.json").write_text(json.dumps(hashes))


def test_other_features_and_code_that_fails_are_refused(folder, monkeypatch):
    encoder = folder / "encoder"
    features = load_file(encoder / "golden.safetensors")["features"]
    assert len(np.unique(features.round(4), axis=0)) == 4
    features[2, 3] += 0.001 * np.abs(features).max()
    save_file({"features": features}, encoder / "golden.safetensors")
    found = golden.difference(encoder)
    assert abs(found - 0.001) < 1e-4
    reseal(encoder, "golden.safetensors")
    for code, out, error, message in (
        (0, json.dumps({"difference": found}), "", r"its features differ by 0\.001 of"),
        (1, "", "…\nRuntimeError: broken\n", "its code fails here: RuntimeError: broken"),
    ):
        done = subprocess.CompletedProcess([], code, out, error)
        monkeypatch.setattr(bundle.subprocess, "run", lambda *_, done=done, **__: done)
        with pytest.raises(InputError, match=message):
            verify(encoder)


def test_an_encoder_of_an_earlier_version_has_nothing_to_verify(folder):
    with pytest.raises(InputError, match=r"no files\.json: an encoder of an earlier version"):
        verify(folder / "trained")
