"""Bytes as the characters that a QR code packs best: base45, only in the one spelling that `encode` gives.

Source: RFC 9285. Two bytes are three characters, the lowest first; a last single byte is two. The last
character is never a space, so a text may be stripped; inside it, spaces count.
"""

from common.errors import DecodeError

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"
_VALUES = {letter: value for value, letter in enumerate(ALPHABET)}
_POWERS = (1, 45, 45 * 45)


def encode(data: bytes) -> str:
    """Spell bytes."""
    pairs = (data[at : at + 2] for at in range(0, len(data), 2))
    return "".join(_spell(int.from_bytes(pair, "big"), len(pair) + 1) for pair in pairs)


def decode(text: str) -> bytes:
    """Read bytes. Raises: DecodeError."""
    return b"".join(_read(text[at : at + 3]) for at in range(0, len(text), 3))


def _spell(number: int, letters: int) -> str:
    return "".join(ALPHABET[number // _POWERS[power] % 45] for power in range(letters))


def _read(part: str) -> bytes:
    if len(part) == 1:
        raise DecodeError("base45 is cut short: one character is left over")
    try:
        number = sum(_VALUES[letter] * _POWERS[power] for power, letter in enumerate(part))
        return number.to_bytes(len(part) - 1, "big")
    except KeyError as error:
        raise DecodeError(f"{error.args[0]!r} is no character of base45") from None
    except OverflowError:
        raise DecodeError(f"{part!r} stands for no {len(part) - 1} bytes") from None
