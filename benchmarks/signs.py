"""Draws a set of small road signs in tracks, which nobody photographed: `python benchmarks/signs.py FOLDER`.

40 signs, about 4,000 images of 32×32 pixels in FOLDER, and metadata.csv with label and track. The 14 to 25 frames of a
track come nearer; a track has one light, tint, slant and background. All signs
stand in the middle and upright, so that raw pixels know much, and light and background tell tracks apart, but no signs.
For benchmarks/out_of_the_box.py: `signs=FOLDER,label,track`.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SYMBOLS = [*"↑←→⇄!⚠P★♿⚡☂✈⚓", "STOP", "20", "30", "50", "60", "70", "80"]
CORNERS = {"circle": (90, 0), "triangle": (3, -90), "octagon": (8, 22.5), "diamond": (4, 0), "square": (4, 45)}
COLOURS = [  # rim, inside, symbol
    ((200, 20, 30), (245, 245, 245), (20, 20, 20)),
    ((20, 60, 170), (20, 60, 170), (245, 245, 245)),
    ((60, 60, 60), (240, 240, 240), (30, 30, 30)),
    ((190, 20, 30), (190, 20, 30), (245, 245, 245)),
]
FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf"
SIDE, DRAWN = 32, 160  # of the images, and of the scene that they show


def main() -> None:
    folder, rng, rows = Path(sys.argv[1]), np.random.default_rng(5), []
    (folder / "images").mkdir(parents=True)
    forms = list(product(CORNERS, COLOURS))
    kinds = [(symbol, *forms[i]) for symbol in SYMBOLS for i in rng.choice(len(forms), 2, replace=False)]
    for number, kind in enumerate(kinds):
        sign = drawn(*kind)
        for track in range(rng.integers(3, 8)):
            for frame in frames(sign, rng):
                path = f"images/{len(rows):04}.png"
                Image.fromarray(frame).save(folder / path)
                rows.append({"path": path, "label": f"sign {number:02}", "track": f"{number:02}-{track}"})
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    print(f"{len(rows)} images in {folder}")


def drawn(symbol: str, shape: str, colours: tuple[tuple[int, int, int], ...]) -> Image.Image:
    """A sign of 128×128 pixels, transparent outside."""
    sign = Image.new("RGBA", (128, 128))
    draw, (corners, turned) = ImageDraw.Draw(sign), CORNERS[shape]
    angles = np.radians(turned + 360 * np.arange(corners) / corners)
    for radius, colour in zip((60, 48), colours, strict=False):
        draw.polygon([(64 + radius * np.cos(a), 64 + radius * np.sin(a)) for a in angles], fill=colour)
    font = ImageFont.truetype(FONT, {1: 52, 2: 40, 4: 24}[len(symbol)])
    draw.text((64, 66), symbol, font=font, fill=colours[2], anchor="mm")
    return sign


def frames(sign: Image.Image, rng: np.random.Generator) -> list[np.ndarray]:
    """The frames (32, 32, 3) of one track."""
    light, tint, slant, narrow = (
        rng.uniform(0.4, 1.1),
        rng.uniform(0.95, 1.05, 3),
        rng.normal(0, 5),
        rng.uniform(0.8, 1),
    )
    grey = Image.new("RGB", (DRAWN, DRAWN), tuple(rng.integers(40, 180) + rng.integers(-20, 20, 3)))
    blots = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize((DRAWN, DRAWN), Image.Resampling.BICUBIC)
    count, found = rng.integers(14, 26), []
    for number in range(count):
        scene, side = Image.blend(blots, grey, 0.8), int(rng.uniform(126, 138))
        turned = sign.rotate(slant + rng.normal(0, 1.5), Image.Resampling.BICUBIC).resize((int(side * narrow), side))
        left, top = (int((DRAWN - length) / 2 + rng.normal(0, 2)) for length in turned.size)
        scene.paste(turned, (left, top), turned)
        seen = int(12 + 28 * (number / count) ** 1.3)  # pixels of the camera: the sign comes nearer
        scene = scene.resize((seen, seen), Image.Resampling.BOX)
        if rng.random() < 0.4:
            scene = scene.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1)))
        pixels = np.asarray(scene.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) * light * tint
        noisy = pixels + rng.normal(0, 4, pixels.shape) + rng.uniform(0, 20)
        found.append(noisy.clip(0, 255).astype(np.uint8))
    return found


if __name__ == "__main__":
    main()
