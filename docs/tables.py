"""Writes the tables and figures of README.md and docs/results.md that come from benchmarks/results.

    python docs/tables.py

A block between `<!-- results: NAME -->` and `<!-- end -->` gets what the function NAME below makes of the results, with
their machine and date.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs/results.md")
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SETS = {
    "butterflies": "wings, 31 genera",
    "cifar10": "CIFAR-10, 5,000 images",
    "plankton": "plankton, 121 classes, 6,000 images",
    "water_s2": "7-band satellite tiles",
    "demo": "demo, 12 species",
    "cubes": "100 generated cubes of 408 bands, 4 kinds",
}
TASKS = {
    "demo: species": "demo, 12 species",
    "wings: genus": "wings, 16 genera seen in pretraining",
    "wings: genus (unseen)": "wings, 15 genera never seen in pretraining",
    "wings: species": "wings, 316 species",
    "water: water_bin": "7-band satellite tiles, water in 4 bins",
}
NETWORKS = {
    "resnet10t": "ResNet-10-T",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "vit_small_patch16_224": "ViT-S/16",
}
SHORT = {"butterflies": "wings", "plankton": "plankton", "cifar10": "CIFAR-10", "demo": "demo"}
WEIGHTS = {  # of first_weights.csv
    "efficientnet-lite0-57934424.pth": "ImageNet",
    "wings": "SimCLR on wings",
    "demo": "SimCLR on these",
    "plankton": "SimCLR on these",
    "cifar10": "SimCLR on these",
    "butterflies": "SimCLR on these",
}
OPTIONS = {  # of settings.csv: how it is called, and the row of options-cpu.csv with its time
    "positives: group": ("`positives: group`", "positives: group"),
    "64 of 96 pixels": (
        "views of 64 from images of 96 pixels, reduced to 64 later",
        "view_size, from 1.5 times the pixels",
    ),
    "64 of 128 pixels": (
        "views of 64 from images of 128 pixels, reduced to 64 later",
        "view_size, from twice the pixels",
    ),
    "4 local views, equal time": ("`local_views: 4`, with fewer steps for equal time", "local_views: 4"),
    "ImageNet teacher, weight 1": ("`teacher` with ImageNet weights, `weight: 1`", "teacher of 1280 features"),
    "ImageNet teacher, weight 5": ("the same, `weight: 5`", ""),
    "weights of an encoder of the wings": ("`weights` of the encoder of the wings", ""),
    "ImageNet weights, equal time": ("`weights` from ImageNet, another network, equal time", ""),
}


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / f"benchmarks/results/{name}.csv")


def table(header: Iterable[str], rows: Iterable[Iterable[Any]], source: pd.DataFrame) -> str:
    """A table in Markdown, with the machines and dates of the results below it."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    text = "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)
    machines = source.groupby("machine", sort=False)["date"].agg(["min", "max"])
    stamps = [f"{name}, {low if low == high else f'{low} to {high}'}" for name, low, high in machines.itertuples()]
    return f"{text}\n*{'; '.join(stamps)}*\n"


def number(value: float, digits: int = 3) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def rate(value: float) -> str:
    """Three digits, or all of a larger number; empty if there is none."""
    return "" if pd.isna(value) else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def gain(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def interval(row: Any) -> str:
    """The accuracy of the linear probe with its interval; bold if it exceeds every floor."""
    low, high = f"{row.probe_low:.3f}", f"{row.probe_high:.3f}"
    probe = number(row.probe)
    exceeds = row.probe_low > max(row.raw_pixels, row.random_encoder)
    return f"{f'**{probe}**' if exceeds else probe} ({low}\u00a0–\u00a0{high})"


def accuracy() -> str:
    """README: the linear probe beside its floors."""
    tasks, sets = read("pipelines").set_index("task"), read("out_of_the_box").set_index("set")
    chosen = [(TASKS["demo: species"], tasks.loc["demo: species"])]
    chosen += [(f"{SETS[name]}, no setting changed", sets.loc[name]) for name in ("butterflies", "cifar10", "plankton")]
    chosen += [(TASKS[name], tasks.loc[name]) for name in ("wings: genus (unseen)", "wings: species")]
    rows = [
        (name, interval(row), number(row.raw_pixels), number(row.random_encoder), number(row.majority))
        for name, row in chosen
    ]
    header = ("data, label", "linear probe, 95 % interval", "16×16 pixels", "random weights", "majority")
    return table(header, rows, pd.DataFrame([row for _, row in chosen]))


def speed() -> str:
    """README: what the training is worth and costs, in sentences."""
    groups = read("settings").query("option == 'positives: group'").set_index("set")["knn_gain"]
    card = read("throughput-gpu").iloc[0]
    core = read("throughput-cpu").query("side == 64 and model == 'resnet18'").iloc[0]
    in_bf16 = f", and {core.step / core.lightly_bf16:.1f} times as with bf16" if core.lightly_bf16 > 0 else ""
    loss = read("nt_xent-cpu").set_index("form")["MB at B = 8192"]
    lines = (
        f"Groups, such as the views of a specimen, are learned from: kNN gains {groups['demo']:.3f} on the demo, "
        f"{groups['butterflies']:.3f} on the wings.",
        f"A training step of a ResNet-18 runs at {core.of_ceiling:.2f} of what the encoder alone would allow on two "
        f"processor cores, {core.step / core.lightly:.1f} times as fast as Lightly as it comes, in float32{in_bf16} "
        f"({core.batch} images of {core.side} px; {core.machine}, {core.date}); on one GPU, at {card.of_ceiling:.2f} "
        f"of it ({card.batch:,} images of {card.side} px, {card.step:,} per second, two views each; {card.machine}, "
        f"{card.date}).",
        f"The loss needs {loss['nt_xent']:.0f} MB instead of {loss['dense nt_xent'] / 1000:.1f} GB at batch 8,192.",
    )
    return "".join(f"- {line}\n" for line in lines)


def pipelines() -> str:
    results = read("pipelines").set_index("task").loc[list(TASKS)].reset_index()
    rows = [
        (
            TASKS[row.task],
            interval(row),
            *(number(value) for value in (row.knn, row.raw_pixels, row.random_encoder, row.majority)),
        )
        for row in results.itertuples()
    ]
    header = ("data, label", "linear probe", "kNN", "16×16 pixels", "random weights", "majority")
    return table(header, rows, results)


def out_of_the_box() -> str:
    results = read("out_of_the_box").set_index("set").loc[list(SETS)].reset_index()
    rows = [
        (
            SETS[row.set],
            f"{row.recipe}, `{row.features}`",
            interval(row),
            number(row.raw_pixels),
            number(row.random_encoder),
            gain(row.gain_low),
            *(number(value) for value in (row.knn, row.knn_pixels, row.knn_random)),
            ", ".join(number(value) for value in (row.lightly_probe, row.lightly_knn) if pd.notna(value)),
            number(row.minutes, 1),
        )
        for row in results.itertuples()
    ]
    header = ("data", "recipe, features", "linear probe", "16×16 pixels", "random weights", "from")
    header += ("kNN", "kNN of pixels", "kNN of random weights", "Lightly: probe, kNN", "minutes")
    return table(header, rows, results)


def options() -> str:
    results, times = read("settings").set_index(["option", "set"]), read("options-cpu").set_index("option")["time"]

    def cell(option: str, name: str) -> str:
        if (option, name) not in results.index:
            return ""
        row, lines = results.loc[(option, name)], []
        for kind in ("probe", "knn"):
            value, low, high = (row[f"{kind}_gain{end}"] for end in ("", "_low", "_high"))
            shown = f"**{gain(value)}**" if low > 0 or high < 0 else gain(value)
            lines.append(f"{'kNN' if kind == 'knn' else kind} {shown} ({gain(low)}\u00a0–\u00a0{gain(high)})")
        return "<br>".join(lines)

    rows = [
        (f"{name}, {times[time]:.2f}" if time else name, *(cell(option, each) for each in SHORT))
        for option, (name, time) in OPTIONS.items()
    ]
    return table(("option, time", *SHORT.values()), rows, read("settings"))


def whitening() -> str:
    """Features as a network gives them, and half-whitened."""
    results = read("first_weights").query("features in ('[1]', '[1, 2, 3]')")
    rows = [
        (
            f"{SHORT[row.set]}, {WEIGHTS[row.weights]}",
            f"`{row.features}`",
            *(number(value) for value in (row.probe, row.probe_whitened, row.knn, row.knn_whitened)),
        )
        for row in results.itertuples()
    ]
    return table(("images, weights", "features", "linear probe", "whitened", "kNN", "whitened"), rows, results)


def bench() -> str:
    results = read("bench")
    rows = [
        (row.what, f"{rate(row.value)} {row.unit}", f"{row.ratio:.2f} × {row.beside}") for row in results.itertuples()
    ]
    return table(("what", "speed", "beside"), rows, results)


def throughput(kind: str) -> str:
    results = read(f"throughput-{kind}").dropna(axis=1, how="all")  # on some machines, bf16 is not measured
    shown = {"ceiling": "ceiling", "step": "whole step", "of_ceiling": "of the ceiling", "views": "views alone"}
    shown |= {"lightly_ready": "Lightly's step", "lightly": "Lightly as it comes", "lightly_bf16": "Lightly with bf16"}
    shown = {column: title for column, title in shown.items() if column in results}
    rows = [
        (
            f"{row.side}, {NETWORKS[row.model]}, {row.batch:,}, {row.precision}{', compiled' if row.compiled else ''}",
            *(number(row.of_ceiling, 2) if column == "of_ceiling" else rate(getattr(row, column)) for column in shown),
        )
        for row in results.itertuples()
    ]
    return table(("pixels, network, batch", *shown.values()), rows, results)


def throughput_gpu() -> str:
    return throughput("gpu")


def throughput_cpu() -> str:
    return throughput("cpu")


def forms() -> str:
    results = read("forms-cpu")
    rows = [(row.form, number(row.speed, 2)) for row in results.itertuples()]
    return table(("form of the encoder alone", "speed"), rows, results)


def files() -> str:
    results = read("files")
    wide = results.pivot(index="files", columns="stage", values=["seconds", "GB"])
    rows = [
        (f"{count:,}", *(f"{row['seconds', stage]:.0f} s, {row['GB', stage]:.1f} GB" for stage in ("check", "prepare")))
        for count, row in wide.iterrows()
    ]
    return table(("files", "`check`", "`prepare`"), rows, results)


def commands() -> str:
    results = read("commands").sort_values("now")
    rows = [(f"`simtrail {row.command}`", number(row.now, 1)) for row in results.itertuples()]
    return table(("command", "seconds"), rows, results)


ON_PAGES = (accuracy, speed, pipelines, out_of_the_box, options, bench, throughput_gpu, throughput_cpu)
BLOCKS: dict[str, Callable[[], str]] = {make.__name__: make for make in (*ON_PAGES, whitening, forms, files, commands)}


def filled(text: str) -> str:
    """A page with its blocks filled in."""
    return BLOCK.sub(lambda match: match[1] + BLOCKS[match[2]]() + match[3], text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
