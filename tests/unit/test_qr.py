"""QR codes: what is drawn is read back, from a screen, from a file and from a bad photograph."""

import random
import re
import struct
import zlib

import pytest
from PIL import Image, ImageDraw, ImageFilter

from common import invitation, limits, qr
from common.errors import InvitationError, NotFoundError
from common.ids import FederationId
from common.invitation import Invitation

CODE = Invitation(
    host="broker.example.org",
    port=8884,
    spki=bytes(range(100, 132)),
    federation=FederationId("lab"),
    root_fingerprint=bytes(range(32)),
    token_id=bytes(range(8)),
    token=b"sixteen secrets!",
    expires=1_800_000_000,
).code


@pytest.fixture
def drawn(tmp_path):
    path = tmp_path / "code.png"
    path.write_bytes(qr.png(CODE))
    return path


def saved(picture, path, **how):
    picture.save(path, **how)
    return path


def test_a_drawn_invitation_is_read_back(drawn):
    assert qr.read_image(drawn) == CODE
    assert invitation.parse(qr.read_image(drawn)).host == "broker.example.org"


def test_a_code_that_would_be_too_fine_is_refused():
    assert qr.png("A" * 311).startswith(b"\x89PNG")  # the capacity of version 10, level M, alphanumeric
    for draw in (qr.png, qr.svg):
        with pytest.raises(InvitationError, match="too long for a QR code") as raised:
            draw("A" * 312)
    assert "shorter host name" in raised.value.advice


def photographed(path):
    """Take a poor photograph: smaller, askew, grey, blurred and noisy."""
    chance = random.Random(7)
    picture = Image.open(path).convert("L").resize((330, 330), Image.Resampling.BILINEAR)
    picture = picture.rotate(10, expand=True, fillcolor=190).filter(ImageFilter.GaussianBlur(0.8))
    scene = Image.new("L", (640, 480), 120)
    scene.paste(picture, (90, 30))
    pixels = bytes(
        max(0, min(255, 40 + int(grey * 0.7) + chance.randint(-25, 25))) for grey in scene.tobytes()
    )
    return Image.frombytes("L", scene.size, pixels)


def test_a_poor_photograph_is_read(drawn, tmp_path):
    assert qr.read_image(saved(photographed(drawn), tmp_path / "photo.jpg", quality=60)) == CODE


def test_pictures_in_colour_and_with_transparency_are_read(drawn, tmp_path):
    for mode in ("RGB", "RGBA", "P"):
        assert qr.read_image(saved(Image.open(drawn).convert(mode), tmp_path / f"{mode}.png")) == CODE


def test_the_same_code_twice_is_one_and_two_codes_are_too_many(drawn, tmp_path):
    one = Image.open(drawn).convert("L")
    other = tmp_path / "other.png"
    other.write_bytes(qr.png("FEDMQ1:ANOTHER"))
    for second, name in ((one, "same.png"), (Image.open(other).convert("L"), "both.png")):
        both = Image.new("L", (one.width + second.width, one.height), 255)
        both.paste(one, (0, 0))
        both.paste(second, (one.width, 0))
        both.save(tmp_path / name)
    assert qr.read_image(tmp_path / "same.png") == CODE
    with pytest.raises(InvitationError, match="2 different QR codes"):
        qr.read_image(tmp_path / "both.png")


def test_a_picture_without_a_code_advises_to_take_it_again(tmp_path):
    with pytest.raises(NotFoundError, match="no QR code") as raised:
        qr.read_image(saved(Image.new("L", (200, 200), 255), tmp_path / "white.png"))
    assert "Take the picture again" in raised.value.advice


def test_no_file_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match=re.escape(str(tmp_path / "none.png"))):
        qr.read_image(tmp_path / "none.png")


def test_what_is_no_picture_is_refused(drawn, tmp_path):
    whole = drawn.read_bytes()
    spoilt = [b"", b"FEDMQ1:", whole[:200], whole[:40] + bytes(20) + whole[60:]]
    spoilt += [whole[:at] + b"\1" + whole[at + 1 :] for at in (11, 36)]  # the lengths of two chunks
    for number, data in enumerate(spoilt):
        path = tmp_path / f"{number}.png"
        path.write_bytes(data)
        with pytest.raises(InvitationError, match="no PNG or JPEG"):
            qr.read_image(path)
    with pytest.raises(InvitationError, match="no PNG or JPEG"):
        qr.read_image(tmp_path)


def test_other_forms_of_pictures_are_not_even_tried(drawn, tmp_path):
    for form in ("gif", "bmp", "tiff"):
        with pytest.raises(InvitationError, match="no PNG or JPEG"):
            qr.read_image(saved(Image.open(drawn), tmp_path / f"code.{form}"))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [8193, 12_000, 60_000])
def test_a_picture_that_would_fill_the_memory_is_refused_by_its_size(side, tmp_path):
    assert side**2 > limits.PICTURE_PIXELS_MAX
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(9)))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(InvitationError, match="pixels"):
        qr.read_image(path)


# --- on a screen ----------------------------------------------------------------------------------


def shown(text, *, ink, paper):
    """Paint what a terminal shows: each character is two modules, one on top of the other."""
    lines = text.splitlines()
    picture = Image.new("L", (len(lines[0]) * 6, len(lines) * 12), paper)
    pen = ImageDraw.Draw(picture)
    for y, line in enumerate(lines):
        for x, character in enumerate(line):
            for half in (0, 1):
                if character in ("█", "▀▄"[half]):
                    top = y * 12 + half * 6
                    pen.rectangle((x * 6, top, x * 6 + 5, top + 5), fill=ink)
    return picture


def test_on_a_terminal_with_colours_it_is_black_on_white_whatever_the_theme(tmp_path):
    text = qr.terminal(CODE, colour=True)
    lines = text.splitlines()
    assert all(line.startswith("\x1b[38;5;16;48;5;231m") and line.endswith("\x1b[0m") for line in lines)
    plain = re.sub(r"\x1b\[[0-9;]+m", "", text)
    assert qr.read_image(saved(shown(plain, ink=0, paper=255), tmp_path / "screen.png")) == CODE


def test_without_colours_it_is_drawn_in_light_for_a_dark_screen(tmp_path):
    text = qr.terminal(CODE, colour=False)
    assert set(text) <= set("█▀▄ \n")
    picture = shown(text, ink=255, paper=0)
    assert picture.getpixel((2, 2)) == 255  # the quiet zone
    assert qr.read_image(saved(picture, tmp_path / "dark.png")) == CODE
    inverted = shown(text, ink=0, paper=255)
    assert qr.read_image(saved(inverted, tmp_path / "light.png")) == CODE  # by readers that try both


def test_it_fits_on_a_screen():
    lines = qr.terminal(CODE, colour=False).splitlines()
    assert len(lines) <= 30
    assert {len(line) for line in lines} <= set(range(40, 66))


def test_the_drawing_for_a_browser_is_one_svg():
    drawing = qr.svg(CODE)
    assert drawing.startswith(b"<?xml")
    assert drawing.count(b"<svg") == drawing.count(b"<path") == 1
    assert b"script" not in drawing
