"""pyce.training.presize: images resized to one size."""

import errno
import importlib
import os
from fractions import Fraction
from glob import glob
from pathlib import Path

import numpy as np
import pytest
from conftest import one_isa

from pyce.training import SGD, LinearClassifier, presize, train
from pyce.training._presize import crop_box


@pytest.fixture
def pillow():
    pytest.importorskip("PIL")
    return importlib.import_module("PIL.Image")


def picture(height, width, channels=3, seed=0, dtype=np.uint8):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(20, 30), (30, 20), (8, 6), (5, 7), (1, 1)])
def test_squashed_is_as_pillow_resizes(pillow, height, width, channels):
    array = picture(height, width, channels)
    found = presize([array], (8, 6), "squash", dtype=np.uint8)
    expected = pillow.fromarray(array).resize((6, 8), pillow.Resampling.BILINEAR)
    np.testing.assert_array_equal(found[0], np.asarray(expected))


@pytest.mark.parametrize(("height", "width"), [(20, 30), (31, 20), (8, 8), (5, 9), (8, 100)])
def test_cropped_is_the_middle_in_its_own_shape(pillow, height, width):
    """For an image whose pixels are their coordinates."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    for image, sides in ((rows, (height, width)), (columns, (width, height))):
        found = presize([image], 8)[0]
        length, other = sides
        scale = min(length, other) / 8
        # Centres of 8 pixels of this size around the middle.
        expected = length / 2 - 0.5 + scale * (np.arange(8) - 3.5)
        along = found.mean(axis=1 if image is rows else 0)
        np.testing.assert_allclose(along[2:-2], expected[2:-2], atol=0.02 * length)
        across = found.mean(axis=0 if image is rows else 1)
        np.testing.assert_allclose(across, across.mean(), rtol=1e-5)


def test_cropped_to_another_shape(pillow):
    """Resized until a side fits, then cropped, at sizes that are whole pixels."""
    image = pillow.fromarray(picture(10, 40))
    for size, whole, part in (
        ((5, 10), (20, 5), (slice(None), slice(5, 15))),
        ((10, 10), (40, 10), (slice(None), slice(15, 25))),
        ((4, 40), (40, 10), (slice(3, 7), slice(None))),
        ((4, 80), (80, 20), (slice(8, 12), slice(None))),
    ):
        expected = np.asarray(image.resize(whole, pillow.Resampling.BILINEAR))[part]
        # Equal except for the rounding of the weights.
        found = presize([image], size, dtype=np.uint8)[0].astype(int)
        np.testing.assert_allclose(found, expected.astype(int), rtol=0, atol=1)


def test_sizes_and_kinds_may_differ(pillow, tmp_path):
    array = picture(9, 17)
    pillow.fromarray(array).save(tmp_path / "image.png")
    images = [
        array,
        pillow.fromarray(array),
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        array[::-1, ::-1][::-1, ::-1],
        np.asfortranarray(array),
    ]
    found = presize(iter(images), (4, 6))
    assert found.shape == (6, 4, 6, 3) and found.dtype == np.float32
    assert found.flags.c_contiguous and found.flags.writeable
    assert found.min() > 0 and found.max() < 1
    for one in found:
        np.testing.assert_array_equal(one, found[0])
    np.testing.assert_array_equal(array, picture(9, 17))
    assert presize([picture(9, 17), picture(3, 2), picture(40, 40)], 5).shape == (3, 5, 5, 3)
    assert presize(picture(6, 7, 4).astype(np.uint8), 3).shape == (6, 3, 3)  # (N, H, W)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("deep", [False, True])
def test_floats_are_from_0_to_1(pillow, dtype, deep):
    array = np.full((4, 4), 65535 if deep else 255, np.uint16 if deep else np.uint8)
    array[:, :2] = 0
    found = presize([array], 4, dtype=dtype)
    assert found.dtype == dtype
    assert (found[:, :, 2:] == 1).all() and (found[:, :, :2] == 0).all()
    part = presize([array // 7], 4, dtype=dtype)
    expected = (array // 7).astype(max(dtype, np.float32, key=lambda d: np.dtype(d).itemsize))
    np.testing.assert_array_equal(
        part[0], (expected / expected.dtype.type(array.max())).astype(dtype)
    )
    raw = presize([array // 5], 4, dtype=array.dtype)
    np.testing.assert_array_equal(raw[0], array // 5)


@pytest.mark.parametrize(
    ("mode", "counts_as", "shape"),
    [
        ("1", "L", ()),
        ("L", "L", ()),
        ("P", "RGB", (3,)),
        ("LA", "LA", (2,)),
        ("PA", "RGBA", (4,)),
        ("CMYK", "RGB", (3,)),
        ("YCbCr", "RGB", (3,)),
        ("HSV", "RGB", (3,)),
        ("LAB", "RGB", (3,)),
        ("RGBX", "RGB", (3,)),
        ("La", "LA", (2,)),
        ("RGBa", "RGBA", (4,)),
        ("RGBA", "RGBA", (4,)),
    ],
)
def test_every_mode_of_pillow(pillow, mode, counts_as, shape):
    rgb = pillow.fromarray(picture(9, 12))
    via = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
    if mode == "LAB":
        image = pillow.frombytes("LAB", (12, 9), picture(9, 12).tobytes())
    elif mode == "PA":
        image = pillow.new("PA", (12, 9))
    else:
        image = (rgb.convert(via) if via else rgb).convert(mode)
    found = presize([image], 6, dtype=np.uint8)
    assert found.shape == (1, 6, 6, *shape)
    try:
        expected = image.convert(counts_as)
    except ValueError:
        return
    np.testing.assert_array_equal(found, presize([expected], 6, dtype=np.uint8))
    for wanted, last in (("L", ()), ("RGB", (3,)), ("RGBA", (4,))):
        assert presize([image], 6, mode=wanted).shape == (1, 6, 6, *last)


def test_transparent_palettes(pillow, tmp_path):
    image = pillow.fromarray(picture(4, 4)).convert("P")
    image.info["transparency"] = 0
    assert presize([image], 4).shape == (1, 4, 4, 4)
    assert presize([image], 4, mode="RGB").shape == (1, 4, 4, 3)


def test_16_bits(pillow, tmp_path):
    array = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pillow.fromarray(array).save(tmp_path / "deep.png")
    kinds = [array, array.astype(">u2"), pillow.fromarray(array), tmp_path / "deep.png"]
    kinds += [pillow.fromarray(array.astype(np.int32))]
    found = presize(kinds, 8, dtype=np.uint16)
    for one in found:
        np.testing.assert_array_equal(one, array)
    gray = presize(kinds, 8, mode="L", dtype=np.uint8)
    np.testing.assert_array_equal(gray[0], np.rint(array / 257))
    small = presize(kinds, 4)
    np.testing.assert_allclose(small.mean(axis=(1, 2)), array.mean() / 65535, rtol=1e-3)
    whole = presize(kinds, 5, dtype=np.uint16)
    np.testing.assert_array_equal(whole, np.rint(presize(kinds, 5, dtype=float) * 65535))
    with pytest.raises(ValueError, match="image 0 has integers of more than 16 bits"):
        presize([pillow.fromarray(array.astype(np.int32) * 2)], 8)
    with pytest.raises(ValueError, match="image 0 has integers of more than 16 bits"):
        presize([pillow.fromarray(array.astype(np.int32) - 1)], 8)


def test_floats_stay_as_they_are(pillow):
    array = np.linspace(-3, 500, 64).reshape(8, 8)
    for image in (array, array.astype(np.float32), pillow.fromarray(array.astype(np.float32))):
        np.testing.assert_allclose(presize([image], 8)[0], array, rtol=1e-6)
    for options in ({"mode": "L"}, {"dtype": np.uint8}, {"dtype": np.uint16}):
        with pytest.raises(ValueError, match=r"image 0 .*floats"):
            presize([array], 8, **options)


def test_booleans_are_black_and_white(pillow):
    array = picture(6, 6, 1) > 100
    np.testing.assert_array_equal(presize([array], 6)[0], array)
    np.testing.assert_array_equal(presize([array[:, :, None]], 6)[0], array)


def test_the_orientation_of_exif(pillow, tmp_path):
    array = picture(6, 9)
    image = pillow.fromarray(array)
    for orientation, turned in ((1, array), (3, array[::-1, ::-1]), (6, np.rot90(array, -1))):
        exif = image.getexif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        image.save(path, exif=exif)
        expected = presize([turned], (5, 4), dtype=np.uint8)
        np.testing.assert_array_equal(presize([path], (5, 4), dtype=np.uint8), expected)
        with pillow.open(path) as opened:
            np.testing.assert_array_equal(presize([opened], (5, 4), dtype=np.uint8), expected)


def test_files_are_closed(pillow, tmp_path):
    path = tmp_path / "image.png"
    pillow.fromarray(picture(6, 9)).save(path)

    def is_open():
        return os.path.realpath(path) in map(os.path.realpath, glob("/proc/self/fd/*"))

    with open(path, "rb"):
        if not is_open():
            pytest.skip("the system does not list open files")
    presize([path] * 20, 4)
    assert not is_open()


def test_the_picture_of_an_animation(pillow, tmp_path):
    """The first one of a file, the current one of an image."""
    first, second = (pillow.fromarray(picture(5, 5, 1, seed)) for seed in (0, 1))
    first.save(tmp_path / "moves.gif", save_all=True, append_images=[second])
    found = presize([tmp_path / "moves.gif"], 5, mode="L", dtype=np.uint8)
    np.testing.assert_array_equal(found[0], np.asarray(first))
    with pillow.open(tmp_path / "moves.gif") as image:
        image.seek(1)
        found = presize([image], 5, mode="L", dtype=np.uint8)
    np.testing.assert_array_equal(found[0], np.asarray(second))


GRAY = np.zeros((4, 4), np.uint8)
COLOR = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        ([], ValueError, "no images"),
        ("image.png", TypeError, "several, got one str"),
        (Path("image.png"), TypeError, "several, got one"),
        (7, TypeError, "not iterable"),
        ([GRAY, 7], TypeError, "image 1 is neither .* but int"),
        ([GRAY, None], TypeError, "image 1 is neither"),
        ([GRAY, [[1, 2]]], TypeError, "image 1 is neither .* but list"),
        ([GRAY, b"image.png"], TypeError, "image 1 is neither .* but bytes"),
        ([GRAY, COLOR], ValueError, "image 1 is RGB and image 0 is L: mode="),
        ([GRAY, np.zeros((4, 4))], ValueError, "image 1 is L of floats"),
        ([GRAY, np.zeros((4, 4), np.uint16)], ValueError, "image 1 is 16-bit L"),
        ([GRAY, np.zeros((0, 4), np.uint8)], ValueError, r"image 1 has no pixels: .*\(0, 4\)"),
        ([GRAY, np.zeros((4, 0, 3), np.uint8)], ValueError, "image 1 has no pixels"),
        ([GRAY, np.zeros(4, np.uint8)], ValueError, r"image 1 has the shape \(4,\)"),
        ([GRAY, np.zeros((4, 4, 5), np.uint8)], ValueError, "image 1 has the shape"),
        ([GRAY, np.zeros((4, 4, 0), np.uint8)], ValueError, "image 1 has the shape"),
        ([GRAY, np.zeros((1, 2, 3, 4), np.uint8)], ValueError, "image 1 has the shape"),
        ([GRAY, np.zeros((4, 4), np.int64)], TypeError, "image 1 is an array of int64"),
        ([GRAY, np.zeros((4, 4, 3))], TypeError, "image 1 is an array of float64"),
        ([GRAY, np.zeros((4, 4), complex)], TypeError, "image 1 is an array of complex128"),
        ([GRAY, np.zeros((4, 4), object)], TypeError, "image 1 is an array of object"),
    ],
)
def test_images_that_cant_be_taken(pillow, images, error, words):
    with pytest.raises(error, match=words):
        presize(images, 4)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_images_without_pixels(pillow, size):
    with pytest.raises(ValueError, match=f"image 1 has no pixels: {size[1]} by {size[0]}"):
        presize([GRAY, pillow.new("L", size)], 4)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"size": 0}, ValueError, "at least 1, got 0"),
        ({"size": (4, -1)}, ValueError, "at least 1"),
        ({"size": (4, 4, 4)}, ValueError, "height and width"),
        ({"size": 4.0}, TypeError, "integer"),
        ({"size": "4"}, TypeError, "integer"),
        ({"method": "stretch"}, ValueError, "method must be one of crop, squash; got 'stretch'"),
        ({"method": None}, ValueError, "method"),
        ({"mode": "CMYK"}, ValueError, "mode must be one of L, RGB, RGBA"),
        ({"dtype": np.int64}, ValueError, "dtype must be floating, uint8 or uint16, got int64"),
        ({"dtype": np.uint16}, ValueError, "image 0 is L, whose numbers uint16 does not hold"),
        ({"dtype": complex}, ValueError, "dtype"),
    ],
)
def test_arguments_of_presize_that_are_wrong(pillow, options, error, words):
    with pytest.raises(error, match=words):
        presize([GRAY], **{"size": 4, **options})


def test_files_that_cant_be_read(pillow, tmp_path):
    pillow.fromarray(picture(50, 50)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    files = {
        "text.png": b"no image",
        "empty.png": b"",
        "cut.png": whole[: len(whole) // 2],
        "head.png": whole[:20],
        "wrong.png": whole[:60] + b"\0" * 40 + whole[100:],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="image 1 can't be read") as found:
            presize([tmp_path / "whole.png", tmp_path / name], 4)
        assert type(found.value) is ValueError and found.value.__cause__ is not None
    for name, kind, number in (
        ("missing.png", FileNotFoundError, errno.ENOENT),
        (".", IsADirectoryError, errno.EISDIR),
    ):
        with pytest.raises(kind, match="image 1: ") as found:
            presize([tmp_path / "whole.png", tmp_path / name], 4)
        assert found.value.errno == number
        assert Path(found.value.filename) == tmp_path / name


def test_too_large_for_pillow(pillow, tmp_path, monkeypatch):
    pillow.fromarray(picture(50, 50)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(pillow, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"image 0 can't be read: .*decompression bomb"):
        presize([tmp_path / "bomb.png"], 4)


@one_isa
def test_presized_images_train(pillow, backend):
    """From arrays of different sizes to a classifier that distinguishes them."""
    rng = np.random.default_rng(0)
    images, labels = [], []
    for i in range(40):
        height, width = rng.integers(10, 30, 2)
        image = np.zeros((height, width), np.uint8)
        top = slice(0, height // 2) if i % 2 else slice(height // 2, height)
        image[top] = 200
        images.append(image)
        labels.append(i % 2)
    x = presize(images, 6, "squash")
    model = LinearClassifier(36, 2, seed=0)
    optimizer = SGD(model.parameters, lr=0.5)
    assert train(model, x, labels, optimizer, epochs=10, progress=False).accuracy[-1] == 1


def exact_box(across, down, width, height):
    """`crop_box` in fractions."""
    scale = min(Fraction(across, width), Fraction(down, height))
    left, top = (across - width * scale) / 2, (down - height * scale) / 2
    return left, top, across - left, down - top


def test_the_crop_box_is_that_of_exact_arithmetic():
    """And within the image, for all sizes from 1 to 5000."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 5001, (20_000, 4))
    sizes[:5000] = np.exp(rng.uniform(0, np.log(5000), (5000, 4))).astype(int)
    sizes[5000:10_000, 3] = sizes[5000:10_000, 2]
    for across, down, width, height in sizes.tolist():
        box = crop_box(across, down, width, height)
        assert box == tuple(map(float, exact_box(across, down, width, height)))
        assert 0 <= box[0] < box[2] <= across and 0 <= box[1] < box[3] <= down


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (600, 450, 224),
        (600, 450, 28),
        (4032, 3024, 91),
        (3024, 4032, 91),
        (640, 480, (600, 453)),
        (1024, 768, 331),
        (333, 500, 150),
        (1, 25, 7),
        (5000, 1, 3),
        (1, 1, 299),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_ordinary_sizes_are_cropped(pillow, width, height, size, dtype):
    found = presize([np.full((height, width), 51, dtype)], size, dtype=dtype)
    assert found.shape == (1, *(size if isinstance(size, tuple) else (size, size)))
    np.testing.assert_allclose(found, 51, rtol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (31, 20), (8, 6), (5, 7), (1, 1), (3, 90)])
@pytest.mark.parametrize("method", ["crop", "squash"])
def test_float64_keeps_its_digits(pillow, height, width, method):
    """Images of float64 are resized as those of float32, by the same formula without rounding."""
    image = np.random.default_rng(0).normal(size=(height, width))
    found = presize([image], (8, 6), method, dtype=np.float64)[0]
    single = presize([image.astype(np.float32)], (8, 6), method, dtype=np.float64)[0]
    np.testing.assert_allclose(found, single, rtol=1e-5, atol=1e-6)
    # float32 cannot tell these from a constant.
    tiny = presize([1.0 + 1e-12 * image], (8, 6), method, dtype=np.float64)[0]
    np.testing.assert_allclose((tiny - 1.0) * 1e12, found, rtol=0, atol=2e-3)
    swapped = image.astype(image.dtype.newbyteorder())
    np.testing.assert_array_equal(presize([swapped], (8, 6), method, dtype=float)[0], found)
    # Unchanged if there is nothing to do, and a pixel that is NaN affects its neighbours alone.
    np.testing.assert_array_equal(presize([image], (height, width), method, dtype=float)[0], image)
    spoilt = np.zeros((40, 40))
    spoilt[0, 0] = np.nan
    assert np.isnan(presize([spoilt], 10, method, dtype=float)).sum() <= 4
