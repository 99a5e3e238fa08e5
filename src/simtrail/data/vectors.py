"""Files of features, and what they say of the encoder and the images that they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KEY = b"simtrail"  # in the metadata of a Parquet file


def about_file(out: Path) -> Path:
    """The file that says what `out` was made of: a Parquet file itself, else a JSON file beside it or in its folder."""
    suffix = out.suffix.lower()
    return out if suffix == ".parquet" else out.with_name(f"{out.name}.json") if suffix else out / "about.json"


def about(out: Path) -> dict[str, Any]:
    """What a file of features was made of; empty for a file of somebody else, or if there is none."""
    place = about_file(out)
    if not place.is_file():
        return {}
    try:
        if place != out:
            return dict(json.loads(place.read_text(encoding="utf-8")))
        import pyarrow.parquet as pq  # slow to import

        return dict(json.loads((pq.read_schema(out).metadata or {}).get(KEY, b"{}")))
    except (OSError, ValueError, TypeError):  # pyarrow's errors are ValueErrors
        return {}
