"""Writes docs/tutorial.ipynb from docs/tutorial.md: python docs/notebook.py"""

from __future__ import annotations

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
START = "# Run this in the environment of a finished project: its folder is the parent of this one.\n%cd .."


def notebook(markdown: str) -> str:
    """The text of a notebook: a cell for each block of code, and for each text between them."""
    cells, end = [cell("code", START)], 0
    for match in BLOCK.finditer(markdown):
        cells.append(cell("markdown", markdown[end : match.start()]))
        cells.append(cell("code", ("%%bash\n" if match[1] == "sh" else "") + match[2]))
        end = match.end()
    cells.append(cell("markdown", markdown[end:]))
    for number, each in enumerate(cells):
        each["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    tree = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def cell(kind: str, text: str) -> dict[str, object]:
    """A cell, with empty results if it has code."""
    results = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": text.strip().splitlines(keepends=True), **results}


if __name__ == "__main__":
    (HERE / "tutorial.ipynb").write_text(notebook((HERE / "tutorial.md").read_text(encoding="utf-8")), encoding="utf-8")
