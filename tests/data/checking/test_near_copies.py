from __future__ import annotations

from functools import cache
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from simtrail.data.checking.appearance import appearance
from simtrail.data.checking.near_copies import near_copies


def scene(seed: int) -> Image.Image:
    """A picture of its own: smooth shapes and some noise."""
    rng = np.random.default_rng(seed)
    shapes = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (240, 180), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(shapes).astype(int) + rng.integers(-9, 10, (180, 240, 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def compressed(image: Image.Image) -> Image.Image:
    data = BytesIO()
    image.save(data, "JPEG", quality=40)
    return Image.open(data)


def thumbnail(image: Image.Image) -> bytes:
    return appearance(np.moveaxis(np.asarray(image), -1, 0))["thumbnail"]


@cache
def scenes() -> list[bytes]:
    return [thumbnail(scene(seed)) for seed in range(300)]


EDITS = {
    "half": lambda image: image.resize((120, 90)),
    "double": lambda image: image.resize((480, 360)),
    "compressed": compressed,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_copies_are_in_the_set_of_their_image(edit):
    copies = [thumbnail(EDITS[edit](scene(seed))) for seed in range(0, 300, 10)]
    numbers = near_copies([*scenes(), *copies])
    for i, seed in enumerate(range(0, 300, 10)):
        assert numbers[seed] == numbers[300 + i] >= 0
    assert (np.bincount(numbers[numbers >= 0]) == 2).all()  # no other image is in any set


def test_different_scenes_have_no_near_copies_and_constant_images_are_left_out():
    assert (near_copies([*scenes(), None, None]) == -1).all()
    assert near_copies([]).tolist() == []


def test_the_sets_are_those_of_comparing_all_pairs():
    few = [thumbnail(scene(seed // 3).resize((240 - 20 * (seed % 3), 180))) for seed in range(60)]
    numbers = near_copies(few)
    pixels = np.frombuffer(b"".join(few), np.uint16).reshape(60, 16, 16).astype(float)
    edges = [np.concatenate([np.diff(p, axis=0).ravel(), np.diff(p, axis=1).ravel()]) for p in pixels]
    for i in range(60):
        for j in range(i):
            alike = edges[i] @ edges[j] / np.linalg.norm(edges[i]) / np.linalg.norm(edges[j]) >= 0.97
            assert not alike or numbers[i] == numbers[j] >= 0
