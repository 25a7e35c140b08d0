"""What results are called: the input's name, another ending where the format changes, and no name given twice."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from espan_deploy.pipeline.encode import FORMATS, Format
from espan_deploy.pipeline.plugins import HEIC_EXTENSIONS, JXL_EXTENSIONS
from espan_deploy.stores import Entry

SAME_FORMAT = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "jpeg"),
    **dict.fromkeys((".png", ".apng"), "png"),
    **dict.fromkeys((".tif", ".tiff"), "tiff"),
    **dict.fromkeys((".bmp", ".dib"), "bmp"),
    ".gif": "png",
    ".webp": "webp",
    ".avif": "avif",
    **dict.fromkeys(HEIC_EXTENSIONS, "jpeg"),
    **dict.fromkeys(JXL_EXTENSIONS, "jxl"),
}

READ_ONLY = (".gif", *HEIC_EXTENSIONS)
"""Endings of what is not written: the result has another format, and its ending."""


@dataclass(frozen=True)
class NamedFile:
    """A file of a source, its place among the others, from 1, and its result's name and format."""

    number: int
    entry: Entry
    output: str
    format: Format


def outputs(entries: Iterable[Entry], format_name: str) -> Iterator[NamedFile]:
    """Every file with its result's name and format, as they come: entries must be sorted by name.

    format_name: a key of FORMATS, or "same".
    """
    for number, (entry, output, file_format) in enumerate(_grouped(entries, format_name), 1):
        yield NamedFile(number, entry, output, file_format)


def _grouped(entries: Iterable[Entry], format_name: str) -> Iterator[tuple[Entry, str, Format]]:
    # Names that could ever get the same output begin alike up to their first dot. Sorted, they stand together, but for
    # what lies in folders that begin so as well: a.jpg, a.b/c.jpg, a.png.
    waiting: list[tuple[str, list[Entry]]] = []
    for entry in entries:
        while waiting and not entry.name.startswith(waiting[-1][0]):
            yield from _outputs(waiting.pop()[1], format_name)
        beginning = _up_to_first_dot(entry.name)
        if waiting and waiting[-1][0] == beginning:
            waiting[-1][1].append(entry)
        else:
            waiting.append((beginning, [entry]))
    while waiting:
        yield from _outputs(waiting.pop()[1], format_name)


def _up_to_first_dot(name: str) -> str:
    base = os.path.basename(name)
    return name[: len(name) - len(base)] + base.partition(".")[0] + "."


def _outputs(entries: list[Entry], format_name: str) -> Iterator[tuple[Entry, str, Format]]:
    names = [entry.name for entry in entries]
    formats = [_format(name, format_name) for name in names]
    wanted = [_replaced(name, entry) for name, entry in zip(names, formats, strict=True)]
    # Where a.jpg and a.png would both become a.png, the one so named keeps it and the other becomes a.jpg.png.
    shared = {output for output, count in Counter(wanted).items() if count > 1}
    taken = {name for name, output in zip(names, wanted, strict=True) if output == name}
    used = {output for output in wanted if output not in shared} | (taken & shared)
    for entry, output, file_format in zip(entries, wanted, formats, strict=True):
        final = output
        if output in shared and entry.name != output:
            final = entry.name + file_format.extension
            while final in used:
                final = final.removesuffix(file_format.extension) + "_" + file_format.extension
            used.add(final)
        yield entry, final, file_format


def _format(name: str, format_name: str) -> Format:
    return FORMATS[SAME_FORMAT[Path(name).suffix.lower()] if format_name == "same" else format_name]


def _replaced(name: str, file_format: Format) -> str:
    suffix = Path(name).suffix
    if SAME_FORMAT[suffix.lower()] == file_format.name and suffix.lower() not in READ_ONLY:
        return name
    return name.removesuffix(suffix) + file_format.extension
