"""`flashomni inspect`: the page as a file, and as headless Chromium draws it.

What the page must show is worked out here from the recorded file; the page's own code is not used.
"""
import html
import json
import os
import re
import shutil
import subprocess
import unittest
import xml.etree.ElementTree

import png
from support import ToolTest, read_safetensors

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PROMPT = "a snail </script> in the bottom left on a white background in classic style"
RUN = ("-p", PROMPT, "-W", "64", "-H", "64", "--steps", "8", "-s", "3", "--warmup", "3",
       "--interval", "3", "--block", "32", "--sparsity-policy", "flashomni", "--tau-q", "0.6",
       "--tau-kv", "0.2", "--layer-cache", "0.5")
STEPS, LAYERS, HEADS, BRANCHES = 8, 12, 4, 2
TOKENS = [32] * 9  # one block of text, eight of the picture
COMPUTED, REUSED, LEFT, WHOLE = (0x35, 0x72, 0xb8), (0xea, 0xb0, 0x4f), (0xe9, 0xe6, 0xdf), \
    (0xc9, 0x80, 0x1a)
DISPATCH, SPARSE, FORECAST = 2, 2, 3


class Recorded:
    """A run file, read plainly."""

    def __init__(self, path):
        self.tensors = read_safetensors(path)
        self.kinds = self.tensors["step.kind"][2]
        self.actions = self.tensors["layer.action"][2]

    def at(self, step, layer, branch=0):
        return (step * BRANCHES + branch) * LAYERS + layer

    def symbols(self, step, layer):
        return self.tensors["layer.symbols"][2][self.at(step, layer)]

    def is_live(self, symbols, head, q):
        return self.tensors["symbols.cache"][2][symbols * len(TOKENS) + q] >> head & 1

    def used(self, symbols, head, q, kv):
        row = (symbols * HEADS + head) * len(TOKENS) + q
        return self.tensors["symbols.skip"][2][row] >> kv & 1

    def shares(self, step, layer, head):
        """(computed, reused) shares of the token pairs."""
        symbols, blocks = self.symbols(step, layer), range(len(TOKENS))
        computed = sum(self.used(symbols, head, q, kv) for q in blocks for kv in blocks)
        reused = sum(1 - self.is_live(symbols, head, q) for q in blocks) * len(TOKENS)
        return computed / len(TOKENS)**2, reused / len(TOKENS)**2


def near(pixel, color, tolerance=6):
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, color))


class Inspect(ToolTest):
    """The files of one class share the runs: drawing is what takes time."""

    @classmethod
    def setUpClass(cls):
        import tempfile
        cls.shared = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.shared.cleanup)
        cls.runs = {}

    def recorded(self, name, command="generate", *arguments):
        path = f"{self.shared.name}/{name}.safetensors"
        if name not in self.runs:
            self.run_ok(command, *RUN, *arguments, "--record", path, "-o", self.folder / "a.png")
            self.runs[name] = path
        return path

    def report(self, name="sparse", command="compare", options=("--layer-cache", "0"), extra=()):
        page = self.folder / f"{name}.html"
        self.run_ok("inspect", self.recorded(name, command, *options), "-o", page, *extra)
        return page


class Page(Inspect):
    def test_needs_nothing_else_and_holds_the_run(self):
        page = self.report()
        text = page.read_text(encoding="utf-8")
        self.assertLess(len(text), 1 << 20)
        without_names = text.replace("http://www.w3.org/2000/svg", "")
        self.assertNotRegex(without_names, r"https?:|src=\"(?!data:)|@import|url\((?!#)")
        body = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
        run = json.loads(body.group(1))["runs"][0]
        self.assertEqual(run["prompt"], PROMPT)
        self.assertEqual(run["kinds"], Recorded(self.recorded("sparse")).kinds)
        self.assertGreater(run["dense"]["psnr"], 10)
        outside = re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.S)
        self.assertNotIn("/*", outside)

    def test_what_cannot_be_read_is_one_sentence(self):
        out = ("-o", self.folder / "r.html")
        self.assert_fails(1, "cannot open", "inspect", self.folder / "none", *out)
        damaged = self.folder / "damaged"
        damaged.write_bytes(b"\x08\0\0\0\0\0\0\0{      }")
        self.assert_fails(1, "this is no recorded run", "inspect", damaged, *out)
        self.assertEqual([path.name for path in self.folder.iterdir()], ["damaged"])
        self.assert_fails(1, "cannot write /nowhere/r.html", "inspect", self.recorded("sparse",
                          "compare", "--layer-cache", "0"), "-o", "/nowhere/r.html")


@unittest.skipUnless(CHROMIUM, "there is no chromium to draw the page")
class Drawn(Inspect):
    def chromium(self, page, where, script, *arguments):
        """Runs the page with `script` after its own."""
        copy = self.folder / "probe.html"
        text = page.read_text(encoding="utf-8")
        copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"),
                        encoding="utf-8")
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--hide-scrollbars", f"--user-data-dir={self.folder / 'profile'}",
             "--virtual-time-budget=4000", *arguments, f"file://{copy}#{where}"],
            capture_output=True, text=True, timeout=120,
            env={**os.environ, "HOME": str(self.folder)})
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def dom(self, page, where="", script=""):
        text = self.chromium(page, where, script, "--dump-dom")
        self.assertIn('data-ready="1"', text)  # the page's script ran to its end
        return text

    def pixels(self, page, figure, where, width, height):
        """The figure alone, as large as its own coordinates."""
        shot = self.folder / "shot.png"
        script = ("document.body.style.cssText='margin:0;padding:0;max-width:none';"
                  f"const alone = document.getElementById('{figure}'); alone.style.margin = 0;"
                  "document.body.replaceChildren(alone)")
        self.chromium(page, where, script, f"--window-size={width},{height}",
                      f"--screenshot={shot}")
        size = png.read(shot)
        self.assertEqual(size[:2], (width, height))
        return lambda x, y: tuple(size[2][int(y)][3 * int(x):3 * int(x) + 3])

    def test_says_in_words_and_numbers_what_was_left_out(self):
        page, run = self.report(), Recorded(self.recorded("sparse"))
        step = run.kinds.index(DISPATCH)
        dom = self.dom(page, f"step={step}&layer=5&head=2&branch=0")
        words = html.unescape(re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", dom, flags=re.S))
        self.assertIn(PROMPT, words)
        self.assertIn(f"{STEPS} steps, ", words)
        self.assertIn("No layer was reused whole", words)
        computed, reused = (round(100 * share) for share in run.shares(step, 5, 2))
        self.assertRegex(words,
                         rf"Layer 6, head 3: {computed} % computed, {reused} % reused, \d+ %")
        for figure, cells in (("layers", STEPS * LAYERS), ("heads", LAYERS * HEADS),
                              ("headsteps", STEPS * HEADS)):
            body = re.search(rf'<figure id="fig-{figure}">(.*?)</figure>', dom, re.S).group(1)
            self.assertEqual(len(re.findall(r'class="hit"', body)), cells, figure)

    def test_names_the_layers_that_were_reused_whole(self):
        page = self.report("whole", "generate", ("--layer-cache", "0.55"))
        run = Recorded(self.recorded("whole"))
        whole = [[layer + 1 for layer in range(LAYERS) if any(
            run.actions[run.at(step, layer, branch)] == FORECAST for step in range(STEPS))]
            for branch in range(BRANCHES)]
        union = set(whole[0] + whole[1])
        self.assertGreater(len(union), 0)
        self.assertLess(len(union), LAYERS)
        dom = self.dom(page)
        self.assertIn(f"<b>{len(union)} of {LAYERS}</b>", dom)
        names = [", ".join(map(str, layers)) or "none" for layers in whole]
        says = names[0] if names[0] == names[1] else \
            f"{names[0]} (for the prompt); {names[1]} (for the negative prompt)"
        verb = "was" if len(union) == 1 else "were"
        self.assertIn(f"{verb} reused whole on dispatch steps: {says}.", dom)
        pixel = self.pixels(page, "fig-layers", "branch=0", 1160, 400)
        width = (1160 - 78) / STEPS
        for step in range(STEPS):
            for layer in range(LAYERS):
                hatched = sum(near(pixel(78 + step * width + i, 14 + (layer + .5) * 24), WHOLE)
                              for i in range(4, int(width) - 4))
                is_whole = run.actions[run.at(step, layer)] == FORECAST
                self.assertEqual(hatched > 20, is_whole, (step, layer, hatched))

    def test_tells_that_updates_skipped_keys(self):
        run, page = self.folder / "run.safetensors", self.folder / "updates.html"
        self.run_ok("generate", "-p", "a snail", "-W", "64", "-H", "64", "--steps", "8", "--preset",
                    "off", "--sparsity-policy", "topk+taylorseer", "--keep", "0.4", "--warmup", "3",
                    "--interval", "3", "--block", "32", "--record", run, "-o",
                    self.folder / "a.png")
        self.run_ok("inspect", run, "-o", page)
        macs, per_step = read_safetensors(run)["layer.macs"][2], BRANCHES * LAYERS
        update = Recorded(run).kinds.index(1)
        share = sum(macs[update * per_step:][:per_step]) / sum(macs[:per_step])
        self.assertLess(share, .99)
        self.assertIn(f"they did {round(100 * share)} % of the multiply-adds", self.dom(page))
        self.assertNotRegex(self.dom(self.report()), r"they did \d+ %")

    def test_the_map_of_layers_is_filled_as_far_as_computed(self):
        page, run = self.report(), Recorded(self.recorded("sparse"))
        pixel = self.pixels(page, "fig-layers", "step=0&layer=0&branch=0", 1160, 400)
        width = (1160 - 78) / STEPS
        for step in range(STEPS):
            for layer in range(LAYERS):
                x = 78 + (step + .2) * width
                column = [pixel(x, 14 + layer * 24 + 1 + i) for i in range(22)]
                filled = sum(near(p, COMPUTED) for p in column) / 22
                reused = sum(near(p, REUSED) for p in column) / 22
                expected = (1, 0)
                if run.actions[run.at(step, layer)] == SPARSE:
                    shares = [run.shares(step, layer, head) for head in range(HEADS)]
                    expected = [sum(s[i] for s in shares) / HEADS for i in (0, 1)]
                self.assertAlmostEqual(filled, expected[0], delta=.11, msg=(step, layer))
                self.assertAlmostEqual(reused, expected[1], delta=.11, msg=(step, layer))

    def test_the_map_of_blocks_is_that_of_the_symbols(self):
        page, run = self.report(), Recorded(self.recorded("sparse"))
        step = run.kinds.index(DISPATCH)
        for layer, head in ((2, 0), (9, 3)):
            pixel = self.pixels(page, "fig-blocks",
                                f"step={step}&layer={layer}&head={head}&branch=0", 560, 600)
            symbols, unit = run.symbols(step, layer), 508 / len(TOKENS)
            for q in range(len(TOKENS)):
                for kv in range(len(TOKENS)):
                    color = REUSED
                    if run.is_live(symbols, head, q):
                        color = COMPUTED if run.used(symbols, head, q, kv) else LEFT
                    seen = pixel(46 + (kv + .5) * unit, 38 + (q + .5) * unit)
                    self.assertTrue(near(seen, color), (layer, head, q, kv, seen))

    def test_reused_blocks_darken_their_part_of_the_picture(self):
        page, run = self.report(), Recorded(self.recorded("sparse"))
        step = run.kinds.index(DISPATCH)
        head = 1
        sparse = self.pixels(page, "fig-where", f"step={step}&layer=4&head={head}", 560, 560)
        full = self.pixels(page, "fig-where", f"step=0&layer=4&head={head}", 560, 560)
        symbols = run.symbols(step, 4)
        # 32 tokens are two rows of the 16 x 16 grid: strips of 70 pixels here.
        for block in range(8):
            points = [(x, block * 70 + y) for x in range(20, 540, 40) for y in (25, 35, 45)]
            changed = sum(not near(sparse(*p), full(*p)) for p in points)
            reused = not run.is_live(symbols, head, block + 1)
            self.assertEqual(changed > len(points) // 2, reused, (block, changed))

    def test_two_runs_are_compared(self):
        other = self.recorded("whole", "generate", "--layer-cache", "0.55")
        page = self.report(extra=("--against", other))
        dom = html.unescape(self.dom(page))
        self.assertIn("<li>layer-cache: 0 in run A, 0.55 in run B</li>", dom)
        self.assertRegex(dom, r"<li>first other decision: step \d, prompt, layer \d+ ")
        self.assertRegex(dom, r'<section class="wide" id="difference">')
        self.assertIn("run B", dom)
        canvas = self.dom(page, "", "setTimeout(() => { const c = $('difference-canvas'); "
                          "document.title = [...c.getContext('2d').getImageData(0, 0, c.width, "
                          "c.height).data].reduce((a, b) => a + b) / c.width / c.height }, 2000)")
        self.assertGreater(float(re.search(r"<title>([\d.]+)</title>", canvas).group(1)), 255)

    def test_keys_and_clicks_move_the_selection(self):
        page = self.report()
        for keys, before, after in (
                (("ArrowRight", "ArrowDown", ".", "j", "t"),
                 "step=2&layer=3&head=1&branch=0&theme=light",
                 "step=3&layer=4&head=2&branch=0&run=0&q=0&theme=dark"),
                (("ArrowLeft", "ArrowUp", ",", "b", "k", "t"),
                 "step=2&layer=3&head=1&branch=0&q=1&theme=dark",
                 "step=1&layer=2&head=0&branch=1&run=0&q=0"),
                (("b", "b", "Escape"), "step=2&layer=3&head=1&branch=0&q=4&theme=light",
                 "step=2&layer=3&head=1&branch=0&run=0&q=-1")):
            press = "".join("document.body.dispatchEvent(new KeyboardEvent('keydown', "
                            f"{{key: '{key}', bubbles: true}}));" for key in keys)
            dom = self.dom(page, before, press + "document.title = location.hash")
            self.assertIn(f"<title>#{html.escape(after)}</title>", dom)
        click = ("document.querySelector('#fig-layers .hit').dispatchEvent(new MouseEvent('click', "
                 "{bubbles: true})); document.title = location.hash")
        dom = self.dom(page, "step=2&head=1", click)
        self.assertIn("<title>#step=0&amp;layer=0&amp;head=1", dom)

    def test_dark_and_light_are_dark_and_light(self):
        page = self.report()
        for theme, is_dark in (("dark", True), ("light", False)):
            pixel = self.pixels(page, "fig-work", f"theme={theme}", 560, 240)
            self.assertEqual(sum(pixel(300, 233)) < 3 * 128, is_dark)

    def test_an_exported_figure_stands_alone(self):
        page = self.report()
        script = ("window.download = (blob, name) => blob.text().then(text => {"
                  "const saved = document.createElement('pre'); saved.id = 'saved';"
                  "saved.textContent = text; document.body.append(saved);"
                  "document.title = name; });"
                  "document.querySelector('#fig-blocks [data-save=svg]').click()")
        dom = self.dom(page, "", script)
        self.assertIn("<title>blocks.svg</title>", dom)
        svg = html.unescape(re.search(r'<pre id="saved">(.*?)</pre>', dom, re.S).group(1))
        root = xml.etree.ElementTree.fromstring(svg)
        self.assertEqual((root.get("width"), root.get("height")), ("560", "552"))
        self.assertNotIn("var(", svg)
        self.assertIn(".computed { fill: #3572b8", svg)
        script = script.replace("blob.text().then(text", "Promise.resolve(blob.type).then(text")
        dom = self.dom(page, "", script.replace("data-save=svg", "data-save=png"))
        self.assertIn("<title>blocks.png</title>", dom)
        for figure in re.findall(r'<figure id="fig-\w+">.*?</figure>', dom, re.S):
            is_hidden = "<svg" not in figure  # that of two runs
            self.assertEqual(re.findall(r'data-save="(\w+)"', figure),
                             [] if is_hidden else ["svg", "png"])
        self.assertIn('<pre id="saved">image/png</pre>', dom)


if __name__ == "__main__":
    unittest.main()
