"""Opens arrays in NumPy, MATLAB, HDF5 and NetCDF files as images."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np

from simtrail.data.reading.decoded import BandFacts, DecodedImage, Limits, Reading, arranged
from simtrail.errors import listed

SUFFIXES = frozenset({".npy", ".npz", ".mat", ".h5", ".hdf5", ".he5", ".nc", ".nc4"})
_LETTERS = {  # usual names of dimensions
    "Y": {"y", "lat", "latitude", "row", "rows", "line", "lines", "height", "northing"},
    "X": {"x", "lon", "longitude", "col", "cols", "column", "columns", "sample", "samples", "width", "easting"},
    "C": {"c", "band", "bands", "channel", "channels", "wavelength", "wavelengths", "wl", "spectral", "lambda"},
    "Z": {"z", "depth", "lev", "level"},
    "T": {"t", "time"},
}


class _Array(NamedTuple):
    """An array in a file that has not been read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    dims: tuple[str, ...] = ()  # names of its dimensions, if it has any
    attributes: Mapping[str, Any] = MappingProxyType({})
    wavelengths: Callable[[], tuple[np.ndarray, str] | None] = lambda: None  # values and unit of its band coordinate

    @property
    def is_image(self) -> bool:
        return self.dtype.kind in "uif" and sum(n > 1 for n in self.shape) >= 2 and 0 not in self.shape


def open_array(path: Path, reading: Reading, limits: Limits) -> DecodedImage:
    """The image in an array file. A .npy array is a memory map, the others are read.

    Without names of dimensions, an array is (H, W) or (H, W, C), as MATLAB and NumPy users write it. Raises ValueError
    if there is no such array, or more than one and `reading.array` does not name it.
    """
    opened, close = _arrays(path)
    try:
        array = _chosen(opened, reading)
        limits.require(array.shape, array.dtype)
        return _image(array, reading)
    finally:
        close()


def _image(array: _Array, reading: Reading) -> DecodedImage:
    values = array.read()
    if values.dtype.kind not in "uif":
        raise ValueError(f"array of {values.dtype}: must be numbers")
    image, notes = arranged(values, _axes(array, values.ndim, reading), reading)
    guessed = not array.dims and reading.axes is None
    if guessed and values.ndim == 3 and values.shape[2] > min(values.shape[:2]):
        notes = (*notes, "read as height × width × bands; if its bands come first, set axes: CYX in dataset.yaml")
    return DecodedImage(image, False, _facts(array, len(image)), notes)


def _axes(array: _Array, ndim: int, reading: Reading) -> str:
    """The axes of an array, by the names of its dimensions, or as NumPy and MATLAB users write images."""
    known = {name: letter for letter, names in _LETTERS.items() for name in names}
    letters = "".join(known.get(name.lower(), "?") for name in array.dims)
    if array.dims and "?" not in letters and len(set(letters)) == ndim:
        return letters
    if reading.axes is not None:
        return reading.axes if len(reading.axes) == ndim else "YXCABDEFGH"[:ndim]
    if array.dims:
        names = ", ".join(array.dims)
        raise ValueError(f"dimensions {names}: which are height, width, bands? Set axes in dataset.yaml, such as CYX")
    if ndim > 3:
        raise ValueError(
            f"array of shape {array.shape}: must be (height, width) or (height, width, bands), or set axes in "
            "dataset.yaml"
        )
    return "YXC"[:ndim]


def _chosen(arrays: dict[str, _Array], reading: Reading) -> _Array:
    images = [name for name, array in arrays.items() if array.is_image]
    if reading.array is not None:
        if reading.array not in arrays:
            raise ValueError(f"no array {reading.array!r}, which dataset.yaml names; it has {listed(list(arrays))}")
        return arrays[reading.array]
    if len(images) != 1:
        shapes = [f"{name} {arrays[name].shape} of {arrays[name].dtype}" for name in (images or arrays)]
        how = (
            "several arrays that may be the image; name one by array in dataset.yaml"
            if images
            else "no array of numbers"
        )
        raise ValueError(f"{how}: {listed(shapes) or 'the file is empty'}")
    return arrays[images[0]]


def _facts(array: _Array, bands: int) -> BandFacts:
    """Facts in the attributes of the CF conventions, and the wavelengths of the bands."""
    attributes = {key: np.ravel(value) for key, value in array.attributes.items()}

    def number(*keys: str) -> float | None:
        values = next((attributes[key] for key in keys if key in attributes), np.empty(0))
        one = len(values) == 1 and np.issubdtype(values.dtype, np.number)
        return float(str(values[0])) if one else None  # as text, so that float32 0.1 is 0.1

    gain, offset = number("scale_factor"), number("add_offset")
    scaled = (gain or 1) != 1 or bool(offset)
    lengths = None
    if (found := array.wavelengths()) is not None and len(found[0]) == bands:
        unit = found[1].lower()
        if unit in ("nm", "nanometer", "nanometers", "nanometre", "nanometres"):
            lengths = found[0].tolist()
        elif unit in ("um", "µm", "micrometer", "micrometers", "micron", "microns", "micrometre", "micrometres"):
            lengths = (found[0] * 1000).round(9).tolist()
    return BandFacts(
        wavelengths=lengths,
        gains=[1.0 if gain is None else gain] * bands if scaled else None,
        offsets=[offset or 0.0] * bands if scaled else None,
        nodata=number("_FillValue", "missing_value"),
    )


def _arrays(path: Path) -> tuple[dict[str, _Array], Callable[[], object]]:
    """The arrays of a file by name, and a function that closes it."""
    with path.open("rb") as file:
        head = file.read(520)  # MATLAB 7.3 writes 512 bytes of its own before those of HDF5
    if not head:
        raise ValueError("empty file (0 bytes)")
    if head[:6] == b"\x93NUMPY":
        return _npy(path)
    if head[:4] == b"PK\3\4":
        return _npz(path)
    if head[:3] == b"CDF":
        return _classic_netcdf(path)
    if b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:520]):
        return _hdf5(path, matlab=head[:10] == b"MATLAB 7.3")
    if path.suffix.lower() == ".mat":
        return _matlab(path)
    raise ValueError(f"not a {path.suffix.lower()} file, despite its name")


def _npy(path: Path) -> tuple[dict[str, _Array], Callable[[], object]]:
    try:
        image = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise ValueError(f"not a complete NumPy array ({' '.join(str(error).split())})") from None
    if image.ndim < 2 or not image.size or image.dtype.kind not in "uif":
        raise ValueError(
            f"array of {image.dtype} {image.shape}: must be numbers, (height, width) or (height, width, bands)"
        )
    return {path.stem: _Array(image.shape, image.dtype, lambda: image)}, lambda: None


def _npz(path: Path) -> tuple[dict[str, _Array], Callable[[], object]]:
    archive, arrays = ZipFile(path), {}
    for info in archive.infolist():
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(member)

        def read(name: str = info.filename) -> np.ndarray:
            with archive.open(name) as member:
                return np.lib.format.read_array(member, allow_pickle=False)

        arrays[info.filename.removesuffix(".npy")] = _Array(shape, dtype, read)
    return arrays, archive.close


def _matlab(path: Path) -> tuple[dict[str, _Array], Callable[[], object]]:
    from scipy.io import whosmat

    _require_elements(path)
    contents = whosmat(path)
    types = {"single": "f4", "double": "f8", "logical": "?", "char": "U", "cell": "O", "struct": "O", "object": "O"}
    arrays = {}
    for name, shape, kind in contents:
        dtype = np.dtype(types.get(kind, kind if kind.removeprefix("u").startswith("int") else "O"))
        arrays[name] = _Array(tuple(shape), dtype, partial(_variable, path, name))
    return arrays, lambda: None


def _variable(path: Path, name: str) -> np.ndarray:
    from scipy.io import loadmat

    return loadmat(path, variable_names=[name])[name]


def _require_elements(path: Path) -> None:
    """Raises ValueError if the elements of a MATLAB 5 file do not fill it exactly: scipy crashes on broken files."""
    size = path.stat().st_size
    with path.open("rb") as file:
        order = {b"IM": "<", b"MI": ">"}.get(file.read(128)[126:128])
        if order is None:  # MATLAB 4 has no such header
            return

        def element() -> tuple[int, int]:
            """The type of the element at the present position, and where it ends."""
            start = file.tell()
            kind, length = struct.unpack(f"{order}II", file.read(8).ljust(8, b"\0"))
            if kind >> 16:  # a small element: 8 bytes with its data
                return kind & 0xFFFF, start + 8
            return kind, start + 8 + length

        while file.tell() < size:
            kind, end = element()
            good = kind in (14, 15) and end <= size  # miMATRIX, miCOMPRESSED
            while good and kind == 14 and file.tell() < end:
                part, end_of_part = element()
                good = 1 <= part <= 18 and end_of_part <= end
                file.seek(end_of_part + -end_of_part % 8)
            if not good:
                raise ValueError("truncated or broken MATLAB file")
            file.seek(end)


def _classic_netcdf(path: Path) -> tuple[dict[str, _Array], Callable[[], object]]:
    from scipy.io import netcdf_file

    file = netcdf_file(path, "r", mmap=True)  # without, it takes the memory that a broken file claims
    arrays = {}
    for name, variable in file.variables.items():
        if name in file.dimensions:
            continue

        def wavelengths(dims: tuple[str, ...] = variable.dimensions) -> tuple[np.ndarray, str] | None:
            for name in dims:
                if name.lower() in _LETTERS["C"] and (band := file.variables.get(name)) is not None:
                    return np.array(band[:], float), _text(getattr(band, "units", ""))
            return None

        def read(variable: Any = variable) -> np.ndarray:
            values = variable[:]
            return values.astype(values.dtype.newbyteorder("="))  # a copy, because the file will be closed

        dtype = np.dtype(variable.typecode() if variable.typecode() != "c" else "S1")
        attributes = {key: getattr(variable, key) for key in variable._attributes}
        arrays[name] = _Array(tuple(variable.shape), dtype, read, variable.dimensions, attributes, wavelengths)

    def close() -> None:
        for variable in file.variables.values():
            variable.data = None  # views of the file
        file.close()

    return arrays, close


def _hdf5(path: Path, matlab: bool) -> tuple[dict[str, _Array], Callable[[], object]]:
    """The arrays of an HDF5 file, which may be NetCDF 4 or MATLAB 7.3; MATLAB stores arrays with reversed axes."""
    import h5py

    file = h5py.File(path, "r")
    arrays: dict[str, _Array] = {}

    def scales(item: Any) -> list[Any]:
        """For each dimension, the dataset with its coordinates, or None; h5py's own `dims` crash on broken files."""
        references = item.attrs.get("DIMENSION_LIST", ())
        return [file[axis[0]] if len(axis) and axis[0] else None for axis in references] or [None] * item.ndim

    def add(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or name.startswith("#refs#") or item.shape is None:
            return
        if _text(item.attrs.get("CLASS", "")) == "DIMENSION_SCALE":
            return
        reverse = matlab or "MATLAB_class" in item.attrs
        coordinates, labels = scales(item), item.attrs.get("DIMENSION_LABELS", [""] * item.ndim)
        dims = tuple(
            _text(label) or ("" if scale is None else str(scale.name).rsplit("/", 1)[-1])
            for label, scale in zip(labels, coordinates, strict=True)
        )

        def wavelengths() -> tuple[np.ndarray, str] | None:
            for name, scale in zip(dims, coordinates, strict=True):
                is_list = scale is not None and scale.ndim == 1 and scale.dtype.kind in "uif"
                if is_list and name.lower() in _LETTERS["C"]:
                    return np.array(scale[:], float), _text(scale.attrs.get("units", ""))
            return None

        shape = item.shape[::-1] if reverse else item.shape
        read = lambda: item[()].T if reverse else item[()]  # noqa: E731
        named = dims if all(dims) and not reverse else ()
        arrays[name] = _Array(shape, item.dtype, read, named, dict(item.attrs), wavelengths)

    file.visititems(add)
    return arrays, file.close


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
