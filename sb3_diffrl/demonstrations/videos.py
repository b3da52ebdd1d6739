"""Frames of video files as an array, decoded with PyAV when they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_diffrl.demonstrations.arrays import Array, LazyArray, Rows
from sb3_diffrl.demonstrations.reading import optional_module

_SEEK_SECONDS = 2.0


@dataclass(frozen=True)
class Clip:
    """
    A part of a video.

    :param path: the file
    :param start: where the part begins, in seconds
    :param fps: frames in a second
    :param length: number of its frames
    """

    path: Path
    start: float
    fps: float
    length: int


class VideoArray(LazyArray):
    """
    The frames of clips laid end to end: ``(M, height, width, 3)`` uint8.

    :param clips: at least one
    """

    def __init__(self, clips: Sequence[Clip]):
        self.clips = clips
        self.ends = np.cumsum([clip.length for clip in clips])
        (first,) = _frames(clips[0], np.zeros(1, np.int64))
        super().__init__((int(self.ends[-1]), *first.shape), np.uint8)

    def read(self, rows: Rows) -> Array:
        """See :meth:`LazyArray.read`; each clip is opened once and decoded forwards."""
        found = np.empty((len(rows), *self.shape[1:]), np.uint8)
        owners = np.searchsorted(self.ends, rows, side="right")
        for owner in np.unique(owners):
            clip = self.clips[owner]
            mine = np.flatnonzero(owners == owner)
            within = rows[mine] - (self.ends[owner] - clip.length)
            distinct, back = np.unique(within, return_inverse=True)
            images = np.stack(list(_frames(clip, distinct)))
            if images.shape[1:] != self.shape[1:]:
                raise ValueError(
                    f"{clip.path}: frames of shape {images.shape[1:]}, expected {self.shape[1:]}, "
                    f"as in {self.clips[0].path}"
                )
            found[mine] = images[back]
        return found


def _frames(clip: Clip, indices: Rows) -> Iterator[Array]:
    """The frames of rising indices; far ones are sought, near ones reached by decoding."""
    av = optional_module("av", "video")
    if not clip.path.is_file():
        raise ValueError(f"{clip.path}: no such file, though the metadata names it")
    try:
        with av.open(str(clip.path)) as container:
            stream = container.streams.video[0]
            decoded: Iterator[Any] = iter(())
            now = -np.inf
            frame = None
            half = 0.5 / clip.fps
            for index in indices:
                wanted = clip.start + index / clip.fps
                if not now - half <= wanted < now + _SEEK_SECONDS:
                    container.seek(int(wanted / stream.time_base), stream=stream)
                    decoded = container.decode(stream)
                    now, frame = -np.inf, None
                while frame is None or now < wanted - half:
                    frame = next(decoded, None)
                    if frame is None:
                        raise ValueError(
                            f"{clip.path}: ends before frame {index} of a clip that begins at "
                            f"{clip.start:g} s; it is truncated"
                        )
                    now = frame.time
                if now > wanted + half:
                    raise ValueError(
                        f"{clip.path}: frame {index} of a clip that begins at {clip.start:g} s is "
                        f"missing: expected at {wanted:.3f} s, the next one is at {now:.3f} s, "
                        f"more than half a frame away at {clip.fps:g} frames per second, as the "
                        "metadata says; mend the video or drop its episode"
                    )
                yield frame.to_ndarray(format="rgb24")
    except av.error.FFmpegError as error:
        raise ValueError(f"{clip.path}: no video that can be decoded ({error})") from error
