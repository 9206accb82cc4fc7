"""Pictures as people have them, drawn from a seed: formats, depths, transparency, profiles, orientations, damage."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms

Rng = np.random.Generator
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


@dataclass(frozen=True)
class Odd:
    """A file.

    Attributes:
        data: Its bytes.
        stored: The values it holds, upright, on the scale of a PNG of 8 or 16 bits, (h w) or (h w c) with c of L, LA,
            RGB or RGBA; None where no such PNG holds them, so that an edit has to refuse the file.
        exact: Whether `stored` is known from how the file was made; else it is what Pillow decodes of a lossy file.
    """

    data: bytes
    stored: np.ndarray | None
    exact: bool = True


Make = Callable[[Rng], Odd]


def values(rng: Rng, *channels: int, top: int = 255) -> np.ndarray:
    """Smooth colours with noise over the whole range, in a picture of any small size."""
    h, w = rng.integers(36, 64, 2)
    y, x = np.mgrid[:h, :w]
    slopes = rng.uniform(-1, 1, (2, *channels))
    smooth = np.multiply.outer(y / h, slopes[0]) + np.multiply.outer(x / w, slopes[1])
    noisy = smooth + rng.normal(0, 0.2, (h, w, *channels)) + 0.5
    return (np.clip(noisy, 0, 1) * top).round().astype(np.uint16 if top > 255 else np.uint8)


def as_bytes(picture: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def pillow(format: str, *channels: int, **options) -> Make:
    """A lossless file that Pillow writes."""

    def make(rng: Rng) -> Odd:
        stored = values(rng, *channels)
        mode = {(): "L", (2,): "LA", (3,): "RGB", (4,): "RGBA"}[channels]
        picture = Image.frombytes(mode, stored.shape[1::-1], stored.tobytes())
        return Odd(as_bytes(picture, format, **options), stored)

    return make


def lossy(format: str, *channels: int, **options) -> Make:
    """What its decoder gives is what an edit has to keep."""

    def make(rng: Rng) -> Odd:
        data = pillow(format, *channels, **options)(rng).data
        return Odd(data, np.asarray(Image.open(io.BytesIO(data))), exact=False)

    return make


def turned(format: str, orientation: int, **options) -> Make:
    def make(rng: Rng) -> Odd:
        upright = values(rng, 3)
        back = [
            lambda x: x,
            lambda x: x[:, ::-1],
            lambda x: x[::-1, ::-1],
            lambda x: x[::-1],
            lambda x: x.swapaxes(0, 1),
            lambda x: np.rot90(x),
            lambda x: x[::-1, ::-1].swapaxes(0, 1),
            lambda x: np.rot90(x, -1),
        ][orientation - 1]
        exif = Image.Exif()
        exif[274] = orientation
        picture = Image.fromarray(np.ascontiguousarray(back(upright)))
        return Odd(as_bytes(picture, format, exif=exif, **options), upright)

    return make


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bytes(stored: np.ndarray, depth: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand: of any depth, with any chunks."""
    h, w = stored.shape[:2]
    rows = stored.reshape(h, -1)
    if depth == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        packed = [row.tobytes() for row in np.packbits(bits.reshape(h, -1).astype(np.uint8), axis=1)]
    data = zlib.compress(b"".join(b"\0" + row for row in packed))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0)), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def png(depth: int, *channels: int, key: bool = False, others: tuple[tuple[bytes, bytes], ...] = ()) -> Make:
    """Grey or colours of a depth, a colour of it transparent on request."""

    def make(rng: Rng) -> Odd:
        top = 2**depth - 1
        raw = values(rng, *channels, top=top)
        type_ = {(): 0, (2,): 4, (3,): 2, (4,): 6}[channels]
        stored = (raw * (255 // top)).astype(np.uint8) if depth < 8 else raw
        chunks = list(others)
        if key:
            clear = raw[5, 7]
            chunks.append((b"tRNS", np.atleast_1d(clear).astype(">u2").tobytes()))
            flat = raw[..., None] if raw.ndim == 2 else raw
            opaque = (flat != clear).any(-1, keepdims=True) * np.uint8(255)
            stored = np.concatenate([stored.reshape(flat.shape), opaque], 2)
        kept = depth <= 8 or (not channels and not key)
        return Odd(png_bytes(raw, depth, type_, *chunks), stored if kept else None)

    return make


def palette_png(depth: int, alpha: int = 0) -> Make:
    """Alpha of so many entries."""

    def make(rng: Rng) -> Odd:
        index = values(rng, top=2**depth - 1)
        colours = rng.integers(0, 256, (2**depth, 3), np.uint8)
        chunks, table = [(b"PLTE", colours.tobytes())], colours
        if alpha:
            opacity = np.full(2**depth, 255, np.uint8)
            opacity[:alpha] = rng.integers(0, 256, min(alpha, 2**depth))
            opacity[0] = 0
            chunks.append((b"tRNS", opacity[:alpha].tobytes()))
            table = np.concatenate([colours, opacity[:, None]], 1)
        return Odd(png_bytes(index, depth, 3, *chunks), table[index])

    return make


def tiff_bytes(
    raw: np.ndarray, photometric: int, order: Literal["<", ">"] = "<", bits: int | None = None, **tags
) -> bytes:
    """A TIFF by hand: uncompressed, of any samples; tags are tTAG=(type, values), type 3 of 16 bits, 4 of 32."""
    h, w = raw.shape[:2]
    count = raw.shape[2] if raw.ndim == 3 else 1
    pixels = raw.astype(raw.dtype.newbyteorder(order)).tobytes() if bits != 12 else pack_12(raw)
    entries = {
        256: (4, [w]),
        257: (4, [h]),
        258: (3, [bits or raw.itemsize * 8] * count),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, [8]),
        277: (3, [count]),
        278: (4, [h]),
        279: (4, [len(pixels)]),
        **{int(tag[1:]): value for tag, value in tags.items()},
    }
    body, place = b"", 8 + len(pixels) + len(pixels) % 2
    table = place
    place += 2 + 12 * len(entries) + 4
    rows = b""
    for tag, (kind, content) in sorted(entries.items()):
        size = {3: "H", 4: "I", 7: "B"}[kind]
        data = struct.pack(f"{order}{len(content)}{size}", *content)
        if len(data) > 4:
            held, data = data + b"\0" * (len(data) % 2), struct.pack(f"{order}I", place + len(body))
            body += held
        rows += struct.pack(f"{order}HHI", tag, kind, len(content)) + data.ljust(4, b"\0")
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, table)
    return (
        start
        + pixels
        + b"\0" * (len(pixels) % 2)
        + struct.pack(f"{order}H", len(entries))
        + rows
        + struct.pack(f"{order}I", 0)
        + body
    )


def pack_12(raw: np.ndarray) -> bytes:
    bits = (raw[..., None] >> np.arange(11, -1, -1)) & 1
    return np.packbits(bits.reshape(len(raw), -1).astype(np.uint8), axis=1).tobytes()


NO_TAGS: dict[str, Any] = {}


def tiff(*channels: int, depth: int = 8, order: Literal["<", ">"] = "<", kept: bool = True, **tags: Any) -> Make:
    def make(rng: Rng) -> Odd:
        raw = values(rng, *channels, top=2**depth - 1)
        return Odd(tiff_bytes(raw, 2 if channels and channels[0] > 2 else 1, order, **tags), raw if kept else None)

    return make


def white_is_zero(depth: int, order: Literal["<", ">"] = "<") -> Make:
    def make(rng: Rng) -> Odd:
        raw = values(rng, top=2**depth - 1)
        return Odd(tiff_bytes(raw, 0, order), (2**depth - 1 - raw).astype(raw.dtype))

    return make


def palette_tiff(exact: bool) -> Make:
    def make(rng: Rng) -> Odd:
        index, colours = values(rng), rng.integers(0, 256, (3, 256), np.uint16)
        wide = colours * 257 + (0 if exact else rng.integers(0, 99, colours.shape, np.uint16))
        wide = np.minimum(wide, 65535)
        data = tiff_bytes(index, 3, t320=(3, wide.ravel().tolist()))
        return Odd(data, colours.T[index].astype(np.uint8) if exact else None)

    return make


def unlike(dtype: type, format: str = "TIFF") -> Make:
    """Values that no PNG holds."""

    def make(rng: Rng) -> Odd:
        raw = values(rng, top=65535).astype(np.float64) / 65535
        scale = rng.choice([1.0, 255.0, 65535.0, 1e6][np.dtype(dtype).kind != "f" :])
        offset = 0.0 if np.dtype(dtype).kind == "u" else rng.choice([0.0, -0.5])
        return Odd(as_bytes(Image.fromarray(((raw + offset) * scale).astype(dtype)), format), None)

    return make


def converted(mode: str, format: str, **options) -> Make:
    def make(rng: Rng) -> Odd:
        return Odd(as_bytes(Image.fromarray(values(rng, 3)).convert(mode), format, **options), None)

    return make


def netpbm(magic: bytes, most: int, *channels: int) -> Make:
    def make(rng: Rng) -> Odd:
        raw = values(rng, *channels, top=most)
        plain = magic in (b"P2", b"P3")
        body = (
            b" ".join(b"%d" % v for v in raw.ravel()) if plain else raw.astype(">u2" if most > 255 else "u1").tobytes()
        )
        top = 65535 if most > 255 and not channels else 255
        stored = None if top % most else (raw.astype(np.int64) * (top // most)).astype(raw.dtype)
        return Odd(b"%s\n%d %d\n%d\n" % (magic, raw.shape[1], raw.shape[0], most) + body, stored)

    return make


def bitmap(rng: Rng) -> Odd:
    bits = values(rng) > 127
    data = b"P4\n%d %d\n" % bits.shape[::-1] + np.packbits(~bits, axis=1).tobytes()
    return Odd(data, bits * np.uint8(255))


def quantized(format: str, transparent: bool = False, frames: int = 1) -> Make:
    def make(rng: Rng) -> Odd:
        pictures = [Image.fromarray(values(rng, 3)).resize((50, 40)).quantize(60) for _ in range(frames)]
        options: dict[str, Any] = {"transparency": 3} if transparent else {}
        options |= {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
        table = np.array(pictures[0].getpalette(), np.uint8).reshape(-1, 3)
        index = np.asarray(pictures[0])
        stored = table[index]
        if transparent:
            stored = np.dstack([stored, (index != 3) * np.uint8(255)])
        return Odd(as_bytes(pictures[0], format, **options), stored)

    return make


def bmp_16(rng: Rng) -> Odd:
    raw = values(rng, top=32767)
    h, w = raw.shape
    rows = b"".join(row.astype("<u2").tobytes() + b"\0" * (-2 * w % 4) for row in raw[::-1])
    info = struct.pack("<IiiHHIIiiII", 40, w, h, 1, 16, 0, len(rows), 0, 0, 0, 0)
    return Odd(b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + info + rows, None)


def jpeg_2000_deep(rng: Rng) -> Odd:
    return Odd(as_bytes(Image.fromarray(values(rng, top=65535)), "JPEG2000"), None)


def jpeg_2000_claiming(bits: int) -> Make:
    """A codestream whose header says another depth: only the header is looked at before work."""

    def make(rng: Rng) -> Odd:
        data = bytearray(pillow("JPEG2000", 3, no_jp2=True)(rng).data)
        place = data.index(b"\xff\x4f\xff\x51") + 42
        data[place : place + 9 : 3] = bytes([bits - 1]) * 3
        return Odd(bytes(data), None)

    return make


PROFILES = {
    "sRGB": SRGB,
    "broken": b"nonsense" * 30,
    "empty": b"\0" * 200,
    "cut": SRGB[: len(SRGB) // 2],
    "of Lab": LAB,
    "short": b"x",
}

SAME: dict[str, Make] = {
    **{f"PNG of {n} channels": pillow("PNG", *c) for n, c in enumerate([(), (2,), (3,), (4,)], 1)},
    **{f"PNG of {d} bits": png(d) for d in (1, 2, 4, 8, 16)},
    **{f"PNG of {d} bits, a grey transparent": png(d, key=True) for d in (1, 2, 4, 8)},
    "PNG with a transparent colour": png(8, 3, key=True),
    **{f"PNG with a palette of {d} bits": palette_png(d) for d in (1, 2, 4, 8)},
    **{f"PNG with a palette of {d} bits and alpha": palette_png(d, 2 ** (d - 1) + 1) for d in (1, 2, 4, 8)},
    "PNG with gamma": png(8, 3, others=((b"gAMA", struct.pack(">I", 100_000)),)),
    **{f"PNG with a profile {name}": pillow("PNG", 3, icc_profile=p) for name, p in PROFILES.items()},
    "PNG with alpha and a broken profile": pillow("PNG", 4, icc_profile=PROFILES["broken"]),
    "grey PNG with a profile of colours": pillow("PNG", icc_profile=SRGB),
    **{f"PNG turned {o}": turned("PNG", o) for o in range(1, 9)},
    **{f"TIFF turned {o}": turned("TIFF", o) for o in (3, 6)},
    "PNG with a broken EXIF": pillow("PNG", 3, exif=b"Exif\0\0nonsense"),
    **{
        f"TIFF of {n} channels": tiff(*c, **t)
        for n, c, t in (
            (1, (), NO_TAGS),
            (2, (2,), {"t338": (3, [2])}),
            (3, (3,), {}),
            (4, (4,), {"t338": (3, [2])}),
        )
    },
    **{f"big-endian TIFF of {d} bits": tiff(depth=d, order=">") for d in (8, 16)},
    "TIFF of 16 bits": tiff(depth=16),
    **{f"TIFF of {d} bits where 0 is white": white_is_zero(d) for d in (8, 16)},
    "TIFF with a palette": palette_tiff(True),
    **{f"TIFF compressed by {c}": pillow("TIFF", 3, compression=c) for c in ("tiff_lzw", "tiff_deflate", "packbits")},
    "TIFF with alpha, compressed": pillow("TIFF", 4, compression="tiff_lzw"),
    **{f"BMP of {n} channels": pillow("BMP", *c) for n, c in ((1, ()), (3, (3,)))},
    **{
        f"netpbm {m.decode()} up to {top}": netpbm(m, top, *c)
        for m, top, c in (
            (b"P2", 255, ()),
            (b"P3", 255, (3,)),
            (b"P5", 255, ()),
            (b"P6", 255, (3,)),
            (b"P5", 15, ()),
            (b"P5", 65535, ()),
            (b"P6", 85, (3,)),
        )
    },
    "PBM": bitmap,
    "GIF": quantized("GIF"),
    "GIF of several frames": quantized("GIF", frames=3),
    "GIF with a transparent colour": quantized("GIF", transparent=True),
    **{f"lossless WebP of {n} channels": pillow("WEBP", n, lossless=True, exact=True) for n in (3, 4)},
    **{f"JPEG 2000 of {n} channels": pillow("JPEG2000", *c) for n, c in ((1, ()), (3, (3,)), (4, (4,)))},
    "JPEG": lossy("JPEG", 3),
    "JPEG in grey": lossy("JPEG"),
    "progressive JPEG": lossy("JPEG", 3, progressive=True),
    "JPEG with a broken profile": lossy("JPEG", 3, icc_profile=PROFILES["broken"]),
    "WebP": lossy("WEBP", 3),
    "WebP with alpha": lossy("WEBP", 4),
    "AVIF": lossy("AVIF", 3),
    "AVIF with alpha": lossy("AVIF", 4),
}
"""Kinds whose values an edit gives back outside its region."""

REFUSED: dict[str, Make] = {
    **{f"PNG of {n} channels of 16 bits": png(16, n) for n in (2, 3, 4)},
    "PNG of 16 bits, a grey transparent": png(16, key=True),
    "PNG of 16 bits, a colour transparent": png(16, 3, key=True),
    "PNG with colours by cICP": png(8, 3, others=((b"cICP", bytes([9, 16, 0, 1])),)),
    **{
        f"TIFF of {n} channels of 16 bits": tiff(n, depth=16, kept=False, **t)
        for n, t in ((3, NO_TAGS), (4, {"t338": (3, [2])}))
    },
    "big-endian TIFF of colours of 16 bits": tiff(3, depth=16, order=">", kept=False),
    **{f"premultiplied TIFF of {n} channels": tiff(n, kept=False, t338=(3, [1])) for n in (2, 4)},
    "TIFF with a channel that nobody knows": tiff(4, kept=False, t338=(3, [0])),
    "TIFF of grey and a channel that nobody knows": tiff(2, kept=False, t338=(3, [0])),
    "TIFF with a palette of 16 bits": palette_tiff(False),
    "TIFF of 12 bits": lambda rng: Odd(tiff_bytes(values(rng, top=4095), 1, bits=12), None),
    "TIFF of 16 bits with a sign": tiff(depth=16, kept=False, t339=(3, [2])),
    "TIFF of 8 bits with a sign": tiff(kept=False, t339=(3, [2])),
    **{f"TIFF of {t.__name__}": unlike(t) for t in (np.float32, np.int32)},
    **{f"TIFF of {mode}": converted(mode, "TIFF") for mode in ("CMYK", "YCbCr", "LAB")},
    "JPEG of CMYK": converted("CMYK", "JPEG"),
    "netpbm P6 up to 1000": netpbm(b"P6", 1000, 3),
    "netpbm P6 up to 65535": netpbm(b"P6", 65535, 3),
    "netpbm P6 up to 100": netpbm(b"P6", 100, 3),
    "netpbm P5 up to 4095": netpbm(b"P5", 4094),
    "netpbm Pf": lambda rng: Odd(as_bytes(Image.fromarray(values(rng).astype(np.float32) / 255), "PPM"), None),
    "BMP of 5 bits a channel": bmp_16,
    "JPEG 2000 of 12 bits": jpeg_2000_claiming(12),
    "JPEG 2000 of 4 bits": jpeg_2000_claiming(4),
}
"""Kinds that no PNG can give back."""

KINDS = SAME | REFUSED


EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80")


def mutant(rng: Rng, data: bytes, other: bytes) -> bytes:
    """A file with something wrong: bits, bytes, lengths, cuts, parts of another one."""
    found, n = bytearray(data), len(data)
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(n) if rng.random() < 0.5 else rng.integers(min(n, 200)))  # half of them in the header
        match int(rng.integers(8)):
            case 0:
                found[place : place + 1] = bytes([found[place % len(found)] ^ 1 << int(rng.integers(8))])
            case 1:
                found[place : place + 4] = rng.bytes(4)
            case 2:
                found[place : place + 4] = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80"][
                    rng.integers(4)
                ]
            case 3:
                found[place : place + 2] = EXTREMES[rng.integers(4)][-2:]
            case 4:
                del found[max(place, 8) :]
            case 5:
                found[place:place] = found[place : place + int(rng.integers(1, 99))]
            case 6:
                del found[place : place + int(rng.integers(1, 99))]
            case 7:
                found[place : place + 50] = other[place : place + 50]
        if not found:
            return b""
    return bytes(found)
