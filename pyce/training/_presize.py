"""Resizes images of different sizes to one size."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pyce._arguments import index_number, is_masked
from pyce._extras import advice
from pyce._types import Array

METHODS = ("crop", "squash")
MODES = ("L", "RGB", "RGBA")
# The mode to which images of other modes of Pillow are converted.
_CONVERTED_TO = {"1": "L", "La": "LA", "P": "RGB", "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}
_CONVERTED_TO |= {"LAB": "RGB", "HSV": "RGB", "PA": "RGBA", "RGBa": "RGBA"}
_CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_DEEP, _FLOATS = "16-bit L", "L of floats"


class _Picture(NamedTuple):
    """An image of Pillow, and its mode. Images of _DEEP and _FLOATS have Pillow's mode F.

    float64 numbers, for which Pillow has no mode, stay an array (H, W).
    """

    mode: str
    image: Any


def presize(
    images: Iterable[Any],
    size: int | tuple[int, int],
    method: str = "crop",
    *,
    mode: str | None = None,
    dtype: Any = np.float32,
) -> Array:
    """Resize images of different sizes to one size, and return them as one array.

    Pillow resizes them with bilinear interpolation, and with antialiasing where they shrink. Arrays
    of float64, which Pillow would round to float32, are resized by the same formula in float64.

    Parameters
    ----------
    images : iterable
        Images of Pillow, paths of image files, and arrays; they may be mixed. Arrays have the shape
        (H, W) or (H, W, 1) for gray images of uint8, bool, uint16 or floats, and (H, W, 2),
        (H, W, 3) or (H, W, 4) of uint8 for gray with alpha, RGB and RGBA. The EXIF orientation is
        applied. Of an animation, the first frame of a file and the current frame of an image of
        Pillow is used.
    size : int or (int, int)
        Height and width of the results in pixels; one number for both.
    method : {"crop", "squash"}
        "crop" keeps the aspect ratio: it cuts the longer side equally at both ends to the ratio of
        `size`, by fractions of a pixel where that is exact. "squash" resizes both sides
        independently.
    mode : {"L", "RGB", "RGBA"}, optional
        Convert all images to gray, color, or color with alpha. It is needed if their modes differ.
        A conversion to RGB drops the alpha channel. Images of floats cannot be converted.
    dtype : dtype
        A floating dtype scales the values to 0…1, except those of images of floats, which stay as
        they are. uint8 returns the values of 8-bit images, uint16 those of 16-bit images.

    Returns
    -------
    ndarray
        Shape (N, H, W) for gray images, else (N, H, W, channels); C-contiguous, of dtype `dtype`.
        Without `mode`, black-and-white images become gray, and images with palettes, CMYK and other
        color models become RGB, or RGBA if they are transparent.

    Raises
    ------
    ImportError
        If Pillow is not installed: pip install 'pyce-kernels[training]'.
    TypeError
        If an image is none of these; the message names its index. If `images` is one image.
    ValueError
        If there are no images; if an image cannot be read, has no pixels, or differs in mode; the
        message names its index. If `size` is below 1; if `method`, `mode` or `dtype` is unknown.
    OSError
        If a file cannot be opened, for example `FileNotFoundError`.

    Examples
    --------
    >>> from pyce.training import presize
    >>> images = [np.full((20, 30), 51, np.uint8), np.full((50, 40), 255, np.uint8)]
    >>> x = presize(images, 8)
    >>> print(x.shape, x.dtype, x.max(axis=(1, 2)))
    (2, 8, 8) float32 [0.2 1. ]
    >>> presize(images, (4, 6), "squash", mode="RGB", dtype=np.uint8).shape
    (2, 4, 6, 3)
    """
    try:
        import PIL.Image as pillow
    except ImportError:
        raise ImportError(f"presize needs Pillow: {advice('training')}") from None
    height, width = _size(size)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if mode is not None and mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, or None; got {mode!r}")
    result = np.dtype(dtype)
    if result.kind != "f" and result not in (np.uint8, np.uint16):
        raise ValueError(f"dtype must be floating, uint8 or uint16, got {result}")
    if isinstance(images, (str, bytes, os.PathLike, pillow.Image)):
        raise TypeError(f"images must be several, got one {type(images).__name__}")
    made: list[Array] = []
    first = ""
    for i, image in enumerate(images):
        try:
            picture = _picture(image)
            if mode is not None:
                picture = _converted(picture, mode)
            array = _numbers(_resized(picture, height, width, method), result)
        except OSError as error:
            raise OSError(error.errno, f"image {i}: {error.strerror}", error.filename) from None
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"image {i} {error}") from error.__cause__
        first = first or picture.mode
        if picture.mode != first:
            raise ValueError(
                f"image {i} is {picture.mode} and image 0 is {first}: mode= converts them"
            )
        made.append(array)
    if not made:
        raise ValueError("there are no images")
    return np.stack(made)


def _size(size: Any) -> tuple[int, int]:
    both = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(both) != 2:
        raise ValueError(f"size must be one number, or height and width; got {size!r}")
    height, width = (index_number(side, "size") for side in both)
    if min(height, width) < 1:
        raise ValueError(f"size must be at least 1, got {size!r}")
    return height, width


# The messages of errors from here on continue "image {index} …", which `presize` puts in front.


def _picture(image: Any) -> _Picture:
    import PIL.Image as pillow

    if isinstance(image, np.ndarray):
        return _of_array(image)
    if not isinstance(image, (pillow.Image, str, os.PathLike)):
        raise TypeError(f"is neither an image, a path nor an array, but {type(image).__name__}")
    try:
        if isinstance(image, pillow.Image):
            return _of_image(image)
        with pillow.open(image) as opened:
            return _of_image(opened)
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"can't be read: {error}") from error
    except (MemoryError, _Refused):
        raise
    except Exception as error:  # decoders raise exceptions of many types for broken files
        raise ValueError(f"can't be read: {error}") from error


class _Refused(ValueError):
    """An image that `presize` refuses, unlike one for which a decoder raises an error."""


def _of_image(image: Any) -> _Picture:
    from PIL import ImageOps

    if 0 in image.size:
        raise _Refused(f"has no pixels: {image.height} by {image.width}")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return _Picture(image.mode, image)
    if image.mode == "F":
        return _Picture(_FLOATS, image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise _Refused("has integers of more than 16 bits")
        return _Picture(_DEEP, _of_floats(values))
    if image.mode not in _CONVERTED_TO:
        raise _Refused(f"has the mode {image.mode}, which is not supported")
    mode = _CONVERTED_TO[image.mode]
    if image.mode == "P" and "transparency" in image.info:
        mode = "RGBA"
    return _Picture(mode, image.convert(mode))


def _of_array(array: Array) -> _Picture:
    import PIL.Image as pillow

    if is_masked(array):
        raise TypeError("has masked elements, and masks are not used: .filled(...) sets them")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNELS):
        raise ValueError(f"has the shape {array.shape}: (H, W), or (H, W, 1 to 4) is needed")
    if array.size == 0:
        raise ValueError(f"has no pixels: its shape is {array.shape}")
    if array.dtype == np.uint8:
        mode = _CHANNELS[1 if array.ndim == 2 else array.shape[2]]
        return _Picture(mode, pillow.fromarray(np.ascontiguousarray(array)))
    if array.ndim == 2 and array.dtype == bool:
        return _Picture("L", pillow.fromarray(np.where(array, np.uint8(255), np.uint8(0))))
    if array.ndim == 2 and array.dtype.kind == "u" and array.itemsize == 2:
        return _Picture(_DEEP, _of_floats(array))
    if array.ndim == 2 and array.dtype.kind == "f":
        wide = array.dtype.itemsize > 4
        return _Picture(_FLOATS, array.astype(np.float64) if wide else _of_floats(array))
    raise TypeError(
        f"is an array of {array.dtype} and the shape {array.shape}: uint8 is needed, or bool, "
        "uint16 or floats of two dimensions"
    )


def _of_floats(values: Array) -> Any:
    import PIL.Image as pillow

    return pillow.fromarray(np.ascontiguousarray(values, dtype=np.float32))


def _converted(picture: _Picture, mode: str) -> _Picture:
    import PIL.Image as pillow

    if picture.mode == _FLOATS:
        raise ValueError(f"has floats, of which there is no {mode}")
    image = picture.image
    if picture.mode == _DEEP:
        image = pillow.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    return _Picture(mode, image.convert(mode))


def _resized(picture: _Picture, height: int, width: int, method: str) -> _Picture:
    import PIL.Image as pillow

    image = picture.image
    if isinstance(image, np.ndarray):
        across, down = image.shape[1], image.shape[0]
    else:
        across, down = image.size
    box = crop_box(across, down, width, height)
    if method == "squash":
        box = (0.0, 0.0, float(across), float(down))
    if isinstance(image, np.ndarray):
        if (across, down) != (width, height):
            image = _bilinear(image, height, box[1], box[3])
            image = _bilinear(image.T, width, box[0], box[2]).T
        return _Picture(picture.mode, image)
    return _Picture(
        picture.mode, image.resize((width, height), pillow.Resampling.BILINEAR, box=box)
    )


def crop_box(across: int, down: int, width: int, height: int) -> tuple[float, float, float, float]:
    """The largest box with the ratio width:height in the middle of `across` by `down` pixels.

    Left, top, right and bottom, each the float nearest to the exact fraction. Computed from rounded
    ratios, a side that is not cut could lie outside of the image by a rounding error.
    """
    if across * height <= down * width:  # as wide as the image
        cut = down * width - across * height
        return (0.0, cut / (2 * width), float(across), (2 * width * down - cut) / (2 * width))
    cut = across * height - down * width
    return (cut / (2 * height), 0.0, (2 * height * across - cut) / (2 * height), float(down))


def _bilinear(values: Array, size: int, begin: float, end: float) -> Array:
    """Resize begin…end of the first axis to `size` as Pillow's BILINEAR does, in float64.

    The weights of the pixels around the center of a pixel of the result are a triangle, which
    reaches as far on either side as a pixel of the image or of the result, whichever is larger.
    """
    scale = (end - begin) / size
    reach = max(scale, 1.0)
    centers = begin + (np.arange(size) + 0.5) * scale
    first = np.floor(centers - reach).astype(int)
    pixels = first[:, np.newaxis] + np.arange(int(2.0 * reach) + 3)
    weights = 1.0 - np.abs(pixels + 0.5 - centers[:, np.newaxis]) / reach
    weights[(weights < 0.0) | (pixels < 0) | (pixels >= len(values))] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    result = np.zeros((size, values.shape[1]))
    for pixel, weight in zip(pixels.T, weights.T, strict=True):
        here = weight != 0.0  # a pixel that is not finite affects its own neighbours alone
        result[here] += weight[here, np.newaxis] * values[pixel[here]]
    return result


def _numbers(picture: _Picture, dtype: np.dtype[Any]) -> Array:
    values: Array = np.asarray(picture.image)
    if dtype.kind != "f":
        if dtype != {_DEEP: np.uint16, _FLOATS: None}.get(picture.mode, np.uint8):
            raise ValueError(f"is {picture.mode}, whose numbers {dtype} does not hold")
        values = np.rint(values)
    elif picture.mode != _FLOATS:
        largest = 65535 if picture.mode == _DEEP else 255
        values = values / np.result_type(dtype, np.float32).type(largest)
    return values.astype(dtype)
