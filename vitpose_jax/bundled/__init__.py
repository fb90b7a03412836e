"""What the package contains besides code: a trained model, and a photograph to try it on."""

from pathlib import Path

# The default of `from_pretrained`. Its card, vitpose-small-open/README.md, says what it was trained on.
DEFAULT_MODEL = "vitpose-small-open"

MODELS = Path(__file__).parent

# NASA's portrait of Eileen Collins, public domain; and the box around her, x y w h in pixels.
DEMO_IMAGE = MODELS / "astronaut.jpg"
DEMO_BOX = (15, 10, 345, 502)


def bundled_model(name: str) -> Path | None:
    """The folder of a bundled model; None if there is none of that name."""
    folder = MODELS / name
    return folder if name == Path(name).name and folder.is_dir() else None
