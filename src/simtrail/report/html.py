"""Self-contained HTML pages and Markdown from templates, with one style sheet and with figures inside the page."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
LARGEST_SVG = 300_000  # bytes


def render(template: str, **values: Any) -> str:
    """The text of a template, filled with values; HTML templates escape them. `css` is the style sheet."""
    html = template.endswith(".html.j2")
    environment = Environment(autoescape=html, trim_blocks=True, lstrip_blocks=True, undefined=ChainableUndefined)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # without sort_keys: keys keep their order
    values["css"] = Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))
    return environment.from_string((TEMPLATES / template).read_text(encoding="utf-8")).render(**values)


def picture(path: Path) -> str | None:
    """A figure as a data URI: its SVG, or its PNG if the SVG is big or missing; None without a file.

    `path` has no suffix.
    """
    svg, png = path.with_name(f"{path.name}.svg"), path.with_name(f"{path.name}.png")
    if svg.exists() and not (png.exists() and svg.stat().st_size > LARGEST_SVG):
        return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode()}"
    return f"data:image/png;base64,{base64.b64encode(png.read_bytes()).decode()}" if png.exists() else None
