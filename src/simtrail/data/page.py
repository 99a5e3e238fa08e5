"""The result of the checks as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment


def validation_page(**result: Any) -> str:
    """The page as text; `result` holds what validation.json holds, and `facts` and `classes`."""
    template = Path(__file__).with_name("validation.html.j2").read_text(encoding="utf-8")
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template).render(**result)
