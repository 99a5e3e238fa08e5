from __future__ import annotations

import shutil

import pytest
from conftest import photographs, rgb_config

from simtrail.model.encoder import Encoder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("use")
    Encoder(rgb_config({"pretrain.encoder.model": "test_resnet"})).save(folder / "encoder")
    photographs(folder / "photos")
    (folder / "photos/class1/bad.png").write_bytes(b"damaged")
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a")
    return tmp_path / "a"
