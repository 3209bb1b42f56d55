"""PNG files with few colours, which keeps them small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from bids_lacuna.files import renamed_when_whole

PIXELS_PER_INCH = 110


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    with renamed_when_whole(path) as temporary:
        _reduce_colours(picture).save(temporary, format="png")


def _reduce_colours(picture: Image.Image) -> Image.Image:
    """Reduce the colours to 256: a file has half the bytes."""
    # Unlike the other methods, this one keeps the colours of the colour bar.
    return picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
