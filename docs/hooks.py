"""mkdocs hook: writes the tables of parameters.md from the schema of params.yaml."""

from __future__ import annotations

import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))  # the schema of this checkout
from simtrail.params import AUTO, PATTERNS, Params

FEW = 3  # a section with at most this many keys, none of them a section, has its rows in the table of its parent
NAMES = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", type(None): "`null`"}
LIMITS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Puts the tables where parameters.md has its marker."""
    if page.file.src_uri != "parameters.md":
        return markdown
    return markdown.replace("<!-- parameters -->", "\n".join(tables(Params)))


def tables(schema: type[BaseModel], prefix: str = "", default: Any = PydanticUndefined) -> list[str]:
    """The table of a section, and the tables of the sections in it, as lines of Markdown.

    `default` is the section's value in a params.yaml that does not name it, if there is one.
    """
    rows, below = _rows(schema, prefix, default, len(prefix))
    if not prefix:
        return below
    heading = ["", f"#{'#' * min(prefix.count('.'), 3)} {prefix[:-1]} {{: #{prefix[:-1]} }}", ""]
    note = [_text(schema.__doc__), ""] if schema.__doc__ else []
    head = ["| key | values | default | meaning |", "|---|---|---|---|"]
    return [*heading, *note, *head, *rows, *below]


def _rows(schema: type[BaseModel], prefix: str, default: Any, start: int) -> tuple[list[str], list[str]]:
    """The rows of a table, whose keys are shown from their character `start` on, and the lines of the tables below."""
    rows, below = [], []
    for name, field in schema.model_fields.items():
        key = prefix + (field.alias or name)
        value = getattr(default, name) if isinstance(default, schema) else field.get_default(call_default_factory=True)
        section = _section(field.annotation)
        if section and prefix and len(section.model_fields) <= FEW and not _has_sections(section):
            rows += _rows(section, f"{key}.", value, start)[0]
            continue
        if section:
            below += tables(section, f"{key}.", value)
        if section is field.annotation:
            rows.append(f"| `{key[start:]}` | [section](#{key}) | | |")
        else:  # also a section or null, or all, a list or a section
            values = _allowed(field).replace("section", f"[section](#{key})")
            if key in AUTO:
                values, value = f"`auto`, {values}", "auto"
            anchor = "" if section else f"{{: #{key} }}"
            rows.append(f"| `{key[start:]}`{anchor} | {values} | {_value(value)} | {_text(field.description)} |")
    return rows, below


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section in the type of a key, alone or as one of several types."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((section for part in get_args(annotation) if (section := _section(part))), None)


def _has_sections(section: type[BaseModel]) -> bool:
    return any(_section(field.annotation) for field in section.model_fields.values())


def _allowed(field: FieldInfo) -> str:
    """The type of a key and its range."""
    text, limits = _type(field.annotation), _limits(field.metadata)
    if not limits:
        return text
    first, *others = text.split(" or ")
    return " or ".join([f"{first} {limits}", *others])


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{_plain(value)}`" for value in arguments)
    if origin is Annotated:
        limits = _limits(arguments[1:])
        return f"{_type(arguments[0])} {limits}".rstrip()
    if origin in (Union, UnionType):
        return " or ".join(_type(part) for part in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if _section(annotation):
        return "section"
    return NAMES.get(annotation, str(annotation))


def _limits(metadata: Any) -> str:
    """The range in words: `≥ 1`, `0 to 1`."""
    parts = [p for part in metadata for p in getattr(part, "metadata", [part])]  # a FieldInfo has its own list
    names = (*LIMITS, "pattern", "min_length")
    limits: dict[str, Any] = {name: getattr(part, name) for part in parts for name in names if hasattr(part, name)}
    texts = []
    if "ge" in limits and "le" in limits:
        texts.append(f"{limits.pop('ge'):g} to {limits.pop('le'):g}")
    texts += [LIMITS[name].format(f"{limits[name]:g}") for name in LIMITS if name in limits]
    if pattern := limits.get("pattern"):
        texts.append(f"({PATTERNS.get(pattern, pattern)})")
    if "min_length" in limits:
        texts.append("(not empty)")
    return ", ".join(texts)


def _value(value: Any) -> str:
    return "required" if value is PydanticUndefined else f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
