"""Reads 8-bit RGB PNG files with the standard library."""
import pathlib
import struct
import zlib


def chunks(path):
    raw = pathlib.Path(path).read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    at, found = 8, []
    while at < len(raw):
        length, kind = struct.unpack_from(">I4s", raw, at)
        body = raw[at + 8:at + 8 + length]
        assert struct.unpack_from(">I", raw, at + 8 + length)[0] == zlib.crc32(kind + body)
        found.append((kind, body))
        at += 12 + length
    return found


def text(path, keyword):
    for kind, body in chunks(path):
        key, _, value = body.partition(b"\0")
        if kind == b"tEXt" and key == keyword.encode():
            return value.decode("latin-1")
    return None


def paeth(a, b, c):
    p = a + b - c
    distances = (abs(p - a), abs(p - b), abs(p - c))
    return (a, b, c)[distances.index(min(distances))]


def unfilter(data, stride, height, channels):
    rows, previous = [], bytearray(stride)
    for y in range(height):
        kind = data[y * (stride + 1)]
        row = bytearray(data[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
        for i in range(stride):
            left = row[i - channels] if i >= channels else 0
            above, corner = previous[i], previous[i - channels] if i >= channels else 0
            row[i] = row[i] + (0, left, above, (left + above) // 2,
                               paeth(left, above, corner))[kind] & 255
        rows.append(bytes(row))
        previous = row
    return rows


def read(path):
    """(width, height, rows of bytes)."""
    parts = chunks(path)
    width, height, depth, colour = struct.unpack_from(">IIBB", parts[0][1])
    assert (depth, colour) == (8, 2)
    data = zlib.decompress(b"".join(body for kind, body in parts if kind == b"IDAT"))
    return width, height, unfilter(data, 3 * width, height, 3)


def read_rgba(path):
    """(width, height, rows of bytes) of an 8-bit RGBA file."""
    parts = chunks(path)
    width, height, depth, colour = struct.unpack_from(">IIBB", parts[0][1])
    assert (depth, colour) == (8, 6)
    data = zlib.decompress(b"".join(body for kind, body in parts if kind == b"IDAT"))
    return width, height, unfilter(data, 4 * width, height, 4)


def write(path, width, height, pixels):
    """`pixels`: RGB bytes, row-major."""
    def chunk(kind, body):
        return (struct.pack(">I", len(body)) + kind + body
                + struct.pack(">I", zlib.crc32(kind + body)))
    rows = b"".join(b"\0" + pixels[3 * y * width:3 * (y + 1) * width] for y in range(height))
    pathlib.Path(path).write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
