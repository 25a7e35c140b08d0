"""Formats that Pillow reads through plugins of the ``formats`` extra, told by a file's first bytes.

A plugin is imported when the first such file comes: it takes time, and most folders hold none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from espan_deploy.errors import InputError

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Major brands of ISO/IEC 23008-12. What AVIF has is Pillow's own."""
AVIF_BRANDS = (b"avif", b"avis")
JXL_SIGNATURES = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")
"""Of a bare codestream, and of a container (ISO/IEC 18181-2)."""
HEIC_EXTENSIONS = (".heic", ".heif", ".hif")
JXL_EXTENSIONS = (".jxl",)


@dataclass(frozen=True)
class Plugin:
    """title: what people call the format. module, register: what is imported, and what makes Pillow know it."""

    title: str
    module: str
    register: str
    install: str = "pip install 'espan-deploy[formats]'"


PLUGINS = {
    "HEIF": Plugin("HEIC", "pi_heif", "register_heif_opener"),
    "JXL": Plugin(
        "JPEG XL", "pylibjxl", "register_pillow", "pip install 'espan-deploy[formats]', with Python 3.11 or later"
    ),
}
"""By Pillow's name of the format."""


def plugin_format(head: bytes) -> str | None:
    """Pillow's name of the plugin format that a file's first 64 bytes begin; None for all others."""
    if head.startswith(JXL_SIGNATURES):
        return "JXL"
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        size = int.from_bytes(head[:4], "big")
        compatible = {head[at : at + 4] for at in range(16, min(size, len(head)), 4)}
        if not compatible & set(AVIF_BRANDS):
            return "HEIF"
    return None


@cache
def enable(name: str) -> None:
    """Make Pillow read and write a plugin format. Raises InputError, which names the extra, where it is missing."""
    plugin = PLUGINS[name]
    try:
        getattr(import_module(plugin.module), plugin.register)()
    except ImportError as exc:
        raise InputError(f"{plugin.title} needs a plugin that is not installed", hint=plugin.install) from exc


def deep_heif(data: bytes) -> NDArray[np.uint16] | None:
    """The primary picture of a HEIC file with more than 8 bits, (H, W[, C]) in all of 0..65535; None of one with 8.

    Upright, as HEIC's own transformations want it. Pillow's pictures of such files have 8 bits.
    """
    enable("HEIF")
    picture = import_module(PLUGINS["HEIF"].module).open_heif(data, convert_hdr_to_8bit=False)
    bits = int(picture.info["bit_depth"])
    if bits <= 8:
        return None
    values = np.asarray(picture).astype(np.uint32) >> (16 - bits)
    return (values * 65535 // ((1 << bits) - 1)).astype(np.uint16)
