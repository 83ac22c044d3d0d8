// words.js -- what the report says in sentences and tables.

function listOf(items, most = 6) {
  const head = items.slice(0, most).join(", ");
  return items.length > most ? `${head} and ${items.length - most} more` : head;
}

function wholeLayers(r, branches = range(r.B)) {
  return range(r.L).filter(l => branches.some(
    b => r.stepsOf(2).some(s => r.action[r.at(s, b, l)] === FORECAST)));
}

function wholeSentence(r) {
  const whole = wholeLayers(r);
  if (!whole.length) {
    return "No layer was reused whole: every layer computed something at every step.";
  }
  const names = layers => listOf(layers.map(l => l + 1), 12) || "none";
  const each = range(r.B).map(b => names(wholeLayers(r, [b])));
  if (whole.length === r.L && each.every(one => one === each[0])) {
    return `All ${r.L} layers were reused whole on dispatch steps: their outputs were forecast.`;
  }
  return `${whole.length} of ${r.L} layers ${whole.length === 1 ? "was" : "were"} reused whole on ` +
    "dispatch steps: " +
    (each.every(one => one === each[0]) ? each[0] :
     `${each[0]} (for the prompt); ${each[1]} (for the negative prompt)`) + ".";
}

function sentences(r) {
  const dense = r.stepsOf(0).length, update = r.stepsOf(1).length, dispatch = r.stepsOf(2).length;
  if (!dispatch) return [`All ${r.S} steps computed everything: nothing was left out.`];
  const lines = [`Of ${r.S} steps, ${dense + update} computed everything (${update} of them, the ` +
    `updates, also chose what to leave out) and ${dispatch} did only what had been chosen.`];
  const thrifty = r.stepsOf(1).map(s => r.work(s)).filter(work => work < .99);
  if (thrifty.length) {
    lines.push("The updates skipped keys too, which the maps below do not show: they did " +
      `${percent(mean(thrifty))} of the multiply-adds of a dense step.`);
  }
  const whole = wholeLayers(r);
  lines.push(wholeSentence(r));
  const heads = range(r.L).flatMap(l => range(r.H).map(h => ({l, h,
    computed: mean(range(r.B).map(b => r.typical(b, l, h).computed)),
    whole: whole.includes(l)}))).filter(one => !one.whole);
  if (heads.length) {
    heads.sort((x, y) => x.computed - y.computed);
    const name = one => `head ${one.h + 1} of layer ${one.l + 1} (${percent(one.computed)})`;
    lines.push(`${whole.length ? "In the other layers, the" : "The"} heads that computed least ` +
      `on dispatch steps: ${listOf(heads.slice(0, 3).map(name))}; most: ` +
      `${listOf(heads.slice(-3).reverse().map(name))}.`);
  }
  for (const fallback of r.fallbacks)
    lines.push(`${fallback.layer < 0 ? "Not as asked for" : "Layer " + (fallback.layer + 1)}: ` +
               `${fallback.reason}.`);
  return lines;
}

function intro() {
  const r = run(), dense = r.dense;
  document.title = `FlashOmni run: ${r.prompt}`;
  $("prompt").textContent = `\u201c${r.prompt}\u201d`;
  $("facts").textContent = `${r.width} \u00d7 ${r.height} pixels, ${r.S} steps, seed ${r.seed}, ` +
    `policy ${r.settings.policy}` + (r.settings.preset ? `, preset ${r.settings.preset}` : "") +
    `, ${r.settings.backend}, ${r.settings.dtype}`;
  const shown = RUNS.length > 1 ? RUNS.map(one => [one.picture, `run ${one.name}`]) :
    [[r.picture, dense ? "this run" : ""]].concat(dense ? [[dense.picture, "computed in full"]] : []);
  $("pictures").innerHTML = shown.map(([png, name]) =>
    `<figure><img alt="${escape(name || r.prompt)}" src="data:image/png;base64,${png}">` +
    `<figcaption>${escape(name)}</figcaption></figure>`).join("");
  const tiles = [[percent(r.macsDone / r.macsTotal), "of all multiply-adds done"],
    [percent(1 - r.attentionSparsity), "of the attention computed"],
    [`${wholeLayers(r).length} of ${r.L}`, "layers reused whole"],
    [`${r.secondsDenoise.toFixed(2)} s`, "to draw"]];
  if (dense) {
    const all = dense.seconds.reduce((x, y) => x + y, 0);
    tiles.push([`${(all / r.secondsDenoise).toFixed(2)}\u00d7`, `as fast as dense (${all.toFixed(2)} s)`],
               [dense.psnr >= 100 ? "equal" : `${dense.psnr.toFixed(1)} dB`, "from the dense picture (PSNR)"]);
  }
  $("tiles").innerHTML = tiles.map(([value, what]) =>
    `<div class="tile"><b>${escape(value)}</b><span>${escape(what)}</span></div>`).join("");
  $("short").innerHTML = sentences(r).map(line => `<li>${escape(line)}</li>`).join("");
  const swatch = (share, name, marked) =>
    `<span><svg viewBox="0 0 20 16">${cell(0, 0, 20, 16, share)}` +
    `${marked ? dot(10, 8, 3) : ""}</svg>${name}</span>`;
  $("legend").innerHTML = swatch({computed: 1, reused: 0}, "computed") +
    swatch({computed: 1, reused: 0}, "computed, and a new choice made", true) +
    swatch({computed: 0, reused: 1}, "reused from earlier steps") +
    swatch({computed: 0, reused: 0}, "left out") + swatch({whole: true}, "whole layer reused");
  $("word-block").textContent = `${r.blockQ} neighbouring tokens, which are treated alike; a token is a ` +
    `square of ${r.width / r.gridWidth} \u00d7 ${r.height / r.gridHeight} pixels, or a word of the prompt.`;
  const rows = [["model", r.settings.model], ["device", r.settings.device], ["guidance (cfg)", r.cfg],
    ["heads, layers", `${r.H}, ${r.L}`], ...Object.entries(r.settings.engine),
    ...Object.entries(r.settings.policy_options)];
  $("settings").innerHTML = rows.map(([name, value]) =>
    `<tr><th scope="row">${escape(name)}</th><td>${escape(value)}</td></tr>`).join("");
}

// run_differences() speaks of a recorded run and counts from 0; the page of two runs, from 1.
function retell(line) {
  const first = line.match(/^step (\d+), branch (\d+), layer (\d+) (.*)$/);
  if (first) {
    const [, step, branch, layer, what] = first;
    return `first other decision: step ${+step + 1}, ${branchName(+branch)}, layer ${+layer + 1} ` +
      what.replace(/ran as (\w+), recorded was (\w+)/, "was $2 in run A, $1 in run B")
        .replace("had other symbols", "left out other blocks");
  }
  return line.replace(/^(.*?) is (.*), recorded was (.*)$/, "$1: $3 in run A, $2 in run B")
    .replace("the recorded one", "run A's");
}

function differenceIntro() {
  if (RUNS.length < 2) return;
  $("difference").hidden = false;
  const list = DATA.differences.length ? DATA.differences :
    ["Nothing: the same decisions gave the same picture."];
  $("difference-list").innerHTML = list.map(line => `<li>${escape(retell(line))}</li>`)
    .join("");
  $("difference-pictures").innerHTML = RUNS.map(r =>
    `<figure><img alt="run ${r.name}" src="data:image/png;base64,${r.picture}"><figcaption>run ` +
    `${r.name}: ${escape(r.settings.preset || r.settings.policy)}, ` +
    `${percent(r.macsDone / r.macsTotal)} of the work, ${r.secondsDenoise.toFixed(2)} s</figcaption>` +
    "</figure>").join("") + '<figure><canvas id="difference-canvas"></canvas><figcaption>their ' +
    "difference, 4 times as strong</figcaption></figure>";
  const images = [...$("difference-pictures").querySelectorAll("img")];
  Promise.all(images.map(image => image.decode())).then(() => {
    const canvas = $("difference-canvas");
    canvas.width = images[0].naturalWidth;
    canvas.height = images[0].naturalHeight;
    const pixels = images.map(image => {
      const one = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
      one.drawImage(image, 0, 0);
      return one.getImageData(0, 0, canvas.width, canvas.height);
    });
    const [p, q] = pixels.map(one => one.data);
    for (let i = 0; i < p.length; i++) p[i] = i % 4 === 3 ? 255 : Math.min(255, 4 * Math.abs(p[i] - q[i]));
    canvas.getContext("2d").putImageData(pixels[0], 0, 0);
  });
}

function say() {
  const r = run(), s = state, share = r.share(s.step, s.branch, s.layer, s.head);
  $("step-out").textContent = `${s.step + 1} of ${r.S}`;
  $("said").textContent = `${KINDS[r.kinds[s.step]]}: ${KIND_TEXT[r.kinds[s.step]]}. ` +
    `Layer ${s.layer + 1}, head ${s.head + 1}: ${describe(share)}.`;
}
