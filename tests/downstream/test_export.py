from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from conftest import rgb_config
from safetensors.torch import load_file

from simtrail.downstream.export import export
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder


def saved(folder, whiten=False, **changes) -> Encoder:
    dotted = {f"pretrain.encoder.{key}": value for key, value in changes.items()}
    encoder = Encoder(rgb_config({"pretrain.encoder.model": "test_resnet", **dotted})).eval()
    if whiten:
        encoder.whiten(torch.randn(40, encoder.width))
    encoder.save(folder)
    return encoder


def same(net: torch.nn.Module, encoder: Encoder) -> bool:
    batch = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoder.config.mean, encoder.config.std))
        return torch.allclose(net.eval()((batch - mean) / std), encoder(batch), atol=1e-5)


def test_timm_loads_both_forms_strictly_and_gives_the_same_features(tmp_path):
    encoder = saved(tmp_path / "encoder")
    export(tmp_path / "encoder", tmp_path / "timm", "timm")
    net = timm.create_model("test_resnet", num_classes=0, in_chans=3)
    net.load_state_dict(load_file(tmp_path / "timm/model.safetensors"))
    assert same(net, encoder)
    readme = (tmp_path / "timm/README.md").read_text()
    assert 'timm.create_model("test_resnet", num_classes=0, in_chans=3)' in readme
    export(tmp_path / "encoder", tmp_path / "hf", "huggingface")
    net = timm.create_model(f"local-dir:{tmp_path / 'hf'}", pretrained=True)
    assert same(net, encoder)
    assert list(net.pretrained_cfg["mean"]) == encoder.config.mean


def test_a_readme_for_timm_says_how_the_features_of_the_encoder_differ(tmp_path):
    saved(tmp_path / "encoder", whiten=True, features=[1, 2])
    export(tmp_path / "encoder", tmp_path / "timm", "timm")
    assert "are others: maps on the grids [1, 2], whitened." in (tmp_path / "timm/README.md").read_text()


def test_a_copied_folder_is_the_same_encoder(tmp_path):
    encoder = saved(tmp_path / "encoder", features=[1, 2])
    export(tmp_path / "encoder", tmp_path / "copy", "folder")
    image = np.random.default_rng(0).integers(0, 255, (1, 3, 40, 40), dtype=np.uint8)
    np.testing.assert_array_equal(Encoder.load(tmp_path / "copy").embed(image), encoder.embed(image))
    with pytest.raises(InputError, match="is not empty"):
        export(tmp_path / "encoder", tmp_path / "copy", "folder")


def test_onnx_gives_the_same_features_for_any_number_of_images(tmp_path):
    encoder = saved(tmp_path / "encoder", whiten=True, features=[1, 2])
    export(tmp_path / "encoder", tmp_path / "onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx/encoder.onnx")
    batch = torch.rand(7, 3, 32, 32)
    with torch.inference_mode():
        expected = encoder(batch).numpy()
    np.testing.assert_allclose(session.run(None, {"images": batch.numpy()})[0], expected, atol=1e-5)
    readme = (tmp_path / "onnx/README.md").read_text()
    assert "float32 (N, 3, 32, 32)" in readme
    assert json.loads((tmp_path / "onnx/recipe.json").read_text())["fit"] == "pad"


@pytest.mark.slow
def test_onnx_with_other_features_is_not_written(tmp_path, monkeypatch):
    saved(tmp_path / "encoder")
    monkeypatch.setattr("simtrail.downstream.export.ONNX_TOLERANCE", -1)
    with pytest.raises(InputError, match="onnxruntime gives other features for 2 images"):
        export(tmp_path / "encoder", tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("simtrail.downstream.export.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install onnxscript onnxruntime"):
        export(tmp_path / "encoder", tmp_path / "out", "onnx")


def test_what_timm_can_not_rebuild_is_refused(tmp_path):
    saved(tmp_path / "small", stem="small")
    with pytest.raises(InputError, match=r"timm alone can't rebuild this test_resnet \(stem small, width 1\)"):
        export(tmp_path / "small", tmp_path / "out", "timm")
    with pytest.raises(InputError, match="must be one of folder, onnx, timm, huggingface"):
        export(tmp_path / "small", tmp_path / "out", "keras")
    assert not (tmp_path / "out").exists()
