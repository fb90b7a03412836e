"""What comes with the package: a trained model, and a photograph to try it on."""

from pathlib import Path

# Where no model is named. Its card, vitpose-small-open/README.md, says what it was trained on.
DEFAULT_MODEL = "vitpose-small-open"

MODELS = Path(__file__).parent

# NASA's portrait of Eileen Collins, public domain; and the box around her, x y w h.
DEMO_IMAGE = MODELS / "astronaut.jpg"
DEMO_BOX = (15, 10, 345, 502)


def bundled_model(name: str) -> Path | None:
    """The folder of a model that comes with the package; None where there is none of that name."""
    folder = MODELS / name
    return folder if name == Path(name).name and folder.is_dir() else None
