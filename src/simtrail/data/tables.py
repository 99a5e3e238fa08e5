"""Reads the table of a dataset, as spreadsheets of any country write it: text in every cell, None where it is empty."""

from __future__ import annotations

import csv
import datetime
import io
import math
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from simtrail.errors import InputError, listed

SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx", ".xls", ".xlsb", ".ods", ".parquet")
_OLD_SHEETS = (".xls", ".xlsb", ".ods")
_SEPARATORS = ",;\t|"
_MOST_COLUMNS = 1000


def is_table(path: Path) -> bool:
    """Whether a file has the name of a dataset's table: metadata with one of the suffixes, in any case."""
    return path.stem.lower() == "metadata" and path.suffix.lower() in SUFFIXES


class Table(NamedTuple):
    """A table as text: its columns, and its rows, of as many cells each; None for an empty cell."""

    columns: list[str]
    rows: list[list[str | None]]
    numbers: list[int]  # of the rows in the file, from 1
    notes: tuple[str, ...] = ()  # decisions that a user should know


def load_table(path: Path) -> Table:
    """The table in a .csv, .tsv, .txt, .xlsx or .parquet file; its first row names the columns.

    Separators (comma, semicolon, tab, |) and encodings (UTF-8, UTF-16, else the most probable Windows code page, which
    a note names) are found. Spaces at the ends, empty rows and empty columns are removed. The words NA, nan and None
    stay texts. Raises InputError, with the row's number, for a row with too few or too many cells, a quote that is not
    closed, columns of one name, merged cells, and formulas that failed.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            rows, notes = _parquet(path)
        elif suffix == ".xlsx":
            rows, notes = _sheet(path)
        elif suffix in _OLD_SHEETS:
            raise InputError(f"{path}: {suffix} is not read; save it as .xlsx or as CSV UTF-8")
        else:
            rows, notes = _text(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or ' '.join(str(error).split())}") from None
    cells = [(number, [_cell(path, number, value) for value in row]) for number, row in rows]
    cells = [(number, row) for number, row in cells if any(value is not None for value in row)]
    if not cells:
        raise InputError(f"{path}: no table in it: its first row must name the columns, such as path,species")
    header, body = cells[0][1], cells[1:]
    width = max((i + 1 for i, name in enumerate(header) if name is not None), default=0)
    for number, row in body:  # columns without a name are dropped if they are empty
        longer = [value for value in row[width:] if value is not None]
        if longer or len(row) < width:
            has = len(row) if longer or len(row) < width else width
            raise InputError(
                f"{path}: row {number} has {has} cells, and the first row names {width}; quote a cell that contains "
                "the separator"
            )
    columns = [name if name is not None else f"column {i + 1}" for i, name in enumerate(header[:width])]
    if repeated := [name for i, name in enumerate(columns) if name in columns[:i]]:
        raise InputError(f"{path}: two columns are named {repeated[0]!r}; give every column a different name")
    return Table(columns, [row[:width] for _, row in body], [number for number, _ in body], notes)


_Rows = tuple[list[tuple[int, list[Any]]], tuple[str, ...]]  # numbered rows, and notes


def _cell(path: Path, number: int, value: Any) -> str | None:
    """The value of a cell as text without spaces at its ends; None if it is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        text = str(value).upper()
    elif isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        text = str(int(value))
    elif isinstance(value, datetime.datetime) and value.time() == datetime.time():
        text = value.date().isoformat()
    elif isinstance(value, datetime.date | datetime.time):
        text = value.isoformat()
    else:
        text = str(value).replace("\ufeff", "").replace("\xa0", " ").strip()
    if "\0" in text:
        raise InputError(f"{path}: row {number}: a cell has a null character; save the table again as CSV UTF-8")
    return text or None


def _text(path: Path) -> _Rows:
    data = path.read_bytes()
    text, notes = _decoded(path, data)
    first, _, rest = text.partition("\n")
    if re.fullmatch(r'"?sep=."?', first.strip(" \r"), re.IGNORECASE):
        separator, text, skipped = first.strip(' \r"')[4], rest, 1
    else:
        separator, skipped = _separator(text), 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    csv.field_size_limit(2**24)
    rows: list[tuple[int, list[Any]]] = []
    try:
        rows.extend(enumerate(reader, 1 + skipped))  # rows as a spreadsheet counts them, not lines
    except csv.Error as error:
        hint = "a quote is not closed" if "end of data" in str(error) else str(error)
        raise InputError(f"{path}: row {len(rows) + 1 + skipped}: {hint}; repair the row") from None
    return rows, notes


def _decoded(path: Path, data: bytes) -> tuple[str, tuple[str, ...]]:
    """The text in the bytes of a table, and a note if its encoding is a guess."""
    if data[:4] in (b"PK\3\4", b"\xd0\xcf\x11\xe0", b"PAR1"):
        raise InputError(f"{path}: a spreadsheet or Parquet file with the name of a text; rename it, such as .xlsx")
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    zeros = {data[1:2]: "utf-16-le", data[:1]: "utf-16-be"}  # of an ASCII letter, one of two bytes is 0
    encoding = marks.get(data[:2]) or zeros.get(b"\0") or "utf-8-sig"
    try:
        return data.decode(encoding), ()
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise InputError(f"{path}: not a complete text in UTF-16; save it as CSV UTF-8") from None
    if (page := _code_page(data)) is None:
        raise InputError(f"{path}: the encoding of this text is unknown; save it as CSV UTF-8")
    text = data.decode(page)
    cells = text.replace(";", ",").replace("\t", ",").replace("\n", ",").split(",")
    example = next(" ".join(cell.split()) for cell in cells if not cell.isascii())
    return text, (f"not UTF-8; read as {page}, such as {example!r}; if that is wrong, save it as CSV UTF-8",)


_PUNCTUATION = "¿¡«»“”„‘’‚…–—€°§·\xa0"
_LATIN = ("cp1252", "cp1250", "cp1257", "cp1254")  # of Western Europe first


def _code_page(data: bytes) -> str | None:
    """The most probable Windows code page of a text; None if there is none.

    The code pages with Latin letters differ in few of them, so that statistics of short texts mislead: of these, it is
    the first that turns the fewest bytes into other signs than letters.
    """
    from charset_normalizer import from_bytes

    best = from_bytes(data, cp_isolation=[*_LATIN, "cp1251", "cp1253", "cp932", "gb18030", "cp949", "big5"]).best()
    if best is None or best.encoding not in _LATIN:
        return None if best is None else best.encoding

    def strange(encoding: str) -> int:
        text = data.decode(encoding, "replace")
        return sum(not (c.isascii() or c.isalpha() or c in _PUNCTUATION) for c in text)

    return min(_LATIN, key=strange)


def _separator(text: str) -> str:
    """The separator that makes `path` a cell of the first line, or else cuts it into most cells; outside quotes."""
    line, quoted = list[str](), False
    for character in text:
        if character == '"':
            quoted = not quoted
        elif not quoted and character in "\r\n" and "".join(line).strip():
            break
        elif not (quoted and character in _SEPARATORS):
            line.append(character)
    header = "".join(line).lower()

    def fits(separator: str) -> tuple[bool, int]:
        return "path" in (cell.strip() for cell in header.split(separator)), header.count(separator)

    return max(_SEPARATORS, key=fits)


def _sheet(path: Path) -> _Rows:
    """The first sheet of an .xlsx file that has any cell."""
    from openpyxl import load_workbook

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            books = [load_workbook(path, data_only=values) for values in (True, False)]  # values, formulas
    except Exception as error:  # broken files raise many types of errors
        raise InputError(f"{path}: not an .xlsx file that can be read ({' '.join(str(error).split())})") from None
    filled = [sheet for sheet in books[0].worksheets if any(c.value is not None for c in sheet._cells.values())]
    if not filled:
        return [], ()
    sheet, formulas = filled[0], books[1][filled[0].title]
    if merged := sorted(cells.min_row for cells in sheet.merged_cells.ranges):
        raise InputError(f"{path}: row {merged[0]}: merged cells have a value only in their first cell; split them")
    cells = {key: cell for key, cell in sorted(sheet._cells.items()) if cell.value is not None}
    for (row, column), formula in sorted(formulas._cells.items()):
        cell = cells.get((row, column))
        if cell is not None and cell.data_type == "e":
            raise InputError(f"{path}: row {row}: the formula of a cell failed ({cell.value}); repair it")
        if cell is None and formula.data_type == "f":
            raise InputError(f"{path}: row {row}: a formula was never computed; open and save the file in Excel")
    width = max(column for _, column in cells)
    if width > _MOST_COLUMNS:
        raise InputError(f"{path}: a cell is in column {width}; remove all cells beside the table")
    rows: dict[int, list[Any]] = {}
    for (row, column), cell in cells.items():
        rows.setdefault(row, [None] * width)[column - 1] = cell.value
    others = [other.title for other in filled[1:]]
    notes = (f"only its sheet {sheet.title!r} is read, not {listed(others)}",) if others else ()
    return list(rows.items()), notes


def _parquet(path: Path) -> _Rows:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        names = [name for name in table.column_names if name != "__index_level_0__"]
        values = [table.column(name).to_pylist() for name in names]
    except Exception as error:  # broken files raise many types of errors
        raise InputError(f"{path}: not a Parquet file that can be read: {' '.join(str(error).split())}") from None
    return [(1, list(names)), *enumerate(map(list, zip(*values, strict=True)), 2)], ()
