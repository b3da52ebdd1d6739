"""Rows that lie in a file each, above all images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_diffrl.demonstrations.arrays import (
    Array,
    Cache,
    ConvertedArray,
    LazyArray,
    Rows,
    Source,
)


class FrameArray(LazyArray):
    """
    Rows that lie in a file each.

    :param keys: ``(M,)``: what ``load`` is asked for, for each row
    :param load: gives the row of a key, usually through a :class:`Cache`
    :param name: the file of a key, for messages
    """

    def __init__(
        self,
        keys: Sequence[Hashable] | NDArray[Any],
        load: Callable[[Any], Array],
        name: Callable[[Any], Any] = str,
    ):
        self.keys, self.load, self.name = keys, load, name
        sample = load(keys[0])
        super().__init__((len(keys), *sample.shape), sample.dtype)

    def read(self, rows: Rows) -> Array:
        """See :meth:`LazyArray.read`."""
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for i, row in enumerate(rows):
            frame = self.load(self.keys[row])
            if frame.shape != self.shape[1:]:
                raise ValueError(
                    f"{self.name(self.keys[row])}: shape {frame.shape}, expected "
                    f"{self.shape[1:]}, as in {self.name(self.keys[0])}"
                )
            found[i] = frame
        return found


def channels_first(images: Source) -> Source:
    """
    Images as SB3's policies see them.

    :param images: ``(M, height, width, channels)`` uint8; all else passes unchanged
    :return: ``(M, channels, height, width)``
    """
    is_image = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] in (1, 3, 4)
    return ConvertedArray(images, _transposed) if is_image else images


def _transposed(images: Array) -> Array:
    return images.transpose(0, 3, 1, 2)


def png_array(paths: Sequence[Path], cache_bytes: int = 64 * 2**20) -> FrameArray:
    """
    Colour images in files.

    :param paths: ``M`` files
    :param cache_bytes: what is kept of the images read last
    :return: ``(M, height, width, 3)`` uint8
    """
    return FrameArray(paths, Cache(decode_image, cache_bytes))


def decode_image(file: Any, where: str | None = None) -> Array:
    """
    :param file: path or file object
    :param where: what to call it in messages, by default the path
    :return: ``(height, width, 3)`` uint8
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (FileNotFoundError, UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{where or file}: no image that can be read ({error})") from error
