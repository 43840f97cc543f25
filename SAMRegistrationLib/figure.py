"""A picture of a registration that a person can judge at a glance.

Needs matplotlib (the extra `report`), which is loaded only when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .field import DisplacementField
from .figure_scene import Box, Scene, Volume, make_scene
from .files import staged_file
from .image import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Slice = NDArray[Any]

PLANES = ("axial", "coronal", "sagittal")
PANEL_INCHES = 2.5
RESOLUTION_DPI = 130
HEADING_INCHES = 0.3
LEGEND_INCHES = 0.55
LARGEST_DETERMINANT = 3.0
DETERMINANT_TICKS = {1 / 3: "1/3", 1 / 2: "1/2", 1: "1", 2: "2", 3: "3"}

BACKGROUND = "#0e1216"
NO_DATA = "#27303a"
INK = "#e8edf2"
OUTLINE = "#8a949f"
FIXED_CONTOUR = "#ffd23f"
MOVING_CONTOUR = "#39c9ff"
FOLD = "#ff1fd0"
DIFFERENCE_COLORS = ("#8fd3ff", "#1d6fd0", BACKGROUND, "#d9641e", "#ffd9a0")
DETERMINANT_COLORS = ("#9fe8ff", "#1f86d8", "#1a1f24", "#d8701c", "#ffdf8a")


def registration_figure(
    fixed: Image,
    moving: Image,
    warped: Image,
    displacement: DisplacementField,
    path: str | Path,
    *,
    fixed_labels: Image | None = None,
    moving_labels: Image | None = None,
    title: str = "",
) -> None:
    """Draw three orthogonal planes of a registration, before and after, into an image file.

    The planes go through the middle of the fixed labels, or else of the fixed body, and lie as radiologists are
    used to: head up, the patient's right on the left. CT is shown from -160 to 240 HU; other volumes, and
    cone-beam CT whose values are no Hounsfield units, over the bulk of the values inside the body. In the fusion
    the fixed volume is green and the moving one magenta, so that agreement is gray. Differences are fractions of
    the window. The colors of the Jacobian determinant are logarithmic; folded voxels are bright magenta. Slate is
    where the moving volume has no data.

    Args:
        fixed: the fixed volume.
        moving: the moving volume, shown as it lies in world space.
        warped: the moving volume on the fixed grid after registration.
        displacement: the total displacement from fixed to moving.
        path: file to write; its ending decides the format (.png, .pdf, .svg, .jpg).
        fixed_labels: a label map on any grid, drawn as yellow contours.
        moving_labels: a label map on any grid, drawn as light blue contours, warped where the volume is.
        title: a line above the picture.

    Raises:
        InputError: if matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("a picture needs matplotlib: pip install 'sam-registration[report]'") from error
    scene = make_scene(fixed, moving, warped, displacement, fixed_labels, moving_labels)
    figure = Figure(facecolor=BACKGROUND)
    _draw(figure, scene, title)
    with staged_file(path) as staged:
        try:
            figure.savefig(staged, dpi=RESOLUTION_DPI, facecolor=BACKGROUND)
        except ValueError as error:
            raise InputError(f"cannot write {path}: {error}") from error


@dataclass(frozen=True)
class _View:
    """One plane of a scene: how slices are cut out of volumes, and their size in mm (height, width)."""

    plane: int
    middle: tuple[int, int, int]
    box: Box
    size: tuple[float, float]

    @classmethod
    def of(cls, scene: Scene, plane: int) -> _View:
        box = scene.box()
        lengths = [(part.stop - part.start) * s for part, s in zip(box, scene.grid.spacing[::-1], strict=True)]
        height, width = (length for axis, length in enumerate(lengths) if axis != plane)
        return cls(plane, scene.middle(), box, (height, width))

    def cut(self, volume: Volume) -> Slice:
        """The slice, rows from top to bottom: volumes are stored upwards, so coronal and sagittal are turned."""
        index = tuple(self.middle[axis] if axis == self.plane else self.box[axis] for axis in range(3))
        return volume[index] if self.plane == 0 else volume[index][::-1]


def _draw(figure: Figure, scene: Scene, title: str) -> None:
    views = [_View.of(scene, plane) for plane in range(len(PLANES))]
    widest = max(view.size[1] for view in views)
    heights = [PANEL_INCHES * view.size[0] / widest for view in views]
    above = HEADING_INCHES * (2 if title else 1)
    total = sum(heights) + above + LEGEND_INCHES
    figure.set_size_inches(PANEL_INCHES * len(PANELS), total)
    layout = figure.add_gridspec(
        len(views),
        len(PANELS),
        height_ratios=heights,
        left=0.011,
        right=0.997,
        top=1 - above / total,
        bottom=LEGEND_INCHES / total,
        wspace=0.03,
        hspace=0.04,
    )
    for column, (name, draw) in enumerate(PANELS.items()):
        for row, view in enumerate(views):
            axes = figure.add_subplot(layout[row, column])
            _style(axes, view)
            draw(axes, scene, view)
            if row == 0:
                axes.set_title(name, color=INK, fontsize=10, pad=5)
            if column == 0:
                y = sum(axes.get_position().intervaly) / 2
                figure.text(0.002, y, PLANES[row], color=INK, fontsize=10, rotation=90, va="center")
    _draw_legend(figure, scene, LEGEND_INCHES / total)
    if title:
        figure.suptitle(title, color=INK, fontsize=12, y=1 - 0.08 / total, va="top")


def _style(axes: Axes, view: _View) -> None:
    axes.set_facecolor(BACKGROUND)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlim(0, view.size[1])
    axes.set_ylim(view.size[0], 0)


def _show(axes: Axes, view: _View, pixels: Slice, **options: Any) -> None:
    height, width = view.size
    axes.imshow(pixels, extent=(0, width, height, 0), **options)
    if np.isnan(pixels).all():
        axes.text(width / 2, height / 2, "no moving data here", color=INK, fontsize=8, ha="center", va="center")


def _draw_gray(axes: Axes, view: _View, volume: Volume) -> None:
    _show(axes, view, view.cut(volume), cmap=_color_map("gray", NO_DATA), vmin=0, vmax=1)


def _draw_contours(axes: Axes, view: _View, labels: Volume | None, color: str) -> None:
    if labels is None:
        return
    pixels = view.cut(labels)
    rows, columns = pixels.shape
    y = (np.arange(rows) + 0.5) * view.size[0] / rows
    x = (np.arange(columns) + 0.5) * view.size[1] / columns
    for label in np.unique(pixels[pixels > 0]):
        inside = pixels == label
        if min(inside.shape) > 1 and not inside.all():
            axes.contour(x, y, inside, levels=[0.5], colors=[color], linewidths=0.7)


def _draw_fixed(axes: Axes, scene: Scene, view: _View) -> None:
    _draw_gray(axes, view, scene.fixed)
    _draw_contours(axes, view, scene.labels.fixed, FIXED_CONTOUR)


def _draw_before(axes: Axes, scene: Scene, view: _View) -> None:
    _draw_gray(axes, view, scene.before)
    _draw_contours(axes, view, scene.labels.fixed, FIXED_CONTOUR)
    _draw_contours(axes, view, scene.labels.moving_before, MOVING_CONTOUR)


def _draw_after(axes: Axes, scene: Scene, view: _View) -> None:
    _draw_gray(axes, view, scene.after)
    _draw_contours(axes, view, scene.labels.fixed, FIXED_CONTOUR)
    _draw_contours(axes, view, scene.labels.moving_after, MOVING_CONTOUR)


def _draw_fusion(axes: Axes, view: _View, fixed: Volume, moving: Volume) -> None:
    green, magenta = view.cut(fixed), np.nan_to_num(view.cut(moving))
    _show(axes, view, np.stack([magenta, green, magenta], axis=-1))


def _draw_difference(axes: Axes, view: _View, fixed: Volume, moving: Volume) -> None:
    difference = view.cut(fixed) - view.cut(moving)
    _show(axes, view, difference, cmap=_color_map(DIFFERENCE_COLORS, NO_DATA), vmin=-1, vmax=1)


def _draw_determinant(axes: Axes, scene: Scene, view: _View) -> None:
    determinant = view.cut(scene.determinant)
    folded = determinant <= 0
    logarithm = np.log(np.where(folded, 1, determinant))
    limit = np.log(LARGEST_DETERMINANT)
    _show(axes, view, logarithm, cmap=_color_map(DETERMINANT_COLORS), vmin=-limit, vmax=limit)
    _draw_contours(axes, view, scene.body.astype(np.uint8), OUTLINE)
    if folded.any():
        pixels = np.ma.masked_where(~folded, np.ones_like(determinant))
        _show(axes, view, pixels, cmap=_color_map((FOLD, FOLD), "none"), interpolation="nearest")


PANELS: dict[str, Callable[[Axes, Scene, _View], None]] = {
    "fixed": _draw_fixed,
    "moving, before": _draw_before,
    "moving, after": _draw_after,
    "fusion, before": lambda axes, scene, view: _draw_fusion(axes, view, scene.fixed, scene.before),
    "fusion, after": lambda axes, scene, view: _draw_fusion(axes, view, scene.fixed, scene.after),
    "difference, before": lambda axes, scene, view: _draw_difference(axes, view, scene.fixed, scene.before),
    "difference, after": lambda axes, scene, view: _draw_difference(axes, view, scene.fixed, scene.after),
    "Jacobian determinant": _draw_determinant,
}


def _draw_legend(figure: Figure, scene: Scene, height: float) -> None:
    """Keys below the columns they explain."""
    step, y = 1 / len(PANELS), 0.65 * height
    if scene.labels.fixed is not None or scene.labels.moving_before is not None:
        _key(figure, 0.5 * step, y, "fixed contours", FIXED_CONTOUR)
        _key(figure, 2 * step, y, "moving contours", MOVING_CONTOUR)
    _key(figure, 3.6 * step, y, "fixed", "#38d838")
    _key(figure, 4 * step, y, "moving", "#e04be0")
    _key(figure, 4.4 * step, y, "both", INK)
    _color_bar(figure, 6, height, DIFFERENCE_COLORS, {0: "moving brighter", 0.5: "equal", 1: "fixed brighter"})
    limit = np.log(LARGEST_DETERMINANT)
    ticks = {(np.log(value) / limit + 1) / 2: text for value, text in DETERMINANT_TICKS.items()}
    _color_bar(figure, 7, height, DETERMINANT_COLORS, ticks)
    folded = scene.folded_percent()
    _key(figure, 7.5 * step, 0.2 * height, f"folded {folded:.3f} %", FOLD if folded else INK)


def _key(figure: Figure, x: float, y: float, text: str, color: str) -> None:
    figure.text(x, y, text, color=color, fontsize=9, ha="center", va="center")


def _color_bar(
    figure: Figure, column: int, height: float, colors: tuple[str, ...], ticks: dict[float, str]
) -> None:
    step = 1 / len(PANELS)
    axes = figure.add_axes(((column + 0.15) * step, height * 0.68, 0.7 * step, height * 0.14))
    axes.imshow(np.linspace(0, 1, 256)[None], aspect="auto", extent=(0, 1, 0, 1), cmap=_color_map(colors))
    axes.set_yticks([])
    axes.set_xticks(list(ticks), list(ticks.values()), fontsize=7, color=INK)
    axes.tick_params(length=2, pad=1, color=INK)


def _color_map(colors: str | tuple[str, ...], without_data: str = BACKGROUND) -> Colormap:
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    base = colormaps[colors] if isinstance(colors, str) else LinearSegmentedColormap.from_list("diverging", colors)
    return base.with_extremes(bad=without_data)
