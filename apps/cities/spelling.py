"""Spellings as they are compared: without case, accents and punctuation. Knows text, not cities."""

import unicodedata


class _Folding(dict[int, str | None]):
    """What becomes of each code point; filled as they turn up."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        if unicodedata.combining(character):
            folded = None
        elif unicodedata.category(character)[0] in "LNM":
            folded = character
        else:
            folded = " "
        self[code] = folded
        return folded


_folding = _Folding()


def fold(text: str) -> str:
    """``text`` as it is compared with others.

    >>> fold("São Paulo"), fold("SAINT-Étienne"), fold("東京")
    ('sao paulo', 'saint etienne', '東京')
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
    return " ".join(text.casefold().translate(_folding).split())
