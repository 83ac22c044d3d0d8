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


def read(path):
    """(width, height, rows of bytes)."""
    parts = chunks(path)
    width, height, depth, colour = struct.unpack_from(">IIBB", parts[0][1])
    assert (depth, colour) == (8, 2)
    data = zlib.decompress(b"".join(body for kind, body in parts if kind == b"IDAT"))
    stride, rows = 3 * width, []
    previous = bytearray(stride)
    for y in range(height):
        kind = data[y * (stride + 1)]
        row = bytearray(data[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
        for i in range(stride):
            left = row[i - 3] if i >= 3 else 0
            above, corner = previous[i], previous[i - 3] if i >= 3 else 0
            row[i] = row[i] + (0, left, above, (left + above) // 2,
                               paeth(left, above, corner))[kind] & 255
        rows.append(bytes(row))
        previous = row
    return width, height, rows
