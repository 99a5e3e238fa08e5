"""What each band and each modality tells an encoder, what a class's spectrum is, and whether two modalities agree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count

import numpy as np
import pandas as pd

from simtrail.data.pack import PackedImages
from simtrail.evaluation.assess import Embedded
from simtrail.evaluation.difference import Difference, paired
from simtrail.evaluation.geometry import unit
from simtrail.evaluation.label_efficiency import draw
from simtrail.evaluation.probe import class_weight, fit_logistic
from simtrail.evaluation.tasks import Task
from simtrail.model.encoder import Encoder

LARGEST = 2000  # images whose bands are permuted, or whose spectra are averaged
PERMUTATIONS = 3
BATCH, HELD_BYTES = 64, 2**26  # packed images taken at once: a cube of 408 bands × 224 × 224 pixels is 41 MB
Groups = Mapping[str, Sequence[int]]  # name → positions of bands


def band_groups(
    bands: list[str],
    wavelengths: Sequence[float | None] | None,
    modalities: Mapping[str, list[int]],
    largest: int = 24,
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """What to hide at a time, name → positions: every band by itself, and every modality.

    Bands come by wavelength (nm), those without one after them in their order; a mere number for a name (band19) says
    nothing, its wavelength is added. Of more than `largest` (≥ 2) bands, runs
    of equally many neighbours, to one, named '400–430 nm' or 'bands 1–17'. A modality of all bands is left out: without
    it there is no image.
    """
    nm = dict(enumerate(wavelengths or [None] * len(bands)))
    spectrum = sorted((i for i in nm if nm[i] is not None), key=lambda i: nm[i] or 0)
    kinds = [kind for kind in (spectrum, [i for i in nm if nm[i] is None]) if kind]  # no run is of both
    width = next(w for w in count(1) if sum(-(-len(kind) // w) for kind in kinds) <= largest)
    runs = [run.tolist() for kind in kinds for run in np.array_split(kind, -(-len(kind) // width))]

    def name(first: int, last: int) -> str:
        if first == last:
            return band_title(bands[first], nm[first]) if re.fullmatch(r"band\d+", bands[first]) else bands[first]
        if nm[first] is None:
            return f"bands {first + 1}–{last + 1}"
        return f"{round(nm[first] or 0, 1):g}–{round(nm[last] or 0, 1):g} nm"

    parts = {modality: held for modality, held in modalities.items() if len(held) < len(bands)}
    return {name(run[0], run[-1]): run for run in runs}, parts


def band_title(name: str, nm: float | None) -> str:
    """A band's name with its wavelength in nm, where that is known: 'band19 (667.5 nm)'."""
    return name if nm is None else f"{name} ({round(nm, 1):g} nm)"


def occlusion(
    encoder: Encoder, images: PackedImages, rows: np.ndarray, groups: Groups, fill: np.ndarray, block: np.ndarray
) -> pd.DataFrame:
    """group, angle, angle_low, angle_high: the mean angle in degrees, 0 to 180, by which the features of the images
    `rows` turn when the bands of a group are replaced by `fill`.

    `fill`, (bands,) in packed units, is the training mean: what the encoder sees as zero once it has normalised; it
    takes the place of the organism alone, where the recipe tells that from the background. The
    interval is that of 95 % of bootstraps over blocks, (N,) numbers of the `rows`. Needs no labels, but tells how much
    the features respond, not whether what they say by it is of use; and a band that its neighbours repeat turns little.
    """
    value = np.rint(fill)[:, None, None]
    turned = []
    for span in _spans(images, len(rows)):
        batch = images.rows(rows[span])
        outside = (batch == images.recipe.packed_background).all(1, keepdims=True)
        outside &= images.recipe.masked  # background has no spectrum to hide
        fills = np.where(outside, batch, value)
        whole_BD, hidden = encoder.features(iter([batch])), encoder.features(_replaced(batch, groups, fills))
        hidden_GBD = unit(hidden).view(len(groups), len(batch), -1)
        half_chord = (hidden_GBD - unit(whole_BD)).norm(dim=-1) / 2  # exact for small angles, as the arccosine is not
        turned.append(half_chord.clamp(max=1).asin().mul(2).rad2deg().T.numpy())
    angle = np.concatenate(turned)
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
    """group, drop, drop_low, drop_high: the test accuracy of the linear probe, less that when the bands of a group are
    those of other test images (Breiman 2001, section 10; Fisher et al. 2019, arXiv 1801.01489, section 3.2).

    The probe is fitted once, to the training and validation images, with the C and the weights (`balanced`) of
    `linear_probe`; of the test split, at most `LARGEST` seeded images are
    encoded again, in `PERMUTATIONS` permutations, whose mean is taken. The interval is that of the paired difference.

    Blocks move as wholes, as far as they are equally large: were images drawn one by one, many would get the bands of
    their own specimen, which tell what they should not. What other bands tell as well is not missed: little may drop
    for each of two modalities that are worth much together. An image's bands then also show two shapes, one upon the
    other; what drops is what the encoder reads from the group, its fit with the others included.
    """
    encoder, images = embedded.encoder, embedded.images
    features, known = embedded.features[task.rows], np.flatnonzero(~task.test)
    weight = class_weight(task.labels[known]) if balanced else None
    probe = next(fit_logistic(features, task.labels, len(task.names), (c,), rows=known, weight=weight))
    rng = np.random.default_rng(seed)
    test = np.sort(rng.permutation(np.flatnonzero(task.test))[:LARGEST])
    rows, truth, block = task.rows[test], task.labels[test], task.group[test]
    correct = np.zeros((len(test), len(groups)))
    for _ in range(PERMUTATIONS):
        givers = rows[_givers(block, rng)]
        for span in _spans(images, len(rows)):
            batches = _replaced(images.rows(rows[span]), groups, images.rows(givers[span]))
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
    """class, band, mean, sd, images: the spectrum of each class, over the mean spectra of its images.

    sd is that between images, NaN of a single one. `labels` are class numbers of the `rows`, indices of `names`. The
    `ends`, (bands,) each, are what the packed 0 and full scale stand for, in the file's units or in reflectance.
    Background is no specimen and is left out, and so is an image of nothing else.
    Of more than `largest` images, a seeded draw, as many of every class as it has: a rare class's mean matters as much.
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
    class_N = np.where(np.isnan(spectra_NC).any(1), -1, labels[chosen])  # −1: nothing but background
    tables = [
        _spectrum(spectra_NC[class_N == c], images.recipe.bands, name)
        for c, name in enumerate(names)
        if (class_N == c).any()
    ]
    return pd.concat(tables, ignore_index=True)


def _spans(images: PackedImages, n: int) -> list[slice]:
    """Consecutive parts of n images, each small enough to be held."""
    step = max(1, min(BATCH, HELD_BYTES // images.rows(np.zeros(1, int)).nbytes))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def _replaced(batch: np.ndarray, groups: Groups, other: np.ndarray) -> Iterator[np.ndarray]:
    """For each group, the batch with the group's bands those of `other`."""
    other = np.broadcast_to(other, batch.shape)
    for bands in groups.values():
        copy = batch.copy()
        copy[:, bands] = other[:, bands]
        yield copy


def _givers(block: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each image another that gives it its bands, each once, and of another block where no block has over half.

    The images are lined up by block, in random order, and all look as many places on as the largest block is long.
    """
    _, number, size = np.unique(block, return_inverse=True, return_counts=True)
    line = np.lexsort((rng.random(len(block)), rng.permutation(len(size))[number]))
    givers = np.empty_like(line)
    givers[line] = np.roll(line, min(size.max(), len(block) // 2))
    return givers


def _table(groups: Groups, name: str, found: Difference) -> pd.DataFrame:
    return pd.DataFrame(
        {"group": list(groups), name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    )


def _spectrum(spectra_NC: np.ndarray, bands: list[str], name: str) -> pd.DataFrame:
    table = pd.DataFrame(spectra_NC, columns=bands).agg(["mean", "std"]).T.rename_axis("band").reset_index()
    table = table.rename(columns={"std": "sd"}).assign(images=len(spectra_NC))
    table.insert(0, "class", name)
    return table
