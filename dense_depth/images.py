"""Camera images at the size that is wanted, decoded strictly."""

import warnings

import cv2
import numpy as np
from jaxtyping import UInt8

from dense_depth import InputError
from dense_depth.datasets.scene import CameraFrame

MAX_PIXELS = 2**26


def read_image(frame: CameraFrame, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes a frame's image and shrinks it, RGB; JPEGs at a half, a quarter or an eighth where that is enough.

    Raises:
        InputError: The file is missing, damaged or cut short, or has another size than its table says.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(frame.path) as image:
                size = "x".join(map(str, image.size))
                if image.width * image.height > MAX_PIXELS:  # PIL's own limit is lifted by nuscenes-devkit
                    raise InputError(f"{frame.path}: {size} pixels, more than any camera has: a decompression bomb?")
                if image.size != (frame.width, frame.height):
                    raise InputError(f"{frame.path}: {size} pixels, but its table says {frame.width}x{frame.height}")
                image.draft("RGB", (width, height))
                pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Warning, Image.DecompressionBombError) as error:
        raise InputError(f"{frame.path}: cannot be read as an image: {error}; restore the file") from error
    return (
        cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        if pixels.shape[:2] != (height, width)
        else pixels
    )
