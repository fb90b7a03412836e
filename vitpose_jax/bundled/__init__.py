"""What the package contains besides code: two trained models, and a photograph to try them on."""

from pathlib import Path

# The default of `from_pretrained`. Its card, vitpose-small-open/README.md, says what it was trained on.
DEFAULT_MODEL = "vitpose-small-open"

# The default of `Detector.from_pretrained`. Its card is person-finder/README.md.
DEFAULT_FINDER = "person-finder"

MODELS = Path(__file__).parent

# NASA's portrait of Eileen Collins, public domain; and the box around her, x y w h in pixels.
DEMO_IMAGE = MODELS / "astronaut.jpg"
DEMO_BOX = (15, 10, 345, 502)

# A group of 12 people: image 1000 of COCO val2017, CC BY 2.0 (NOTICE names its source).
GROUP_IMAGE = MODELS / "tennis.jpg"
DEMO_IMAGES = (DEMO_IMAGE, GROUP_IMAGE)


def bundled_model(name: str) -> Path | None:
    """The folder of a bundled model; None if there is none of that name."""
    return MODELS / name if name in bundled_models() else None


def bundled_models() -> tuple[str, ...]:
    """The names of the bundled models."""
    return tuple(sorted(path.parent.name for path in MODELS.glob("*/config.json")))
