from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from simtrail.data.tiles import corners, cut, table_of_tiles


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (16, 16, [(0, 0)]),
        (32, 16, [(0, 0), (16, 0)]),
        (16, 40, [(0, 0), (0, 12), (0, 24)]),
        (5, 30, [(0, 0), (0, 14)]),
        (33, 17, [(0, 0), (0, 1), (8, 0), (8, 1), (17, 0), (17, 1)]),
    ],
)
def test_the_fewest_tiles_that_cover_the_image_evenly(height, width, expected):
    assert corners(height, width, 16) == expected


def test_every_pixel_is_in_a_tile_and_every_tile_inside_the_image():
    for height in range(16, 70, 7):
        for width in range(16, 70, 9):
            seen = np.zeros((height, width), bool)
            for top, left in corners(height, width, 16):
                assert top + 16 <= height
                assert left + 16 <= width
                seen[top : top + 16, left : left + 16] = True
            assert seen.all()


def test_tiles_are_the_pixels_at_their_corners_and_short_sides_are_padded_on_both_ends():
    plane = np.arange(20 * 37, dtype=np.float32).reshape(20, 37)
    tiles = cut(plane, np.float32(-1), 16)
    for tile, (top, left) in zip(tiles, corners(20, 37, 16), strict=True):
        np.testing.assert_array_equal(tile, plane[top : top + 16, left : left + 16])
    short = cut(plane[:10], np.float32(-1), 16)
    assert len(short) == 3
    assert (short[:, :3] == -1).all()
    assert (short[:, 13:] == -1).all()
    np.testing.assert_array_equal(short[0, 3:13], plane[:10, :16])


def test_a_tile_has_the_facts_of_its_image_and_a_path_of_its_own():
    table = pd.DataFrame({"path": ["a.tif", "b.tif"], "label": ["x", "y"], "group": [None, "place"]})
    tiles = pd.DataFrame({"image": [0, 0, 1], "top": [0, 16, 0], "left": [0, 5, 0]})
    found = table_of_tiles(table, tiles)
    assert found["path"].to_list() == ["a.tif#0,0", "a.tif#16,5", "b.tif#0,0"]
    assert found["label"].to_list() == ["x", "x", "y"]
    assert found["group"].to_list() == ["a.tif", "a.tif", "place"]


def scenes(folder, count: int = 9) -> None:
    """Scenes of 40 × 48 pixels in two classes, whose last third is black."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        image = rng.integers(1, 200, (40, 48, 3), dtype=np.uint8)
        image[..., i % 2] //= 3
        image[:, 32:] = 0
        Image.fromarray(image).save(folder / f"{i}.png")


def test_prepare_cuts_images_into_tiles_that_stay_in_one_split(tmp_path, monkeypatch, capsys):
    import yaml
    from conftest import changed

    from simtrail.pipeline import stages
    from simtrail.pipeline import workspace as ws

    scenes(tmp_path / "data/scenes/images")
    settings = {"data.name": "scenes", "prepare.size": 16, "prepare.fit": "tile", "check.on_fail": "quarantine"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed(settings)))
    monkeypatch.chdir(tmp_path)
    stages.check()
    stages.prepare()
    # 3 × 3 tiles at rows 0, 12, 24 and columns 0, 16, 32, of which the last three are black
    said = capsys.readouterr().out
    assert "9 images cut into tiles; 27 tiles of only background left out" in said
    assert "54 tiles of 3 bands at 16 px" in said
    source = ws.prepared()
    assert len(source.images) == len(source.table) == 54
    assert source.table.groupby("group")["split"].nunique().eq(1).all()
    assert source.table["path"].is_unique
    for row in (0, 20, 53):
        path, _, corner = source.table["path"][row].partition("#")
        top, left = map(int, corner.split(","))
        image = np.asarray(Image.open(tmp_path / "data/scenes" / path)).transpose(2, 0, 1)
        expected = image[:, top : top + 16, left : left + 16]
        np.testing.assert_array_equal(source.images.rows(np.array([row]))[0], expected)
    train = source.images.rows(np.flatnonzero(source.table["split"] == "train")) / 255
    np.testing.assert_allclose(source.statistics["mean"], train.mean((0, 2, 3)), rtol=1e-6)
