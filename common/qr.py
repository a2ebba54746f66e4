"""QR codes: an invitation drawn for a terminal, a browser or paper, and read from a picture.

Source: ISO/IEC 18004, error correction M, alphanumeric mode: base45 is made for it.
"""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from common import limits
from common.errors import InvitationError, NotFoundError

if TYPE_CHECKING:
    import PIL.Image
    import qrcode

VERSION_MAX = 10  # 57 modules: above it a telephone has to come too close
QUIET_MODULES = 4
_SHARPER = "Take the picture again: the whole code, from the front, sharp and evenly lit."
_FORMATS = ("PNG", "JPEG")
_BLACK_ON_WHITE, _PLAIN = "\x1b[38;5;16;48;5;231m", "\x1b[0m"
# two modules on top of each other, dark or not, in one character
_INK = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}


def terminal(code: str, *, colour: bool) -> str:
    """Draw a code for a screen: black on white where it takes colours, else inked for a dark one.

    Raises: InvitationError, as the others, for a code that would be drawn too fine.
    """
    modules = _drawn(code).get_matrix()
    if len(modules) % 2:
        modules.append([False] * len(modules))
    rows = zip(modules[::2], modules[1::2], strict=True)
    if colour:
        lines = ["".join(_INK[pair] for pair in zip(*row, strict=True)) for row in rows]
        return "".join(f"{_BLACK_ON_WHITE}{line}{_PLAIN}\n" for line in lines)
    return "".join(
        "".join(_INK[not up, not down] for up, down in zip(*row, strict=True)) + "\n" for row in rows
    )


def png(code: str) -> bytes:
    """Draw a code as a picture, 10 pixels a module."""
    out = io.BytesIO()
    _drawn(code).make_image().save(out)
    return out.getvalue()


def svg(code: str) -> bytes:
    """Draw a code as one path, for a browser or paper."""
    from qrcode.image.svg import SvgPathFillImage

    out = io.BytesIO()
    _drawn(code).make_image(image_factory=SvgPathFillImage).save(out)
    return out.getvalue()


def read_image(path: Path) -> str:
    """Read the one code in a picture, PNG or JPEG. Raises: NotFoundError, InvitationError."""
    import zxingcpp

    found = zxingcpp.read_barcodes(_picture(path), formats=zxingcpp.barcode_formats_from_str("QRCode"))
    texts = {code.text for code in found}
    if not texts:
        raise NotFoundError(f"{path} shows no QR code that can be read", advice=_SHARPER)
    if len(texts) > 1:
        raise InvitationError(
            f"{path} shows {len(texts)} different QR codes", advice="Cut the picture so that it shows one."
        )
    return texts.pop()


def _drawn(code: str) -> "qrcode.QRCode":
    import qrcode

    drawn = qrcode.QRCode(error_correction=qrcode.ERROR_CORRECT_M, border=QUIET_MODULES)
    drawn.add_data(code)
    drawn.make()
    if drawn.version > VERSION_MAX:
        detail = f"the invitation of {len(code)} characters is too long for a QR code that a telephone reads"
        raise InvitationError(detail, advice="Invite under a shorter host name, or under an address.")
    return drawn


def _picture(path: Path) -> "PIL.Image.Image":
    """Open a picture in grey. Its size is looked at before its pixels are."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as picture:
                if picture.width * picture.height <= limits.PICTURE_PIXELS_MAX:
                    return picture.convert("L")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}") from error
    except Image.DecompressionBombError:
        pass
    except (OSError, ValueError, SyntaxError) as error:  # Pillow says all of these of spoilt files
        raise InvitationError(f"{path} is no PNG or JPEG that can be read", advice=_SHARPER) from error
    detail = f"{path} has more than {limits.PICTURE_PIXELS_MAX} pixels"
    raise InvitationError(detail, advice="Make the picture smaller.")
