"""The options of drawings, which `predict` and `video` share."""

import enum
from typing import Annotated, Any

import typer


class ColourBy(enum.StrEnum):
    """What has a colour of its own in a drawing."""

    side = "side"
    person = "person"
    keypoint = "keypoint"


Threshold = Annotated[float, typer.Option(help="Draw keypoints with at least this score.")]
LineWidth = Annotated[float | None, typer.Option(help="Width of the lines in pixels. Default: fits each person.")]
Radius = Annotated[float | None, typer.Option(help="Of the dots in pixels; 0 for none. Default: fits.")]
Fade = Annotated[bool, typer.Option("--fade", help="Draw a keypoint the fainter, the lower its score.")]


def drawing_options(
    *,
    threshold: float,
    line_width: float | None,
    radius: float | None,
    colour_by: ColourBy | None,
    fade: bool,
    numbers: bool,
) -> dict[str, Any]:
    """The values of the options, as `draw_poses` and its callers take them."""
    return {
        "threshold": threshold,
        "line_width": line_width,
        "radius": radius,
        "colour_by": None if colour_by is None else colour_by.value,
        "fade": fade,
        "numbers": numbers,
    }
