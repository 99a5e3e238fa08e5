"""A frozen encoder as a teacher: its features of whole images, which the encoder learns to predict from views."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from simtrail.data.pack import PackedImages
from simtrail.errors import InputError
from simtrail.model import CONFIG
from simtrail.model.encoder import Encoder, EncoderConfig, best_device
from simtrail.model.weights import load_weights
from simtrail.params import Architecture, Teacher, Terms

BATCH = 256


def teacher_features(
    teacher: Teacher, config: EncoderConfig, images: PackedImages, rows: np.ndarray, log: Callable[[str], None]
) -> np.ndarray:
    """The teacher's features of packed images, (len(images), D) float32; zeros for those not in `rows`.

    They have mean 0 and standard deviation 1 over `rows` in every dimension, so that no dimension dominates. The
    teacher sees the whole packed image, with the bands of `config`, to which its filters are adapted as first weights
    are. `teacher.weights` is as `load_weights` takes them. Raises InputError if they don't fit.
    """
    assert teacher.weights is not None
    update = {"architecture": _architecture(teacher), "view_size": None, "terms": Terms()}
    try:
        encoder = Encoder(config.model_copy(update=update | {"teacher_width": 0, "whitened": 0}))
        lines = load_weights(encoder, teacher.weights)
    except InputError as error:
        raise InputError(_of_teacher(str(error))) from None
    for line in lines:
        log(f"teacher: {_of_teacher(line)}")
    encoder.to(best_device())
    parts = np.array_split(rows, len(rows) // BATCH + 1)
    features = encoder.features(images.rows(part) for part in parts)
    std = features.std(0)
    result = np.zeros((len(images), features.shape[1]), np.float32)
    result[rows] = (features - features.mean(0)) / np.where(std > 1e-6, std, 1.0)
    log(f"teacher: {features.shape[1]} features of {len(rows)} images")
    return result


def _architecture(teacher: Teacher) -> Architecture:
    folder = Path(str(teacher.weights))
    if folder.is_dir():
        return Architecture.model_validate(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["architecture"])
    assert teacher.model is not None
    return Architecture(model=teacher.model, features=[1])


def _of_teacher(text: str) -> str:
    """A text about an encoder and its weights with the keys of the teacher."""
    keys = {"pretrain.weights": "pretrain.teacher.weights", "pretrain.encoder.model": "pretrain.teacher.model"}
    for key, of_teacher in keys.items():
        text = text.replace(key, of_teacher)
    return text
