"""The HTML page of the data checks."""

from __future__ import annotations

from typing import Any

import pandas as pd

from simtrail.errors import listed
from simtrail.report.html import render


def validation_page(result: dict[str, Any], manifest: pd.DataFrame) -> str:
    """The page as text: the result of the checks (validation.json) and a summary of the manifest."""
    usable = manifest[manifest["rejected"].isna()]
    sizes = {side: f"{usable[side].min()} to {usable[side].max()}" for side in ("width", "height") if len(usable)}
    pixels = sorted(set(zip(usable["dtype"], usable["bands"], strict=True)))
    facts = {
        "data version (DVC md5)": result["data_md5"],
        "images": f"{len(manifest)} in {manifest['bytes'].sum() / 1e6:.1f} MB",
        **{f"{side}, px": text for side, text in sizes.items()},
        "pixels": ", ".join(f"{dtype} × {bands} bands" for dtype, bands in pixels),
        "groups": manifest["group"].nunique() or "none declared",
        "files that are not images": listed(result.get("other_files", [])) or "none",
    }
    classes = manifest["label"].fillna("(no label)").value_counts().to_dict()
    return render("validation.html.j2", **{"notes": {}, **result}, facts=facts, classes=classes)
