"""The grammar that writes a caption and the scene that it describes.

Coordinates are shares of the picture's width and height, sizes shares of its shorter side. With a
seed, `Grammar` repeats the captions that the shipped model was trained and judged on, so the order
in which random numbers are drawn is part of it.
"""

import dataclasses
import hashlib
import json
import pathlib
import random
import re

STYLES = ("classic", "flat", "3d")
COLORS = {
    "red": (222, 48, 48), "orange": (245, 140, 30), "yellow": (250, 210, 50),
    "green": (60, 165, 75), "blue": (45, 105, 215), "light blue": (140, 205, 245),
    "purple": (135, 70, 190), "pink": (245, 150, 190), "brown": (130, 85, 50),
    "black": (25, 25, 28), "white": (250, 250, 250), "gray": (140, 140, 145),
}
TINTS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
COLOR_WORDS = {word for color in COLORS for word in color.split()}
PATTERNS = {"stripes": "striped", "checks": "checkered", "dots": "dotted"}
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
PLACES = (("in the top left", 0.25, 0.25), ("in the top right", 0.75, 0.25),
          ("in the bottom left", 0.25, 0.75), ("in the bottom right", 0.75, 0.75),
          ("in the center", 0.5, 0.5))
RELATIONS = {
    "to the left of": ((0.26, 0.5), (0.74, 0.5)), "to the right of": ((0.74, 0.5), (0.26, 0.5)),
    "above": ((0.5, 0.26), (0.5, 0.74)), "below": ((0.5, 0.74), (0.5, 0.26)),
    "and": ((0.26, 0.5), (0.74, 0.5)),
}
# Per count: the places, and the size before a random factor.
GROUPS = {
    2: (((0.27, 0.5), (0.73, 0.5)), 0.42),
    3: (((0.5, 0.27), (0.27, 0.72), (0.73, 0.72)), 0.4),
    4: (((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)), 0.4),
    5: (((0.24, 0.24), (0.76, 0.24), (0.5, 0.5), (0.24, 0.76), (0.76, 0.76)), 0.31),
    6: (((0.2, 0.3), (0.5, 0.3), (0.8, 0.3), (0.2, 0.7), (0.5, 0.7), (0.8, 0.7)), 0.27),
}
# Phrase: sky at the top and the horizon, ground at the horizon and the bottom, the horizon's y.
LANDS = {
    "in a green field": ((95, 170, 240), (200, 230, 250), (120, 195, 80), (70, 150, 60), 0.62),
    "on a sandy beach": ((80, 180, 240), (190, 235, 250), (245, 220, 160), (225, 190, 120), 0.66),
    "in the snow": ((150, 185, 220), (225, 235, 245), (250, 252, 255), (215, 228, 242), 0.62),
    "in the desert": ((250, 190, 110), (255, 225, 170), (230, 175, 95), (200, 140, 70), 0.62),
    "in the sea": ((110, 190, 245), (205, 235, 250), (40, 120, 200), (20, 80, 160), 0.5),
    "on the road": ((120, 185, 240), (210, 232, 250), (95, 98, 105), (70, 72, 78), 0.66),
    "on the moon": ((8, 8, 22), (25, 25, 50), (165, 165, 170), (120, 120, 128), 0.64),
}
# Time of day: the sky's colours, if it has its own, and how bright the ground is.
DAYTIMES = {"": (None, 1.0), "at sunset": (((90, 60, 140), (255, 150, 80)), 0.8),
            "at night": (((8, 12, 40), (40, 50, 105)), 0.5)}
DAY_SKY = ("sun", "cloud", "rainbow", "bird", "airplane", "balloon", "helicopter", "kite",
           "butterfly", "crescent moon", "star", "rocket", "flying saucer", "eagle", "parachute",
           "honeybee", "cloud with rain")
NIGHT_SKY = ("crescent moon", "full moon", "star", "rocket", "flying saucer", "owl", "bat", "comet",
             "ringed planet", "fireworks")
BOATS = ("sailboat", "ship", "canoe", "passenger ship", "motor boat")
SEA = BOATS + ("whale", "dolphin", "duck", "shark", "swan", "fish", "octopus", "turtle")
GROUND_GROUPS = ("animal-mammal", "animal-bird", "animal-reptile", "animal-amphibian",
                 "plant-other", "plant-flower", "place-building", "transport-ground")


@dataclasses.dataclass(frozen=True)
class Name:
    singular: str
    article: str  # "" where there is none: "grapes", "milk"
    plural: str | None  # None: not counted

    def __str__(self):
        return f"{self.article} {self.singular}".strip()


@dataclasses.dataclass(frozen=True)
class Object:
    code: str  # code point, as in the names of the sprites
    label: str
    group: str
    names: tuple


@dataclasses.dataclass(frozen=True)
class Item:
    """A sprite in a scene, around (x, y), or standing on y if it stands."""

    sprite: str  # <code point>_<style>
    x: float
    y: float
    size: float
    tint: str | None = None
    stands: bool = False


@dataclasses.dataclass(frozen=True)
class Background:
    """Two colours of a plain, gradient, stripes, checks or dots kind, or four of a land."""

    kind: str
    colors: tuple
    horizon: float = 0.0
    stars: bool = False
    dim: float = 1.0  # brightness of the ground
    road: bool = False
    sea: bool = False
    seed: int = 0  # of the stars


@dataclasses.dataclass(frozen=True)
class Scene:
    caption: str
    background: Background
    items: tuple  # the farthest first
    kind: str


def load_objects(path=pathlib.Path(__file__).parent / "objects.json"):
    rows = json.loads(path.read_text())["objects"]
    return [Object(code, label, group, tuple(Name(*name) for name in names))
            for code, label, group, names in rows]


def with_article(text):
    return ("an " if text[0] in "aeio" or text.startswith("umbrella") else "a ") + text


def is_held_out(*composition):
    """A tenth of all compositions is never trained on: those are for tests."""
    return int(hashlib.md5("|".join(composition).encode()).hexdigest(), 16) % 10 == 0


class Grammar:
    """An endless iterator of scenes. `drawable`: the sprites there are, None for all."""

    def __init__(self, seed, split="train", drawable=None):
        self.random = random.Random(seed)
        self.split = split
        self.drawable = drawable
        self.objects = load_objects()
        self.by_label = {thing.label: thing for thing in self.objects}
        self.ground = [thing.label for thing in self.objects
                       if thing.group.startswith(GROUND_GROUPS)
                       and "face" not in thing.label and "feather" not in thing.label]

    def __iter__(self):
        return self

    def __next__(self):
        while True:
            scene = self._attempt()
            if scene and (self.drawable is None
                          or all(item.sprite in self.drawable for item in scene.items)):
                return scene

    def _attempt(self):
        style = self.random.choice(STYLES)
        share = self.random.random()
        make = (self._single if share < 0.38 else self._pair if share < 0.58
                else self._group if share < 0.70 else self._landscape)
        made = make(style)
        if made is None:
            return None
        caption, background, items = made
        share = self.random.random()
        if share < 0.55:
            caption = f"{caption} in {style} style"
        elif share < 0.85:
            caption = f"a {style} picture of {caption}"
        return Scene(caption, background, tuple(items), make.__name__.strip("_"))

    def _in_split(self, *composition):
        return is_held_out(*composition) == (self.split == "test")

    def _pick(self, labels=None):
        if labels:
            return self.by_label[self.random.choice(labels)]
        return self.random.choice(self.objects)

    def _name(self, thing):
        if len(thing.names) == 1 or self.random.random() < 0.7:
            return thing.names[0]
        return self.random.choice(thing.names)

    def _near(self, value, distance):
        return value + self.random.uniform(-distance, distance)

    def _wants_tint(self, share, thing, name):
        return (self.random.random() < share and thing.group not in ("heart", "geometric")
                and not COLOR_WORDS & set(name.singular.split()))

    def _background(self):
        """A background, and the words for it; 12 % of the captions leave them out."""
        share = self.random.random()
        if share < 0.55:
            color = self.random.choice(list(COLORS))
            background = Background("plain", (COLORS[color], COLORS[color]))
            words = f"{color} background"
        else:
            first, second = self.random.sample(list(COLORS), 2)
            kind = self.random.choice(list(PATTERNS)) if share < 0.75 else "gradient"
            background = Background(kind, (COLORS[first], COLORS[second]))
            words = (f"{first} to {second} gradient background" if kind == "gradient"
                     else f"{PATTERNS[kind]} {first} and {second} background")
        return background, "" if self.random.random() < 0.12 else f" on {with_article(words)}"

    def _single(self, style):
        thing = self._pick()
        name = self._name(thing)
        tint = None
        if self._wants_tint(0.25, thing, name):
            tint = self.random.choice(TINTS)
            if not self._in_split(tint, thing.label):
                return None
        elif self.split == "test":
            return None
        share, uniform = self.random.random(), self.random.uniform
        size, word = ((uniform(0.3, 0.42), "small ") if share < 0.17
                      else (uniform(0.8, 0.95), "big ") if share < 0.32
                      else (uniform(0.5, 0.8), ""))
        background, words = self._background()
        place, x, y = "", self._near(0.5, 0.04), self._near(0.5, 0.04)
        if word == "small ":
            place, x, y = self.random.choice(PLACES)
            place = f" {place}"
        text = word + (f"{tint} " if tint else "") + name.singular
        text = with_article(text) if name.article else text
        return (text + place + words, background,
                [Item(f"{thing.code}_{style}", x, y, size, tint)])

    def _pair(self, style):
        pair = self._pick(), self._pick()
        if pair[0] is pair[1] or not self._in_split(pair[0].label, pair[1].label):
            return None
        names = [self._name(thing) for thing in pair]
        sizes = [self.random.uniform(0.36, 0.47) for _ in pair]
        relation = self.random.choice(list(RELATIONS))
        background, words = self._background()
        items = [Item(f"{thing.code}_{style}", self._near(x, 0.03), self._near(y, 0.03), size)
                 for thing, (x, y), size in zip(pair, RELATIONS[relation], sizes)]
        return f"{names[0]} {relation} {names[1]}{words}", background, items

    def _group(self, style):
        thing = self._pick()
        name = self._name(thing)
        count = self.random.randint(2, 6)
        if not name.plural or not self._in_split(str(count), thing.label):
            return None
        background, words = self._background()
        tint = self.random.choice(TINTS) if self._wants_tint(0.15, thing, name) else None
        places, size = GROUPS[count]
        size *= self.random.uniform(0.9, 1.05)
        items = [Item(f"{thing.code}_{style}", self._near(x, 0.02), self._near(y, 0.02), size, tint)
                 for x, y in places]
        text = (f"{tint} " if tint else "") + name.plural
        return f"{NUMBERS[count]} {text}{words}", background, items

    def _landscape(self, style):
        land = self.random.choice(list(LANDS))
        *colors, horizon = LANDS[land]
        sea, moon = land == "in the sea", land == "on the moon"
        time = "" if moon else self.random.choice(["", "", "at sunset", "at night"])
        sky, dim = DAYTIMES[time]
        dark = moon or time == "at night"
        background = Background(
            "land", (*(sky or colors[:2]), *colors[2:]), horizon, stars=dark, dim=dim,
            road=land == "on the road", sea=sea, seed=self.random.randrange(1 << 14))
        things = self._distinct(self.random.choice([1, 1, 2, 2, 3]), SEA if sea else self.ground)
        if not self._in_split(land, *(thing.label for thing in things)):
            return None
        names, items = self._standing(things, style, horizon, sea)
        text = (names[0] if len(names) == 1 else f"{names[0]} and {names[1]}" if len(names) == 2
                else f"{names[0]}, {names[1]} and {names[2]}")
        boats = sea and all(thing.label in BOATS for thing in things)
        text += f" {'on the sea' if boats else land}" + (f" {time}" if time else "")
        if self.random.random() < 0.6:
            names, above = self._in_the_sky(style, NIGHT_SKY if dark else DAY_SKY, things)
            text += f" with {' and '.join(names)} in the sky"
            items = above + items
        return text, background, items

    def _distinct(self, count, labels, taken=()):
        things = []
        while len(things) < count:
            thing = self._pick(labels)
            if thing not in things and thing not in taken:
                things.append(thing)
        return things

    def _standing(self, things, style, horizon, sea):
        uniform = self.random.uniform
        count = len(things)
        # Here and for the size below all three are drawn, one is used.
        places = ([self._near(0.5, 0.12)], [0.28, 0.72], [0.19, 0.5, 0.81])[count - 1]
        names, items = [], []
        for thing, x in zip(things, places):
            size = (uniform(0.42, 0.58), uniform(0.34, 0.44), uniform(0.26, 0.32))[count - 1]
            base = horizon + uniform(0.1, 0.22 if sea else 0.2)
            items.append(Item(f"{thing.code}_{style}", self._near(x, 0.02), base, size,
                              stands=True))
            names.append(str(self._name(thing)))
        return names, items

    def _in_the_sky(self, style, labels, taken):
        count = self.random.choice([1, 1, 2])
        things = self._distinct(count, labels, taken)
        places = [self.random.choice([0.2, 0.5, 0.8])] if count == 1 else [0.22, 0.78]
        names, items = [], []
        for thing, x in zip(things, places):
            items.insert(0, Item(f"{thing.code}_{style}", self._near(x, 0.03),
                                 self.random.uniform(0.13, 0.2), self.random.uniform(0.19, 0.27)))
            names.append(str(self._name(thing)))
        return names, items


class Tokenizer:
    """Words to ids, by the rule of tokenizer/tokenizer_config.json."""

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        rule = json.loads((folder / "tokenizer_config.json").read_text())
        self.words = json.loads((folder / "vocab.json").read_text())
        self.ids = {word: index for index, word in enumerate(self.words)}
        self.length, self.pad, self.unknown = rule["max_length"], rule["pad"], rule["unk"]
        self.null = self._padded(rule["null_prompt"])

    def __call__(self, caption):
        words = re.sub(r"[^a-z0-9'-]+", " ", caption.lower()).split()
        return self._padded([self.ids.get(word, self.unknown) for word in words[:self.length]])

    def _padded(self, ids):
        return ids + [self.pad] * (self.length - len(ids))
