"""Scenes to pixels, in numpy: the same scene and sprites give the same bytes.

Drawn at twice the resolution and averaged. Where a line is wavy or a star stands depends on the
scene alone, not on the picture's size.
"""

import numpy as np

from .captions import COLORS

SUPERSAMPLING = 2
CELLS = 6  # of a pattern along the shorter side
# Tinting keeps light and shade: luminance below the middle leads from black to the tint, above it
# from the tint to white; a little of the own colour stays.
LUMINANCE, MIDDLE, TINT_SHARE = (0.3, 0.59, 0.11), 0.55, 0.88


def render(scene, sprites, width, height):
    """Returns [3, height, width] bytes."""
    canvas = np.clip(paint(scene.background, width, height), 0, 1)
    for item in scene.items:
        place(canvas, item, sprites)
    rows = canvas[:, ::2] + canvas[:, 1::2]
    picture = (rows[..., ::2] + rows[..., 1::2]) / SUPERSAMPLING**2
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def paint(background, width, height):
    """The background alone, supersampled: [3, rows, columns], about [0, 1]."""
    y, x = (((np.arange(n * SUPERSAMPLING, dtype=np.float32) + 0.5) / (n * SUPERSAMPLING))
            for n in (height, width))
    y = y[:, None]
    cells = CELLS / min(width, height)
    row, column = y * height * cells, x * width * cells
    colors = np.array(background.colors, np.float32)[..., None, None] / 255
    if background.kind == "land":
        return paint_land(background, colors, y, row, column)
    mixed = {
        "plain": lambda: 0 * y,
        "gradient": lambda: y,
        "stripes": lambda: np.floor(column) % 2,
        "checks": lambda: (np.floor(column) + np.floor(row)) % 2,
        "dots": lambda: ((column % 1 - 0.5) ** 2 + (row % 1 - 0.5) ** 2 < 0.09),
    }[background.kind]()
    mixed = np.broadcast_to(mixed, (y.size, x.size)).astype(np.float32)
    return colors[0] * (1 - mixed) + colors[1] * mixed


def paint_land(land, colors, y, row, column):
    sky_top, sky_bottom, ground_top, ground_bottom = colors
    horizon = np.float32(land.horizon)
    sky = sky_top + (sky_bottom - sky_top) * np.clip(y / horizon, 0, 1)
    depth = np.clip((y - horizon) / (1 - horizon), 0, 1)
    ground = (ground_top + (ground_bottom - ground_top) * depth) * np.float32(land.dim)
    if land.stars:
        sky = sky + 0.8 * stars(row / CELLS * 10, column / CELLS * 10, land.seed)
    if land.road:
        dashes = (np.abs(y - 0.86) < 0.012) & (column / CELLS * 5 % 1 < 0.55)
        ground = np.where(dashes, np.float32(0.92 * land.dim), ground)
    if land.sea:
        waves = np.sin((y - horizon) * 90 + 3 * np.sin(column * 2))
        ground = ground + np.float32(0.055) * waves
    return np.where((y > horizon) & (column > 0), ground, sky)


def stars(row, column, seed):
    """A soft point at a place of its own in two of five cells."""
    cell_y, cell_x = np.floor(row), np.floor(column)
    phase = cell_x.astype(np.float64) * 12.9898 + cell_y * 78.233 + seed % 97 * 3.719
    hashed = np.sin(phase) * 437.585 % 1
    along, down = (0.2 + 0.6 * (hashed * factor % 1) for factor in (91.7, 57.3))
    distance = (column - cell_x - along) ** 2 + (row - cell_y - down) ** 2
    return (np.exp(-120 * distance) * (hashed < 0.4)).astype(np.float32)


def place(canvas, item, sprites):
    """Draws one sprite over the canvas."""
    height, width = canvas.shape[1:]
    size = item.size * min(width, height)
    # What stands does so a little below its bottom edge: sprites have a margin.
    y = item.y - 0.45 * size / height if item.stands else item.y
    sprite = sprites.at(item.sprite, size).astype(np.float32) / 255
    side = sprite.shape[1]
    sprite = np.pad(sprite, ((0, 0), (1, 1), (1, 1)))  # nothing outside: the edge is soft
    rows, above, share = bilinear(y * height, size, height, side)
    share = share[:, None]
    sprite = sprite[:, above] * (1 - share) + sprite[:, above + 1] * share
    columns, left, share = bilinear(item.x * width, size, width, side)
    sprite = sprite[..., left] * (1 - share) + sprite[..., left + 1] * share
    rgb, alpha = sprite[:3], sprite[3]
    if item.tint:
        rgb = tinted(rgb, alpha, np.array(COLORS[item.tint], np.float32)[:, None, None] / 255)
    region = canvas[:, rows, columns]
    region *= 1 - alpha
    region += rgb


def bilinear(center, size, extent, side):
    """Which of `extent` pixels a sprite of `side` samples touches; for each of them the sample
    before it, counted from the margin of one, and the share of the sample behind that."""
    first = max(0, int(np.floor(center - size / 2 - size / side)))
    last = max(first, min(extent, int(np.ceil(center + size / 2 + size / side))))
    pixels = np.arange(first, last) + 0.5
    position = np.clip(((pixels - center) / size + 0.5) * side + 0.5, 0, side + 1)
    before = np.minimum(position.astype(np.int64), side)
    return slice(first, last), before, (position - before).astype(np.float32)


def tinted(rgb, alpha, color):
    light = sum(share * plane for share, plane in zip(LUMINANCE, rgb)) / np.maximum(alpha, 1e-3)
    shaded = np.where(light < MIDDLE, color * (light / MIDDLE),
                      color + (1 - color) * ((light - MIDDLE) / (1 - MIDDLE)))
    return TINT_SHARE * alpha * shaded + (1 - TINT_SHARE) * rgb
