"""Reading images against a full decode by OpenCV, and every way a file can be wrong."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from dense_depth import InputError
from dense_depth.datasets.scene import CameraFrame
from dense_depth.images import read_image

HEIGHT, WIDTH = 224, 400


def frame(path, height=HEIGHT, width=WIDTH):
    return CameraFrame("sample", "CAM_FRONT", path, 0, width, height, np.eye(3), np.eye(4), "sweep")


def picture(seed=0):
    """Smooth colours, and a few edges."""
    rng = np.random.default_rng(seed)
    pixels = cv2.resize(rng.uniform(30, 220, (5, 8, 3)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    pixels[60:150, 100:220] = (200, 40, 90)
    return np.clip(pixels, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    image = Image.fromarray(picture())
    image.save(root / "colour.jpg", quality=95)
    image.save(root / "colour.png")
    image.convert("L").save(root / "grey.jpg", quality=95)
    image.convert("L").save(root / "grey.png")
    image.convert("CMYK").save(root / "cmyk.jpg", quality=95)
    image.convert("RGBA").save(root / "alpha.png")
    palette = image.quantize(255)
    palette.save(root / "palette.png")
    palette.save(root / "clear_palette.png", transparency=bytes(range(255)))
    return root


@pytest.mark.parametrize("factor", [1, 0.7, 0.5, 0.44, 0.25, 0.125])
@pytest.mark.parametrize("name", ["colour.jpg", "colour.png"])
def test_a_reduced_image_is_the_whole_one_shrunk(folder, name, factor):
    height, width = round(HEIGHT * factor), round(WIDTH * factor)
    pixels = read_image(frame(folder / name), height, width)
    whole = cv2.imread(str(folder / name))[..., ::-1]
    expected = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    assert pixels.shape == (height, width, 3) and pixels.dtype == np.uint8
    difference = np.abs(pixels.astype(int) - expected)
    if name.endswith("png"):
        assert not difference.any()
    assert difference.mean() < 1.2 and np.quantile(difference, 0.99) <= 8


@pytest.mark.filterwarnings("ignore:Palette images")
@pytest.mark.parametrize("name", ["grey.jpg", "grey.png", "cmyk.jpg", "alpha.png", "palette.png", "clear_palette.png"])
def test_other_modes_become_rgb(folder, name):
    for factor in (1, 0.5):
        height, width = round(HEIGHT * factor), round(WIDTH * factor)
        pixels = read_image(frame(folder / name), height, width)
        original = picture()
        if "grey" in name:
            original = np.repeat(cv2.cvtColor(original, cv2.COLOR_RGB2GRAY)[..., None], 3, -1)
        expected = cv2.resize(original, (width, height), interpolation=cv2.INTER_AREA)
        assert pixels.shape == expected.shape
        assert np.abs(pixels.astype(int) - expected).mean() < (12 if "palette" in name else 2)


def test_a_height_that_cannot_be_halved_keeps_its_rows_in_place(tmp_path):
    """KITTI's 375 rows are decoded as 188, the last of them half outside."""
    pixels = np.zeros((375, 64, 3), np.uint8)
    pixels[360:368] = 255
    Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=95)
    brightness = read_image(frame(tmp_path / "x.jpg", 375, 64), 188, 32)[..., 1].mean(1)
    centre = (brightness * np.arange(188)).sum() / brightness.sum()
    assert centre == pytest.approx(364 * 188 / 375 - 0.5, abs=0.5)


def one_line(path, **size):
    with pytest.raises(InputError) as error:
        read_image(frame(path, **size), 100, 200)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("name", ["colour.jpg", "colour.png"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.02, 0.5, 0.99])
def test_cut_short(folder, tmp_path, name, kept):
    content = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(kept * len(content))])
    assert "restore the file" in one_line(tmp_path / name)


def test_flipped_bytes_of_a_png(folder, tmp_path):
    content = bytearray((folder / "colour.png").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "x.png").write_bytes(content)
    assert "restore the file" in one_line(tmp_path / "x.png")


def test_missing_other_size_no_image_and_a_bomb(folder, tmp_path):
    assert "No such file" in one_line(tmp_path / "none.jpg")
    assert "400x224 pixels, but its table says 1600x900" in one_line(folder / "colour.jpg", height=900, width=1600)
    (tmp_path / "text.jpg").write_text("<html>not found</html>")
    assert "cannot identify" in one_line(tmp_path / "text.jpg")
    (tmp_path / "folder.jpg").mkdir()
    one_line(tmp_path / "folder.jpg")
    for side in (10_000, 50_000):  # PIL warns of the first, and refuses the second
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        path = tmp_path / "huge.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1) + b"IDAT")
        assert "decompression bomb" in one_line(path, height=side, width=side)
