import json
import unittest

import png
from support import ROOT, ToolTest

HELDOUT = ROOT / "models/flux-mini/heldout"
SIDE, SPRITE, A_ROW = 128, 40, 24


class Judge(ToolTest):
    @classmethod
    def setUpClass(cls):
        cls.list = json.loads((HELDOUT / "captions.json").read_text())
        # The first rows of the sheet are enough, and quick to read.
        cls.rows = png.read_rgba(HELDOUT / "sprites.png")[2]
        # Of known styles and plain colours, so that a sprite can be pasted as it is.
        cls.plain = [caption for caption in cls.list["captions"]
                     if all("_" in o["sprite"] and "tint" not in o for o in caption["objects"])]

    def paste(self, pixels, name, thing):
        """The sprite `name` where and as large as `thing` says, nearest neighbours."""
        index = self.list["sprites"].index(name)
        top, left = index // A_ROW * SPRITE, index % A_ROW * SPRITE
        side = round(thing["size"] * SIDE)
        x0, y0 = round(thing["x"] * SIDE - side / 2), round(thing["y"] * SIDE - side / 2)
        for y in range(max(0, -y0), min(side, SIDE - y0)):
            row = self.rows[top + y * SPRITE // side]
            for x in range(max(0, -x0), min(side, SIDE - x0)):
                at = 4 * (left + x * SPRITE // side)
                alpha, place = row[at + 3], 3 * ((y0 + y) * SIDE + x0 + x)
                for c in range(3):
                    pixels[place + c] = (row[at + c] * alpha
                                         + pixels[place + c] * (255 - alpha)) // 255

    def scene(self, name, caption, first=None):
        """A picture of the caption on blue, with another sprite for its first object if given."""
        pixels = bytearray(bytes((90, 140, 190)) * SIDE * SIDE)
        for i, thing in enumerate(caption["objects"]):
            self.paste(pixels, first if first and i == 0 else thing["sprite"], thing)
        png.write(self.folder / name, SIDE, SIDE, bytes(pixels))
        return self.folder / name

    def judge(self, picture, caption, *arguments):
        return self.run_json("judge", picture, "-p", caption["text"], *arguments)["pictures"][0]

    def test_drawn_captions_are_right_and_swapped_ones_wrong(self):
        for caption in self.plain[:4]:
            with self.subTest(caption["text"]):
                result = self.judge(self.scene("right.png", caption), caption)
                self.assertTrue(result["right"], result)
                self.assertEqual(len(result["objects"]), len(caption["objects"]))
                other = next(name for name in self.list["sprites"][200:]
                             if name.split("_")[1] == caption["objects"][0]["sprite"].split("_")[1]
                             and name not in str(caption))
                result = self.judge(self.scene("wrong.png", caption, other), caption)
                self.assertFalse(result["right"], result)
                self.assertFalse(result["objects"][0]["found"])

    def test_an_empty_picture_shows_nothing(self):
        png.write(self.folder / "a.png", SIDE, SIDE, bytes((90, 140, 190)) * SIDE * SIDE)
        result = self.judge(self.folder / "a.png", self.plain[0])
        self.assertFalse(any(thing["found"] for thing in result["objects"]))

    def test_several_pictures_take_the_captions_in_order(self):
        index = self.list["captions"].index(self.plain[0])
        picture = self.scene("a.png", self.plain[0])
        done = self.run_ok("judge", picture, picture, "--first", index, "-v")
        self.assertIn(f'{picture}: right, "{self.plain[0]["text"]}"', done.stdout)
        self.assertRegex(done.stdout, r"found: correlation 0\.\d\d, \d of 20 distractors")
        self.assertTrue(done.stdout.endswith(" of 2 right.\n"))

    def test_bad_usage_is_one_sentence(self):
        picture = self.scene("a.png", self.plain[0])
        self.assert_fails(2, "is none of the model's held-out captions", "judge", picture, "-p",
                          "a cat")
        self.assert_fails(2, "there are only 256 captions", "judge", picture, "--first", "256")
        self.assert_fails(2, "File does not exist", "judge", "/nowhere.png")
        (self.folder / "b.png").write_text("no picture")
        self.assert_fails(1, "b.png: ", "judge", self.folder / "b.png")


if __name__ == "__main__":
    unittest.main()
