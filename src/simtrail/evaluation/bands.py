"""How important each band and each modality is to an encoder, and the mean spectrum of each class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count

import numpy as np
import pandas as pd
from tqdm import tqdm

from simtrail.data.pack import PackedImages
from simtrail.evaluation.assess import Embedded
from simtrail.evaluation.difference import Difference, paired
from simtrail.evaluation.geometry import unit
from simtrail.evaluation.label_efficiency import draw
from simtrail.evaluation.names import band_title
from simtrail.evaluation.probe import class_weight, fit_logistic
from simtrail.evaluation.tasks import Task
from simtrail.model.encoder import Encoder

LARGEST = 2000  # images whose bands are permuted, or whose spectra are averaged
PERMUTATIONS = 3
BATCH, HELD_BYTES = 64, 2**26  # packed images in memory at a time: a cube of 408 bands × 224 × 224 pixels is 41 MB
Groups = Mapping[str, Sequence[int]]  # name → indices of bands


def band_groups(
    bands: list[str],
    wavelengths: Sequence[float | None] | None,
    modalities: Mapping[str, list[int]],
    largest: int = 24,
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """The groups of bands to hide, name → indices: every band separately, and every modality.

    Bands are sorted by wavelength (nm). Bands without a wavelength follow, in their order. A name with no meaning, like
    band19, gets its wavelength added. More than `largest` (≥ 2) bands are grouped in runs of neighbours, named
    '400–430 nm' or 'bands 1–17'; the lengths of the runs differ by one at most. A modality of all bands is left out:
    without it there is no image.
    """
    nm = dict(enumerate(wavelengths or [None] * len(bands)))
    with_nm = sorted((i for i in nm if nm[i] is not None), key=lambda i: nm[i] or 0)
    without_nm = [i for i in nm if nm[i] is None]
    parts = [part for part in (with_nm, without_nm) if part]  # a run has bands of one part only
    width = next(w for w in count(1) if sum(-(-len(part) // w) for part in parts) <= largest)
    runs = [run.tolist() for part in parts for run in np.array_split(part, -(-len(part) // width))]

    def name(first: int, last: int) -> str:
        if first == last:
            return band_title(bands[first], nm[first]) if re.fullmatch(r"band\d+", bands[first]) else bands[first]
        if nm[first] is None:
            return f"bands {first + 1}–{last + 1}"
        return f"{round(nm[first] or 0, 1):g}–{round(nm[last] or 0, 1):g} nm"

    hideable = {modality: indices for modality, indices in modalities.items() if len(indices) < len(bands)}
    return {name(run[0], run[-1]): run for run in runs}, hideable


def occlusion(
    encoder: Encoder, images: PackedImages, rows: np.ndarray, groups: Groups, fill: np.ndarray, block: np.ndarray
) -> pd.DataFrame:
    """The mean angle by which features turn when a group of bands is hidden: group, angle, angle_low, angle_high.

    Angles are in degrees, 0 to 180. Hidden bands of the images `rows` are replaced by `fill`, (bands,) in packed units:
    the training mean, which the encoder normalises to zero. If the recipe masks the background, only the pixels of the
    object are replaced. `block`, (N,), has the block number of each of the `rows`; the 95 % interval is bootstrapped
    over blocks. No labels are needed. The angle measures how much the features respond to a group, not whether the
    response is useful. It is small for a band with the same information as its neighbours.
    """
    value = np.rint(fill)[:, None, None]
    angles = []
    for span in _spans(images, len(rows)):
        batch = images.rows(rows[span])
        outside = (batch == images.recipe.packed_background).all(1, keepdims=True)
        outside &= images.recipe.cut_outs  # background has no spectrum to hide
        fills = np.where(outside, batch, value)
        whole_BD, hidden = encoder.features(iter([batch])), encoder.features(_replaced(batch, groups, fills))
        hidden_GBD = unit(hidden).view(len(groups), len(batch), -1)
        half_chord = (hidden_GBD - unit(whole_BD)).norm(dim=-1) / 2  # exact for small angles, unlike the arccosine
        angles.append(half_chord.clamp(max=1).asin().mul(2).rad2deg().T.numpy())
    angle = np.concatenate(angles)
    return _table(groups, "angle", paired(np.zeros_like(angle), angle, block))


def permutation(
    embedded: Embedded,
    task: Task,
    groups: Groups,
    c: float,
    *,
    balanced: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """How much the probe's test accuracy drops when images exchange bands: group, drop, drop_low, drop_high.

    Permutation importance (Breiman 2001, section 10; Fisher et al. 2019, arXiv 1801.01489, section 3.2): the bands of a
    group come from other test images. The linear probe is fitted once, on the training and validation images, with the
    C and the weights (`balanced`) of `linear_probe`. At most `LARGEST` test images, a seeded sample, are encoded again
    in each of `PERMUTATIONS` permutations; the drop is the mean over these. The interval is for the paired
    difference.

    Whole blocks exchange bands, as far as they are equally large. If single images did, many would get the bands of
    another image of the same specimen, and these show the same class. Information that other bands hold too is not
    missed: for two modalities that are important together, each drop may be small. An image with exchanged bands shows
    two shapes, one over the other. The drop therefore includes how well the group matches the other bands.
    """
    encoder, images = embedded.encoder, embedded.images
    features, fit_rows = embedded.features[task.rows], np.flatnonzero(~task.test)
    weight = class_weight(task.labels[fit_rows]) if balanced else None
    probe = next(fit_logistic(features, task.labels, len(task.names), (c,), rows=fit_rows, weight=weight))
    rng = np.random.default_rng(seed)
    test = np.sort(rng.permutation(np.flatnonzero(task.test))[:LARGEST])
    rows, truth, block = task.rows[test], task.labels[test], task.group[test]
    correct = np.zeros((len(test), len(groups)))
    for _ in tqdm(range(PERMUTATIONS), "permutations", disable=None, leave=False):
        donors = rows[_donors(block, rng)]
        for span in _spans(images, len(rows)):
            batches = _replaced(images.rows(rows[span]), groups, images.rows(donors[span]))
            predicted_GB = probe.probabilities(encoder.features(batches)).argmax(1).reshape(len(groups), -1)
            correct[span] += (predicted_GB == truth[span]).T
    before = probe.probabilities(features[test]).argmax(1) == truth
    drop = paired(correct / PERMUTATIONS, np.repeat(before[:, None], len(groups), 1), block)
    return _table(groups, "drop", drop)


def mean_spectra(
    images: PackedImages,
    rows: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    ends: tuple[np.ndarray, np.ndarray],
    *,
    largest: int = LARGEST,
    seed: int = 0,
) -> pd.DataFrame:
    """The mean spectrum of each class, from the mean spectra of its images: class, band, mean, sd, images.

    sd is the standard deviation between images, NaN for a single image. `labels` are the class numbers of the `rows`:
    indices of `names`. `ends` are two arrays (bands,): the values, in the file's units or in reflectance, for which the
    packed 0 and the full scale stand. Background pixels are left out, and so are images of background only. From more
    than `largest` images, a seeded draw takes equally many of every class, as far as it has them: the mean of a rare
    class matters as much.
    """
    chosen = np.sort(draw(labels, largest, "balanced", seed))
    full_scale = images.recipe.full_scale
    parts = []
    for span in _spans(images, len(chosen)):
        batch = images.rows(rows[chosen[span]])
        inside = (batch != images.recipe.packed_background).any(1, keepdims=True)
        with np.errstate(invalid="ignore"):
            parts.append(batch.sum((2, 3), np.float64, where=inside) / inside.sum((2, 3)))
    low, high = map(np.asarray, ends)
    spectra_NC = low + np.concatenate(parts) / full_scale * (high - low)
    class_N = np.where(np.isnan(spectra_NC).any(1), -1, labels[chosen])  # −1: background only
    tables = [
        _spectrum(spectra_NC[class_N == c], images.recipe.bands, name)
        for c, name in enumerate(names)
        if (class_N == c).any()
    ]
    return pd.concat(tables, ignore_index=True)


def _spans(images: PackedImages, n: int) -> list[slice]:
    """Consecutive parts of n images, each small enough for the memory."""
    step = max(1, min(BATCH, HELD_BYTES // images.rows(np.zeros(1, int)).nbytes))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def _replaced(batch: np.ndarray, groups: Groups, other: np.ndarray) -> Iterator[np.ndarray]:
    """For each group, a copy of the batch in which the bands of the group come from `other`."""
    other = np.broadcast_to(other, batch.shape)
    for bands in groups.values():
        copy = batch.copy()
        copy[:, bands] = other[:, bands]
        yield copy


def _donors(block: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each image, the image that gives it bands: each gives once; of another block if no block has over half.

    The images are sorted by block, with blocks and images in random order. Each gets the bands of the image that is n
    positions before it, where n is the size of the largest block.
    """
    _, number, size = np.unique(block, return_inverse=True, return_counts=True)
    order = np.lexsort((rng.random(len(block)), rng.permutation(len(size))[number]))
    donors = np.empty_like(order)
    donors[order] = np.roll(order, min(size.max(), len(block) // 2))
    return donors


def _table(groups: Groups, name: str, result: Difference) -> pd.DataFrame:
    return pd.DataFrame(
        {"group": list(groups), name: result.value, f"{name}_low": result.low, f"{name}_high": result.high}
    )


def _spectrum(spectra_NC: np.ndarray, bands: list[str], name: str) -> pd.DataFrame:
    table = pd.DataFrame(spectra_NC, columns=bands).agg(["mean", "std"]).T.rename_axis("band").reset_index()
    table = table.rename(columns={"std": "sd"}).assign(images=len(spectra_NC))
    table.insert(0, "class", name)
    return table
