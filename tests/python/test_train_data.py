"""The data of python/train: captions, tokens, pictures. Needs no torch."""

import itertools
import json
import pathlib
import sys
import zipfile

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "python"))  # behind site-packages: the installed flashomni stays

from train.captions import COLORS, Background, Grammar, Item, Scene, Tokenizer, load_objects
from train.data import Batches, parse_mix
from train.render import render
from train.sprites import Sprites, prepare

MODEL = ROOT / "models" / "flux-mini"
RED, BLUE = COLORS["red"], COLORS["blue"]


@pytest.fixture(scope="module")
def held_out():
    return json.loads((MODEL / "heldout" / "captions.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(MODEL / "tokenizer")


@pytest.fixture
def sprites(tmp_path):
    """One opaque white sprite and every object of the grammar as a small noisy one."""
    names = ["white"] + [f"{thing.code}_{style}" for thing in load_objects()
                         for style in ("classic", "flat", "3d")]
    pixels = np.random.default_rng(1).integers(0, 99, (len(names), 4, 8, 8), np.uint8)
    pixels[0] = 255
    np.savez(tmp_path / "sprites.npz", names=names, pixels=pixels)
    return Sprites(tmp_path / "sprites.npz")


def plain(*items, color=BLUE):
    return Scene("", Background("plain", (color, color)), items, "")


def test_grammar_repeats_the_captions_the_model_was_judged_on(held_out):
    scenes = list(itertools.islice(Grammar(2024, "test"), 256))
    assert [scene.caption for scene in scenes] == [c["text"] for c in held_out["captions"]]
    for scene, caption in zip(scenes, held_out["captions"]):
        for item, there in zip(scene.items, caption["objects"]):
            assert item.sprite.startswith(there["sprite"]) and item.tint == there.get("tint")
            assert abs(item.x - there["x"]) < 0.006 and abs(item.size - there["size"]) < 0.006
            assert item.stands or abs(item.y - there["y"]) < 0.006


def test_training_never_sees_a_held_out_caption(held_out):
    trained = {scene.caption for scene in itertools.islice(Grammar(7), 4000)}
    assert len(trained) > 3000
    assert not trained & {caption["text"] for caption in held_out["captions"]}


def test_every_word_of_the_grammar_is_in_the_vocabulary(tokenizer):
    for scene in itertools.islice(Grammar(8), 4000):
        assert tokenizer.unknown not in tokenizer(scene.caption), scene.caption
        assert len(scene.caption.split()) <= tokenizer.length


def test_grammar_draws_only_what_it_has_sprites_of():
    drawable = {"1F600_flat", "1F98A_3d", "1F344_3d"}
    for scene in itertools.islice(Grammar(3, drawable=drawable), 20):
        assert {item.sprite for item in scene.items} <= drawable


def test_tokens(tokenizer):
    fox = tokenizer.ids["fox"]
    assert tokenizer("A  FOX, zyzzyva")[:4] == [tokenizer.ids["a"], fox, tokenizer.unknown, 0]
    assert tokenizer("fox " * 40) == [fox] * 32
    assert tokenizer.null == [2] + [0] * 31


def test_same_scene_same_bytes(sprites):
    def draw():
        return [render(scene, sprites, 48, 32) for scene in itertools.islice(Grammar(5), 30)]

    first = draw()
    assert first[0].shape == (3, 32, 48) and first[0].dtype == np.uint8
    assert all((a == b).all() for a, b in zip(first, draw()))


@pytest.mark.parametrize("kind, share", [("plain", 0), ("gradient", 0.5), ("stripes", 0.5),
                                         ("checks", 0.5), ("dots", np.pi * 0.09)])
def test_share_of_the_second_color(sprites, kind, share):
    scene = Scene("", Background(kind, ((255, 0, 0), (0, 255, 0))), (), "")
    red, green, blue = (plane.mean() / 255 for plane in render(scene, sprites, 96, 48))
    assert abs(green - share) < 0.02 and abs(red - 1 + share) < 0.02 and blue == 0


def test_land_has_its_colors_and_stars_only_above_the_horizon(sprites):
    colors = ((0, 0, 0), (0, 0, 0), (200, 100, 50), (200, 100, 50))
    land = Background("land", colors, 0.5, stars=True, dim=0.5, seed=3)
    picture = render(Scene("", land, (), ""), sprites, 64, 64)
    assert (picture[:, 32:] == np.array([100, 50, 25])[:, None, None]).all()
    assert picture[:, :32].max() > 100 and np.median(picture[:, :32]) == 0


@pytest.mark.parametrize("stands", [False, True])
def test_sprite_lies_where_the_scene_says(sprites, stands):
    item = Item("white", 0.25, 0.5, 0.5, stands=stands)
    drawn = (render(plain(item, color=(0, 0, 0)), sprites, 128, 64)[0] / 255.0)
    assert abs(drawn.sum() - 32 * 32) < 40  # half of the shorter side, edges are soft
    y, x = ((drawn * places).sum() / drawn.sum() for places in np.mgrid[0.5:64, 0.5:128])
    assert abs(x - 32) < 0.1 and abs(y - (32 - 0.45 * 32 if stands else 32)) < 0.6


def test_sprite_over_the_edge_is_cut(sprites):
    drawn = render(plain(Item("white", 1.0, 0.0, 0.5), color=(0, 0, 0)), sprites, 64, 64)
    assert drawn[0, 0, 63] == 255 and abs(drawn[0].sum() / 255 - 16 * 16) < 20


def test_tint_leads_from_black_over_the_color_to_white(sprites):
    drawn = render(plain(Item("white", 0.5, 0.5, 0.5, tint="red"), color=BLUE), sprites, 64, 64)
    assert (drawn[:, 32, 32] == 255).all() and tuple(drawn[:, 1, 1]) == BLUE
    sprites.levels[0][0, :3] = round(0.55 * 255)
    drawn = render(plain(Item("white", 0.5, 0.5, 0.5, tint="red")), sprites, 64, 64)
    expected = 0.88 * np.array(RED) + 0.12 * 0.55 * 255
    assert np.abs(drawn[:, 32, 32] - expected).max() < 2


def test_batches_depend_on_seed_and_step_alone(sprites, tokenizer):
    mix = parse_mix("16x16:3:0.5,32x16:2:0.5")
    batches = Batches(sprites, tokenizer, mix, seed=1)
    drawn = {step: batches[step] for step in range(12)}
    shapes = {batch["pixels"].shape for batch in drawn.values()}
    assert shapes == {(3, 3, 16, 16), (2, 3, 16, 32)}
    for step in (7, 2):
        again = Batches(sprites, tokenizer, mix, seed=1)[step]
        assert all((again[key] == drawn[step][key]).all() for key in again)
    other = Batches(sprites, tokenizer, mix, seed=2)
    assert any(other[step]["tokens"].tolist() != drawn[step]["tokens"].tolist()
               for step in range(12))


def test_a_tenth_of_the_captions_is_dropped_in_training_only(sprites, tokenizer):
    mix = parse_mix("8x8:500:1")
    for split, low, high in (("train", 30, 75), ("test", 0, 0)):
        tokens = Batches(sprites, tokenizer, mix, 1, split)[0]["tokens"].tolist()
        assert low <= tokens.count(tokenizer.null) <= high
        assert any(tokenizer.unknown in row for row in tokens) == (split == "train")


def test_wrong_mix_is_told():
    with pytest.raises(SystemExit, match="--mix: 30x32:4:1"):
        parse_mix("30x32:4:1")


def test_prepare_reads_the_sprites_that_ship(tmp_path, held_out):
    pytest.importorskip("PIL", reason="Pillow is not installed")
    out = tmp_path / "sprites.npz"
    assert prepare(MODEL / "heldout", out, 40) == len(held_out["sprites"])
    sprites = Sprites(out)
    assert all(name in sprites for name in held_out["sprites"])
    assert (sprites.levels[0][:, :3] <= sprites.levels[0][:, 3:]).all()  # colours times alpha


def test_prepare_reads_a_folder_and_a_zip_file(tmp_path):
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGBA", (200, 200), (*RED, 255)).save(folder / "1F98A_flat.png")
    Image.new("RGBA", (64, 64), (*BLUE, 0)).save(folder / "1F98A_3d.webp")
    (folder / "README").write_text("not a picture")
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    for source in (folder, tmp_path / "pictures.zip"):
        assert prepare(source, tmp_path / "out.npz") == 2
        sprites = Sprites(tmp_path / "out.npz")
        assert sprites.at("1F98A_flat", 128)[:, 64, 64].tolist() == [*RED, 255]
        assert not sprites.at("1F98A_3d", 128).any()
        sides = {size: sprites.at("1F98A_3d", size).shape[-1] for size in (10, 40, 41, 81, 999)}
        assert sides == {10: 32, 40: 32, 41: 64, 81: 128, 999: 128}
