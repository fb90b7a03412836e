"""Left and right in the names of keypoints."""

import hypothesis
import hypothesis.strategies as st
import pytest

from vitpose_jax.sides import flip_pairs_from_names
from vitpose_jax.skeletons import SKELETONS, WHOLEBODY, Skeleton

PARTS = ("eye", "ear", "big toe", "hip", "lip", "ladle", "roll", "collar", "F Paw")


def camel(part: str) -> str:
    return "".join(word.capitalize() for word in part.split())


# How names of keypoints tell a side: "{side}" and "{part}" stand for them.
STYLES = {
    "left_eye": ("left", "right", lambda side, part: f"{side}_{part}"),
    "LEFT EYE": ("LEFT", "RIGHT", lambda side, part: f"{side} {part.upper()}"),
    "eye left": ("left", "right", lambda side, part: f"{part} {side}"),
    "leftEye": ("left", "right", lambda side, part: side + camel(part)),
    "LeftEye": ("Left", "Right", lambda side, part: side + camel(part)),
    "eyeLeft": ("Left", "Right", lambda side, part: part.split()[0] + side + camel(part)),
    "lefteye": ("left", "right", lambda side, part: side + part.replace(" ", "")),
    "eyeleft": ("left", "right", lambda side, part: part.replace(" ", "") + side),
    "LEye": ("L", "R", lambda side, part: side + camel(part)),
    "lEye": ("l", "r", lambda side, part: side + camel(part)),
    "EyeL": ("L", "R", lambda side, part: camel(part) + side),
    "Eye.L": ("L", "R", lambda side, part: f"{camel(part)}.{side}"),
    "Eye (l)": ("l", "r", lambda side, part: f"{part} ({side})"),
    "l_eye": ("l", "r", lambda side, part: f"{side}_{part}"),
    "body-l-eye": ("l", "r", lambda side, part: f"body-{side}-{part}"),
    "lt-eye": ("lt", "rt", lambda side, part: f"{side}-{part}"),
    "German": ("links", "rechts", lambda side, part: f"{part} {side}"),
    "German, ending": ("linkes", "rechtes", lambda side, part: f"{side} {part}"),
    "German, camel": ("Links", "Rechts", lambda side, part: part.split()[0] + camel(part) + side),
    "French": ("gauche", "droit", lambda side, part: f"{part} {side}"),
    "French, feminine": ("gauche", "droite", lambda side, part: f"{part}_{side}"),
    "French, article": ("gauche", "droit", lambda side, part: f"l'{part} {side}"),
    "Spanish": ("izquierdo", "derecho", lambda side, part: f"{part}_{side}"),
    "Portuguese": ("esquerda", "direita", lambda side, part: f"{part} {side}"),
    "Italian": ("sinistra", "destra", lambda side, part: f"{part} {side}"),
    "Italian, short": ("sx", "dx", lambda side, part: f"{part}_{side}"),
    "Polish": ("lewe", "prawe", lambda side, part: f"{side} {part}"),
    "Russian": ("Левый", "Правый", lambda side, part: f"{side} {part}"),
    "Chinese": ("左", "右", lambda side, part: side + part),
}


@pytest.mark.parametrize("style", STYLES)
def test_every_way_to_name_sides_gives_pairs(style):
    left, right, name = STYLES[style]
    names = ["nose"]
    for number, part in enumerate(PARTS):
        pair = [name(left, part), name(right, part)]
        names += pair if number % 2 else pair[::-1]
    expected = tuple(sorted((1 + 2 * n, 2 + 2 * n) if n % 2 else (2 + 2 * n, 1 + 2 * n) for n in range(len(PARTS))))
    assert flip_pairs_from_names(tuple(names)) == expected


def test_numbered_names():
    assert flip_pairs_from_names(("left1", "left2", "right1", "right2", "mid1")) == ((0, 2), (1, 3))
    assert flip_pairs_from_names(("l1", "r1", "c1", "L 2", "R 2")) == ((0, 1), (3, 4))


def test_other_names_do_not_matter():
    assert flip_pairs_from_names(("a", "left", "b", "right")) == ((1, 3),)


def test_two_sides_in_a_name_are_both_mirrored():
    names = tuple(f"{eye}_eye_{corner}_corner" for eye in ("left", "right") for corner in ("left", "right"))
    assert flip_pairs_from_names(names) == ((0, 3), (1, 2))
    assert flip_pairs_from_names(("L_eye_left", "R_eye_right")) == ((0, 1),)


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS.keys())
def test_names_of_known_skeletons_give_their_pairs(skeleton):
    pairs = set(flip_pairs_from_names(skeleton.keypoints))
    expected = {
        pair if "right" not in skeleton.keypoints[pair[0]].lower() else pair[::-1] for pair in skeleton.flip_pairs
    }
    if skeleton is WHOLEBODY:
        expected = {pair for pair in expected if "face" not in skeleton.keypoints[pair[0]]}
    assert pairs == expected


@pytest.mark.parametrize(
    "names",
    [
        ("lip", "rip", "lock", "rock", "lamp", "ramp", "LIP", "RIP"),
        ("leftover", "upright", "copyright", "bright"),
        tuple("abcdefghijklmnopqrstuvwxyz"),
        tuple(f"point {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        tuple(f"{letter}1" for letter in "klmnopqrs"),
        ("left_eye", "left_ear", "right_hip", "l_knee", "right_knee"),
        ("left eye", "Left_Eye", "right eye"),
        ("l'oeil", "r'oeil gauche", "le nez"),
        ("", " ", "_", "."),
    ],
)
def test_no_false_pairs(names):
    assert flip_pairs_from_names(names) == ()


WITHOUT_SIDES = st.lists(
    st.text("abcdefghijkmnopqstuvwxyzABCDEFGHIJKMNOPQSTUVWXYZ0123456789 _-.", max_size=12), unique=True, max_size=12
)


@hypothesis.given(names=WITHOUT_SIDES)
@hypothesis.settings(max_examples=300)
def test_names_without_sides_give_no_pairs(names):
    """Without the letters l and r there is no left and no right but in the short words of other languages."""
    hypothesis.assume(not any(short in name.lower() for name in names for short in ("sx", "dx")))
    assert flip_pairs_from_names(tuple(names)) == ()


@hypothesis.given(
    words=st.lists(st.sampled_from(["l", "r", "left", "Right", "L", "eye", "lip", "1", "_", ""]), max_size=5)
)
def test_pairs_are_of_different_keypoints(words):
    names = tuple({f"{word}{separator}{other}" for word in words for other in words for separator in ("", "_", " ")})
    pairs = flip_pairs_from_names(names)
    paired = [index for pair in pairs for index in pair]
    assert len(paired) == len(set(paired))
    # A pair is valid in a skeleton.
    if names:
        Skeleton(name="x", keypoints=names, flip_pairs=pairs)


@pytest.mark.parametrize("sigma", [0.0, -0.1, float("nan"), float("inf")])
def test_sigmas_are_above_zero(sigma):
    with pytest.raises(ValueError, match=r"skeleton 'x': expected sigmas above 0 and finite, got .* for 'b'"):
        Skeleton(name="x", keypoints=("a", "b"), sigmas=(0.1, sigma))


def test_a_name_occurs_once():
    with pytest.raises(ValueError, match="skeleton 'x': expected each keypoint once, got 'a' twice"):
        Skeleton(name="x", keypoints=("a", "b", "a"))
