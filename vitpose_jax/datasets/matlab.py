"""Arrays of numbers in MATLAB files of version 5 to 7.2, such as MPII's `mpii_gt_val.mat`.

    file        header of 128 bytes, then elements
    element     tag (type, number of bytes) and data, filled up to 8 bytes; or compressed: an element inside zlib data
    array       an element that contains others: flags with the class, sizes, name, numbers (in column order)

Every size is compared with the bytes that are there before it is used, and a compressed element is unpacked up to a
limit. SciPy's reader is faster for large files, but a damaged file can end the process in it.
The format: "MAT-File Format", MathWorks, https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf.
"""

import math
import pathlib
import struct
import zlib
from collections.abc import Collection, Iterator

import numpy as np

from vitpose_jax.storage.tensors import read_bytes
from vitpose_jax.storage.text import printable

# Bytes of a file, and of an array after it is decompressed. The file of MPII has 2 MB.
LARGEST_FILE = 256 * 2**20
LARGEST_ARRAY = 256 * 2**20

_HEADER = 128
_COMPRESSED, _MATRIX = 15, 14
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# The classes of numeric arrays: what MATLAB shows, whichever type the numbers are stored in.
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x0800


def read_arrays(path: pathlib.Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of numbers with some names; others are not read.

    Args:
        path: of the file.
        names: of the arrays.

    Returns:
        The arrays that the file has, by name.

    Raises:
        ValueError: naming the file, if it is not such a file, or is damaged or too large.
        OSError: if the file cannot be read.
    """
    content = read_bytes(path, LARGEST_FILE)
    orders = {b"IM": "<", b"MI": ">"}
    if len(content) < _HEADER or content[126:128] not in orders:
        raise ValueError(f"{path}: expected a MATLAB file of version 5 to 7.2")
    order = orders[content[126:128]]
    arrays = {}
    try:
        for kind, data in _elements(content[_HEADER:], order):
            if kind == _COMPRESSED:
                ((kind, data),) = _elements(_decompress(data), order)
            named = _read_array(data, order, names) if kind == _MATRIX else None
            if named is not None:
                arrays[named[0]] = named[1]
    except (ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"{path}: damaged MATLAB file ({printable(error)})") from error
    return arrays


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The type and data of each element."""
    view, start = memoryview(content), 0
    while start + 8 <= len(view):
        kind, size = struct.unpack_from(order + "II", view, start)
        if kind >> 16:
            # A small element: its size, its type and up to 4 bytes of data in 8 bytes.
            kind, size, begin, end = kind & 0xFFFF, kind >> 16, start + 4, start + 8
            if size > 4:
                raise ValueError(f"a small element of {size} bytes")
        else:
            begin = start + 8
            # Compressed elements are not filled up.
            end = begin + size + (0 if kind == _COMPRESSED else -size % 8)
        if begin + size > len(view):
            raise ValueError(f"an element of {size} bytes, but {len(view) - begin} are left")
        yield kind, bytes(view[begin : begin + size])
        start = end


def _decompress(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    result = stream.decompress(data, LARGEST_ARRAY)
    if not stream.eof:
        raise ValueError(f"a compressed array that is cut off, or has more than {LARGEST_ARRAY} bytes")
    return result


def _read_array(data: bytes, order: str, names: Collection[str]) -> tuple[str, np.ndarray] | None:
    """The name and the numbers of an array; None if it has another name, or is not of real numbers."""
    parts = _elements(data, order)
    head = [next(parts, None) for _ in range(3)]
    if None in head:
        raise ValueError("an array without flags, sizes and name")
    (_, flags), (_, sizes), (_, name) = head  # pyright: ignore[reportGeneralTypeIssues]
    text = name.decode("latin-1")
    if text not in names:
        return None
    (flag,) = struct.unpack_from(order + "I", flags)
    if flag & 0xFF not in _CLASSES or flag & _COMPLEX:
        raise ValueError(f"{text}: expected an array of real numbers, got class {flag & 0xFF}")
    if len(sizes) % 4 or not sizes:
        raise ValueError(f"{text}: sizes of {len(sizes)} bytes")
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    kind, numbers = next(parts, (0, b""))
    if kind not in _TYPES:
        raise ValueError(f"{text}: expected numbers, got the type {kind}")
    dtype = np.dtype(order + _TYPES[kind])
    if min(shape) < 0 or math.prod(shape) * dtype.itemsize != len(numbers):
        raise ValueError(f"{text}: expected {len(numbers)} bytes of numbers, as there are, for the sizes {shape}")
    array = np.frombuffer(numbers, dtype).reshape(shape, order="F")
    return text, array.astype(_CLASSES[flag & 0xFF])
