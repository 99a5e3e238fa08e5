"""Draws docs/demo.png, the picture in the README, from the results of `make repro`."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from simtrail.data.demo import SPECIES, render

HERE = Path(__file__).parent
NAMES = ["Aurora minor", "Aurora velata", "Cindaria rubens", "Cindaria ficta", "Noctella serena", "Noctella arcana"]

figure = plt.figure(figsize=(10, 6.4), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=[1.05, 1])
for column, name in enumerate(NAMES):
    assert name in SPECIES
    image = render(name, 7 + column // 2, "dorsal").astype(float) / 255  # the two of a pair differ only in species
    for row, (bands, title) in enumerate((((0, 1, 2), "RGB"), ((3, 4, 5), "ultraviolet"))):
        axis = top.add_subplot(2, len(NAMES), row * len(NAMES) + column + 1)
        axis.imshow(np.clip(image[list(bands)].transpose(1, 2, 0) * (1, 1.8)[row], 0, 1))
        axis.set(xticks=[], yticks=[])
        if row == 0:
            axis.set_title(name, fontsize=10, style="italic")
        if column == 0:
            axis.set_ylabel(title, fontsize=10)
axis = bottom.add_subplot()
axis.imshow(plt.imread(HERE.parent / "artifacts/evaluate/figures/scores-species.png"))
axis.axis("off")
figure.savefig(HERE / "demo.png", dpi=110)
