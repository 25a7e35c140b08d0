"""What there is to do: which files of a folder are images, and where each goes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from espan_deploy.errors import InputError
from espan_deploy.pipeline.decode import EXTENSIONS
from espan_deploy.pipeline.encode import FORMATS, Format

HIDDEN_PREFIX = ".espan-deploy"
"""Of our own files in the output folder."""

SAME_FORMAT = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "jpeg"),
    **dict.fromkeys((".png", ".apng"), "png"),
    **dict.fromkeys((".tif", ".tiff"), "tiff"),
    **dict.fromkeys((".bmp", ".dib"), "bmp"),
    ".gif": "png",
    ".webp": "webp",
    ".avif": "avif",
}


@dataclass(frozen=True)
class Job:
    """One file to upscale. name, output: relative to the input and the output folder."""

    source: Path
    name: str
    output: str
    format: Format


@dataclass
class Jobs:
    """What a folder holds.

    ignored: files with other endings, by ending. skipped_folders: links back to a folder already seen.
    broken: files that cannot even be looked at, with the reason.
    """

    jobs: list[Job] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    skipped_folders: list[str] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)


def display(path: str | Path) -> str:
    """A path that can be printed: bytes that are no UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def find_jobs(source: Path, output: Path, format_name: str) -> Jobs:
    """The images under a folder, recursively and sorted, or the one file named.

    format_name: a key of FORMATS, or "same". Raises InputError where there are none, or the output folder lies in
    the input folder.
    """
    if not source.exists():
        raise InputError(f"there is no {display(source)}", hint="name a folder of images, or one image")
    found = Jobs()
    if source.is_dir():
        if _inside(output, source):
            raise InputError(
                f"the output folder {display(output)} lies in the input folder: the next run would upscale its results",
                hint="name an output folder beside it",
            )
        names = sorted(_walk(source, found))
        root = source
    else:
        if source.suffix.lower() not in EXTENSIONS:
            raise InputError(
                f"{display(source)} has none of the endings {', '.join(sorted(EXTENSIONS))}",
                hint="name a folder of images, or one image",
            )
        names, root = [source.name], source.parent
        if _same(output, root):
            raise InputError(
                f"the output folder {display(output)} is the image's own", hint="name another output folder"
            )
    if not names and not found.broken:
        others = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in found.ignored.most_common(5))
        raise InputError(
            f"there are no images in {display(source)}" + (f" (other files: {others})" if others else ""),
            hint=f"images end in {' '.join(sorted(EXTENSIONS))}",
        )
    found.jobs = _with_outputs(root, names, format_name)
    return found


def _walk(root: Path, found: Jobs) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in seen:
                found.skipped_folders.append(folder)
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as exc:
            found.broken.append((folder or ".", f"cannot be listed: {exc.strerror or exc}"))
            continue
        for entry in entries:
            name = os.path.join(folder, entry.name)  # surrogates survive, nothing is normalised
            if entry.name.startswith(HIDDEN_PREFIX):
                continue
            if _is_folder(entry):
                pending.append(name)
            elif Path(entry.name).suffix.lower() in EXTENSIONS:
                yield name
            else:
                found.ignored[Path(entry.name).suffix.lower()] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself: reading it will say so


def _with_outputs(root: Path, names: list[str], format_name: str) -> list[Job]:
    formats = [_format(name, format_name) for name in names]
    wanted = [_replaced(name, entry) for name, entry in zip(names, formats, strict=True)]
    # Where a.jpg and a.png would both become a.png, the one so named keeps it and the other becomes a.jpg.png.
    shared = {output for output, count in Counter(wanted).items() if count > 1}
    taken = {name for name, output in zip(names, wanted, strict=True) if output == name}
    outputs: list[str] = []
    used = {output for output in wanted if output not in shared} | (taken & shared)
    for name, output, entry in zip(names, wanted, formats, strict=True):
        final = output
        if output in shared and name != output:
            final = name + entry.extension
            while final in used:
                final = final.removesuffix(entry.extension) + "_" + entry.extension
            used.add(final)
        outputs.append(final)
    return [Job(root / name, name, output, entry) for name, output, entry in zip(names, outputs, formats, strict=True)]


def _format(name: str, format_name: str) -> Format:
    return FORMATS[SAME_FORMAT[Path(name).suffix.lower()] if format_name == "same" else format_name]


def _replaced(name: str, file_format: Format) -> str:
    suffix = Path(name).suffix
    if SAME_FORMAT[suffix.lower()] == file_format.name and suffix.lower() != ".gif":
        return name
    return name.removesuffix(suffix) + file_format.extension


def _inside(inner: Path, outer: Path) -> bool:
    inner, outer = inner.resolve(), outer.resolve()
    return inner == outer or outer in inner.parents


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
