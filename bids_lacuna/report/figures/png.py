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
        reduce_colours(picture, 256).save(temporary, format="png")


def reduce_colours(picture: Image.Image, n: int) -> Image.Image:
    """Reduce the number of colours: with 256, a file has half the bytes."""
    # Unlike the other methods, this one keeps the colours of the colour bar.
    return picture.quantize(n, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
