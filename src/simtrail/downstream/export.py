"""A trained encoder in the forms of other tools."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from simtrail.errors import InputError
from simtrail.model.backbone import Backbone
from simtrail.model.encoder import Encoder

Format = Literal["folder", "onnx", "timm", "huggingface"]
FORMATS: tuple[Format, ...] = get_args(Format)
ONNX_TOLERANCE = 1e-4  # of features, as a fraction of the largest


def export(folder: Path, out: Path, form: Format) -> None:
    """Writes the encoder in a folder to another folder, which must be new or empty.

    `folder` copies it, with the code that runs it. `onnx` writes encoder.onnx, with the normalisation but without the
    reading of files, once onnxruntime gives its features for batches of several sizes. `timm` writes model.safetensors,
    which `timm.create_model(…).load_state_dict` takes strictly, and a README.md with the call. `huggingface` writes a
    folder that `timm.create_model("local-dir:…", pretrained=True)` loads, and that can be pushed to a hub. InputError
    for a folder that is not empty, for an encoder that timm alone can't rebuild, and if ONNX gives other features.
    """
    if form not in FORMATS:
        raise InputError(f"--format {form}: must be one of {', '.join(FORMATS)}")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; name a new folder")
    if form == "folder":
        shutil.copytree(folder, out, dirs_exist_ok=True)
        return
    encoder = Encoder.load(folder).cpu()
    if form == "onnx":
        _write_onnx(encoder, out)
        (out / "README.md").write_text(_card(folder, encoder) + _onnx_use(encoder), encoding="utf-8")
        return
    net, options = _rebuilt(encoder)
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, out / "model.safetensors")
    config, model = encoder.config, encoder.config.architecture.model
    cfg = {
        "input_size": [options["in_chans"], config.size, config.size],
        "mean": config.mean,
        "std": config.std,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "num_classes": 0,
    }
    if form == "huggingface":
        tree = {"architecture": model, "num_classes": 0, "num_features": encoder.backbone.width}
        tree |= {"model_args": options, "pretrained_cfg": cfg}
        (out / "config.json").write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
        call = f'net = timm.create_model("local-dir:{out.name}", pretrained=True)'
    else:
        arguments = ", ".join(f"{name}={value}" for name, value in options.items())
        call = f'net = timm.create_model("{model}", num_classes=0, {arguments})\n'
        call += 'net.load_state_dict(load_file("model.safetensors"))'
    (out / "README.md").write_text(_card(folder, encoder) + _timm_use(encoder, call, form), encoding="utf-8")


def _rebuilt(encoder: Encoder) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The network as timm builds it, with the encoder's weights, and the arguments of timm.create_model."""
    architecture = encoder.config.architecture
    backbone = encoder.backbone
    if not isinstance(backbone, Backbone):
        raise InputError("an encoder with several branches is no network of timm; use --format folder")
    if architecture.normalisation != "band":
        raise InputError(f"timm does not normalise by {architecture.normalisation}; use --format folder")
    options: dict[str, Any] = {"in_chans": backbone.bands}
    cfg = timm.get_pretrained_cfg(architecture.model)
    if cfg is not None and cfg.fixed_input_size:
        options["img_size"] = encoder.config.size
    net = timm.create_model(architecture.model, num_classes=0, **options)
    batch = torch.rand(2, backbone.bands, encoder.config.size, encoder.config.size)
    try:
        net.load_state_dict(backbone.net.state_dict())
        with torch.inference_mode():
            same = torch.allclose(net.eval()(batch), backbone.eval()(batch), atol=1e-5)
    except RuntimeError:
        same = False
    if not same:
        raise InputError(
            f"timm alone can't rebuild this {architecture.model} (stem {architecture.stem}, width {architecture.width}"
            f"{', vit settings' if architecture.vit else ''}); use --format folder"
        )
    return net, options


def _write_onnx(encoder: Encoder, out: Path) -> None:
    """Writes encoder.onnx, (B, bands, S, S) float32 in [0, 1] → (B, width), and the recipe that makes such images."""
    if missing := [name for name in ("onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise InputError(f"--format onnx needs {' and '.join(missing)}: pip install onnxscript onnxruntime")
    import onnxruntime

    recipe = encoder.config.recipe
    batches = [torch.rand(n, len(recipe.bands), recipe.size, recipe.size) for n in (2, 1, 5)]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                encoder,
                (batches[0],),
                dynamo=True,
                dynamic_shapes={"batch": {0: torch.export.Dim("images")}},
                input_names=["images"],
                output_names=["features"],
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise InputError(f"ONNX can't hold this encoder: {' '.join(str(error).split())[:200]}") from None
    out.mkdir(parents=True, exist_ok=True)
    program.save(out / "encoder.onnx")  # type: ignore[union-attr]  # of dynamo
    session = onnxruntime.InferenceSession(out / "encoder.onnx", providers=["CPUExecutionProvider"])
    for batch in batches:
        with torch.inference_mode():
            expected = encoder(batch).numpy()
        found = session.run(None, {"images": batch.numpy()})[0]
        if not np.abs(found - expected).max() <= ONNX_TOLERANCE * np.abs(expected).max():
            shutil.rmtree(out)
            raise InputError(f"onnxruntime gives other features for {len(batch)} images; use --format folder")
    (out / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _card(folder: Path, encoder: Encoder) -> str:
    """The model card of a registered encoder, if there is one."""
    card = folder / "model_card.md"
    return card.read_text(encoding="utf-8") if card.is_file() else f"# {encoder.config.architecture.model}\n"


def _onnx_use(encoder: Encoder) -> str:
    recipe = encoder.config.recipe
    return f"""
## Use with ONNX

```python
import onnxruntime

session = onnxruntime.InferenceSession("encoder.onnx")
features = session.run(None, {{"images": images}})[0]  # (N, {encoder.width})
```

Input: float32 (N, {len(recipe.bands)}, {recipe.size}, {recipe.size}), any N: the bands
{", ".join(recipe.bands)} on a scale from 0 to 1. The model normalises them. It reads no files: recipe.json says how
they are scaled (`low`, `high`), masked (`mask_band`, `background`), and brought to {recipe.size} × {recipe.size} pixels
(`fit`: {recipe.fit}).
"""


def _timm_use(encoder: Encoder, call: str, form: Format) -> str:
    config = encoder.config
    grids, parts = config.architecture.features, []
    if grids != [1]:
        parts.append(f"maps on the grids {grids}")
    if config.whitened:
        parts.append("whitened")
    other = f" The features of the registered encoder are others: {', '.join(parts)}." if parts else ""
    load = "" if form == "huggingface" else "from safetensors.torch import load_file\n"
    return f"""
## Use with timm

```python
import timm
{load}
{call}
```

Input: {len(config.recipe.bands)} bands ({", ".join(config.recipe.bands)}) on a scale from 0 to 1, brought to
{config.size} × {config.size} pixels ({config.recipe.fit}), minus the mean, divided by the standard deviation:
mean {[round(value, 5) for value in config.mean]}, std {[round(value, 5) for value in config.std]}.
Output: the mean of the last map, {encoder.backbone.width} features.{other}
"""
