"""Self-contained HTML pages that share one look, and the first of them: the result of the checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import ChainableUndefined, Environment
from markupsafe import Markup


def validation_page(result: dict[str, Any], manifest: pd.DataFrame, others: list[str]) -> str:
    """The page as text: what validation.json holds, the facts of the manifest, and the files that are no images."""
    usable = manifest[manifest["rejected"].isna()]
    span = {side: f"{usable[side].min()} to {usable[side].max()}" for side in ("width", "height") if len(usable)}
    facts = {
        "data version (DVC md5)": result["data_md5"],
        "images": f"{len(manifest)} in {manifest['bytes'].sum() / 1e6:.1f} MB",
        **{f"{side}, px": text for side, text in span.items()},
        "pixels": ", ".join(
            f"{kind} × {bands} bands" for kind, bands in sorted(set(zip(usable["dtype"], usable["bands"], strict=True)))
        ),
        "groups": manifest["group"].nunique() or "none declared",
        "files that are no images": ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        or "none",
    }
    classes = manifest["label"].fillna("(no label)").value_counts().to_dict()
    return render(Path(__file__).with_name("validation.html.j2"), **result, facts=facts, classes=classes)


def render(template: Path, **values: Any) -> str:
    """The text that a Jinja template makes of values; those of an HTML template are escaped, and it has `css`."""
    html = template.name.endswith(".html.j2")
    environment = Environment(autoescape=html, trim_blocks=True, lstrip_blocks=True, undefined=ChainableUndefined)
    values["css"] = Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)
