"""Left and right in the names of keypoints: which of them are mirror images of each other."""

import re
from typing import NamedTuple

# Words for left and right in English, German and Dutch, French, Spanish, Portuguese, Italian, Polish, Russian, Chinese
# and Japanese. Adjectives have several endings, which can differ on the two sides ("gauche", "droit").
_SIDE_WORDS = (
    ("l lt lft", "r rt rgt"),
    ("lf", "rf"),
    ("lh", "rh"),
    ("lb", "rb"),
    ("left", "right"),
    ("links linke linker linkes linken", "rechts rechte rechter rechtes rechten"),
    ("gauche", "droit droite"),
    ("izq izquierdo izquierda", "der derecho derecha"),
    ("esq esquerdo esquerda", "dir direito direita"),
    ("sx sinistro sinistra", "dx destro destra"),
    ("lewy lewa lewe", "prawy prawa prawe"),
    ("левый левая левое", "правый правая правое"),
    ("左", "右"),
)


class _Side(NamedTuple):
    """A word for a side in a name: whether it is "right", and in which language."""

    right: bool
    language: int


_SIDES = {
    word: _Side(right, language)
    for language, pair in enumerate(_SIDE_WORDS)
    for right, words in zip((False, True), pair, strict=True)
    for word in words.split()
}
# Keypoints that are named by letters, "a" to "z", have no sides: only these may stand in the place of an l or r.
_SIDE_LETTERS = frozenset("lrcm")


def flip_pairs_from_names(names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Pairs of indices of names that differ only in their sides; the left one comes first.

    A side is a word of a name, as in "left_ear", "L_Hip", "leftEar", "earLeft", "Ear.L", "LEar", "left1" and "oreille
    gauche", or joined to one, as in "leftear". A single letter inside a word is no side. Names without a side, or
    without exactly one partner, are in no pair.
    """
    words = [_words(name) for name in names]
    alphabets = _alphabets(words)
    pairs: dict[int, int] = {}
    for split in (lambda parts: _split(parts, 1, alphabets), lambda parts: _split(parts, 2, alphabets), _split_joined):
        partners: dict[tuple, tuple[list[int], list[int]]] = {}
        for index, parts in enumerate(map(split, words)):
            sides = [part for part in parts if isinstance(part, _Side)]
            if sides and index not in {*pairs, *pairs.values()}:
                # Two sides in a name are both mirrored: "left_eye_right_corner" and "right_eye_left_corner".
                first = sides[0].right
                key = tuple(
                    part._replace(right=part.right != first) if isinstance(part, _Side) else part for part in parts
                )
                partners.setdefault(key, ([], []))[first].append(index)
        pairs |= {left[0]: right[0] for left, right in partners.values() if len(left) == len(right) == 1}
    return tuple(sorted(pairs.items()))


def _words(name: str) -> tuple[str, ...]:
    """The words of a name in lower case: "LeftEye_2" is "left", "eye", "2"."""
    spaced = "".join(
        f" {letter}" if letter.isupper() and (before.islower() or (before.isupper() and after.islower())) else letter
        for before, letter, after in zip(f" {name}", name, f"{name[1:]} ", strict=False)
    )
    return tuple(re.findall(r"[^\W\d_]+|\d+", spaced.casefold()))


def _alphabets(names: list[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Names in which a single letter is one of a longer series; the letter is left out."""
    letters: dict[tuple[str, ...], set[str]] = {}
    for words in names:
        for place, word in enumerate(words):
            if len(word) == 1 and word.isalpha():
                letters.setdefault((*words[:place], "", *words[place + 1 :]), set()).add(word)
    return {words for words, series in letters.items() if not series <= _SIDE_LETTERS}


def _split(words: tuple[str, ...], shortest: int, alphabets: set[tuple[str, ...]]) -> tuple[str | _Side, ...]:
    """The words of a name, with a `_Side` in place of each word of `shortest` letters or more that is a side."""
    return tuple(
        word
        if len(word) < shortest or (len(word) == 1 and (*words[:place], "", *words[place + 1 :]) in alphabets)
        else _SIDES.get(word, word)
        for place, word in enumerate(words)
    )


def _split_joined(words: tuple[str, ...]) -> tuple[str | _Side, ...]:
    """The words of a name, with the side cut off from the first one that begins or ends with a long one."""
    for place, word in enumerate(words):
        for side in sorted(_SIDES, key=len, reverse=True):
            if len(word) > len(side) >= (4 if side.isascii() else 1):
                if word.startswith(side):
                    return (*words[:place], _SIDES[side], word[len(side) :], *words[place + 1 :])
                if word.endswith(side):
                    return (*words[:place], word[: -len(side)], _SIDES[side], *words[place + 1 :])
    return words
