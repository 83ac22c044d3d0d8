// figures.js -- every figure of the report as an SVG.

const rect = (x, y, w, h, css, more = "") =>
  `<rect x="${+x.toFixed(2)}" y="${+y.toFixed(2)}" width="${+Math.max(w, 0).toFixed(2)}" ` +
  `height="${+Math.max(h, 0).toFixed(2)}" class="${css}" ${more}/>`;
const text = (x, y, content, css = "", anchor = "start") =>
  `<text x="${x}" y="${y}" class="${css}" text-anchor="${anchor}">${escape(content)}</text>`;
const line = (x1, y1, x2, y2, css) =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" class="${css}"/>`;

const dot = (x, y, radius) => `<circle cx="${x}" cy="${y}" r="${radius}" class="mark"/>`;

// A cell filled from below: computed, reused, left out.
function cell(x, y, w, h, share) {
  if (share.whole) {
    let lines = "";
    for (let d = 4; d < w + h; d += 6) {
      const x1 = Math.max(0, d - h), x2 = Math.min(w, d);
      lines += line((x + x1).toFixed(1), (y + d - x1).toFixed(1), (x + x2).toFixed(1),
                    (y + d - x2).toFixed(1), "hatch");
    }
    return rect(x, y, w, h, "whole") + lines;
  }
  const computed = h * share.computed, reused = h * share.reused;
  return rect(x, y, w, h, "left") + (reused ? rect(x, y, w, reused, "reused") : "") +
    (computed ? rect(x, y + h - computed, w, computed, "computed") : "");
}

const describe = share => share.whole ? "whole layer reused" :
  `${percent(share.computed)} computed, ${percent(share.reused)} reused, ` +
  `${percent(share.left)} left out`;

function draw(id, width, height, label, body) {
  const figure = $(id);
  const view = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" ` +
    `role="img" aria-label="${escape(label)}">${body}</svg>`;
  const old = figure.querySelector("svg");
  if (old) { old.outerHTML = view; return; }
  figure.innerHTML = view + '<div class="save"><button type="button" data-save="svg" ' +
    'title="save this figure as SVG">SVG</button><button type="button" data-save="png" ' +
    'title="save this figure as PNG">PNG</button></div>';
}

const hit = (x, y, w, h, set, tip) =>
  rect(x, y, w, h, "hit", `data-set='${JSON.stringify(set)}' data-tip="${escape(tip)}"`);

function stepAxis(r, left, y, w) {
  const every = Math.ceil(26 / w);
  return range(r.S).filter(s => s % every === 0)
    .map(s => text(left + (s + .5) * w, y, s + 1, "faint small", "middle")).join("");
}

function kindStrip(r, left, top, w) {
  const css = ["computed", "computed", "reused"];
  return range(r.S).map(s => rect(left + s * w + .5, top, w - 1, 6, css[r.kinds[s]]) +
    (r.kinds[s] === 1 ? dot(left + (s + .5) * w, top + 3, 2) : "")).join("");
}

function drawLayers() {
  const r = run(), left = 78, width = 1160, w = (width - left) / r.S;
  const h = Math.max(9, Math.min(24, 560 / r.L)), top = 14, bottom = top + r.L * h;
  let body = text(left - 10, 10, "layer", "faint small", "end");
  for (let l = 0; l < r.L; l++) {
    if (h >= 11 || l % 2 === 0) {
      body += text(left - 10, top + (l + .72) * h, l + 1, "small", "end");
    }
    for (let s = 0; s < r.S; s++) {
      const at = r.at(s, state.branch, l), share = r.share(s, state.branch, l, -1);
      const x = left + s * w + 1, y = top + l * h + 1;
      body += cell(x, y, w - 2, h - 2, share);
      if (r.action[at] === UPDATE || r.action[at] === REFRESH)
        body += dot(x + w / 2 - 1, y + h / 2 - 1, 2.6);
      body += hit(x, y, w - 2, h - 2, {step: s, layer: l},
        `step ${s + 1} (${KINDS[r.kinds[s]]}), layer ${l + 1}\n${describe(share)}\n` +
        `${(1000 * r.layerSeconds[at]).toFixed(1)} ms`);
    }
  }
  if (r.doubleLayers > 0 && r.doubleLayers < r.L) {
    const y = top + r.doubleLayers * h;
    body += line(0, y, width, y, "border");
    body += text(0, top + 11, "double", "faint small") + text(0, y + 13, "single", "faint small");
  }
  body += rect(left + state.step * w, top + state.layer * h, w, h, "chosen");
  body += kindStrip(r, left, bottom + 4, w) + stepAxis(r, left, bottom + 24, w) +
    text(left - 10, bottom + 24, "step", "faint small", "end");
  draw("fig-layers", width, bottom + 30,
       `Map of ${r.L} layers and ${r.S} steps: share of attention computed`, body);
}

function drawHeads() {
  const r = run(), left = 46, width = 560, w = Math.min(128, (width - left) / r.H);
  const h = Math.max(10, Math.min(24, 560 / r.L)), top = 20;
  const average = state.heads === "mean";
  let body = text(left - 10, 12, "layer", "faint small", "end");
  for (let i = 0; i < r.H; i++) {
    const name = (w > 55 ? "head " : "") + (i + 1);
    if (w > 18 || i % 4 === 0) body += text(left + (i + .5) * w, 12, name, "faint small", "middle");
  }
  for (let l = 0; l < r.L; l++) {
    body += text(left - 10, top + (l + .72) * h, l + 1, "small", "end");
    for (let i = 0; i < r.H; i++) {
      const share = average ? r.typical(state.branch, l, i) :
        r.share(state.step, state.branch, l, i);
      const x = left + i * w + 1, y = top + l * h + 1;
      const room = w > 60 && h > 13 ? 36 : 0;
      body += wideCell(x + room, y, w - 2 - room, h - 2, share);
      if (room) body += text(x + room - 5, y + h * .68, percent(share.computed), "small", "end");
      body += hit(x, y, w - 2, h - 2, {layer: l, head: i},
                  `layer ${l + 1}, head ${i + 1}\n${describe(share)}`);
    }
  }
  body += rect(left + state.head * w, top + state.layer * h, w, h, "chosen");
  draw("fig-heads", width, top + r.L * h + 4, "Map of heads and layers", body);
  $("heads-when").textContent = average ? "as the mean of all dispatch steps" :
    `at step ${state.step + 1}`;
}

// The same as cell(), filled from the left: room for a number.
function wideCell(x, y, w, h, share) {
  if (share.whole) return cell(x, y, w, h, share);
  const computed = w * share.computed, reused = w * share.reused;
  return rect(x, y, w, h, "left") + (reused ? rect(x + computed, y, reused, h, "reused") : "") +
    (computed ? rect(x, y, computed, h, "computed") : "");
}

function drawHeadSteps() {
  const r = run(), left = 58, width = 560, w = (width - left) / r.S;
  const h = Math.max(12, Math.min(72, 288 / r.H)), top = 4, bottom = top + r.H * h;
  let body = "";
  for (let i = 0; i < r.H; i++) {
    const name = (r.H > 12 ? "" : "head ") + (i + 1);
    body += text(left - 8, top + (i + .5) * h + 4, name, "small", "end");
    for (let s = 0; s < r.S; s++) {
      const share = r.share(s, state.branch, state.layer, i);
      const x = left + s * w + .75, y = top + i * h + 1;
      body += cell(x, y, w - 1.5, h - 2, share) +
        hit(x, y, w - 1.5, h - 2, {step: s, head: i},
            `step ${s + 1} (${KINDS[r.kinds[s]]}), head ${i + 1}\n${describe(share)}`);
    }
  }
  body += rect(left + state.step * w, top + state.head * h, w, h, "chosen");
  body += kindStrip(r, left, bottom + 4, w) + stepAxis(r, left, bottom + 24, w) +
    text(left - 8, bottom + 24, "step", "faint small", "end");
  draw("fig-headsteps", width, bottom + 30, `Heads of layer ${state.layer + 1} over the steps`,
       body);
  $("headsteps-title").textContent = `The heads of layer ${state.layer + 1}, step by step`;
}

// The symbols behind the chosen square, and what they mean there.
function chosenSymbols() {
  const r = run(), at = r.at(state.step, state.branch, state.layer);
  return {action: r.action[at], symbols: r.index[at]};
}

function madeAt(symbols) {
  const r = run();
  for (let s = 0; s < r.S; s++) {
    const at = r.at(s, state.branch, state.layer);
    if (r.action[at] === UPDATE && r.index[at] === symbols) return s;
  }
  return -1;
}

function blocksText(action, symbols) {
  const step = state.step + 1, made = symbols < 0 ? 0 : madeAt(symbols) + 1;
  if (symbols < 0) {
    return action === FORECAST ? `At step ${step} this layer was reused whole.` :
      `At step ${step} everything was computed and nothing was chosen: every square is computed.`;
  }
  if (action === UPDATE)
    return `At step ${step} everything was computed. The map is the choice made there, which the ` +
      "steps after it obey.";
  if (action === SPARSE)
    return `Step ${step} computed only the blue squares, as chosen at step ${made}.`;
  const what = action === FORECAST ? "was reused whole: nothing of it was computed" :
    "was computed for later reuse";
  return `At step ${step} this layer ${what}. The map is the choice of step ${made} that led to it.`;
}

// Runs of equal blocks along a row as one path, `width` of a block from `edge`.
function rowPath(edges, y, h, is) {
  let path = "", start = -1;
  const n = edges.length - 1;
  for (let i = 0; i <= n; i++) {
    const on = i < n && is(i);
    if (on && start < 0) start = i;
    if (!on && start >= 0) {
      path += `M${edges[start].toFixed(2)} ${y.toFixed(2)}H${edges[i].toFixed(2)}v${h.toFixed(2)}` +
        `H${edges[start].toFixed(2)}z`;
      start = -1;
    }
  }
  return path;
}

// Borders of blocks on an axis of `size`.
const edgesOf = (blocks, size) => range(blocks.length + 1).map(i => i * size / blocks.length);

function drawBlocks() {
  const r = run(), {action, symbols} = chosenSymbols();
  const left = 46, top = 38, size = 508, Q = r.qBlocks.length, K = r.kvBlocks.length;
  const xs = edgesOf(r.kvBlocks, size).map(x => x + left);
  const ys = edgesOf(r.qBlocks, size).map(y => y + top);
  const paths = {computed: "", left: "", reused: ""};
  for (let q = 0; q < Q; q++) {
    const h = ys[q + 1] - ys[q], y = ys[q];
    const known = symbols >= 0;
    const live = known ? r.live(symbols, state.head, q) : action !== FORECAST;
    const used = k => !known || r.used(symbols, state.head, q, k);
    if (!live) paths.reused += rowPath(xs, y, h, () => true);
    if (live) paths.computed += rowPath(xs, y, h, used);
    if (live) paths.left += rowPath(xs, y, h, k => !used(k));
  }
  let body = Object.entries(paths)
    .map(([css, d]) => d && `<path d="${d}" class="${css}"/>`).join("");
  body += borders(r, xs, ys, left, top, size);
  if (state.q >= 0) body += rect(left, ys[state.q], size, ys[state.q + 1] - ys[state.q], "chosen");
  body += rect(left, top, size, size, "hit", 'data-map="blocks"');
  draw("fig-blocks", 560, top + size + 6, `Blocks of layer ${state.layer + 1}, head ${state.head + 1}`,
       body);
  $("blocks-title").textContent =
    `What head ${state.head + 1} of layer ${state.layer + 1} looked at, step ${state.step + 1}`;
  $("blocks-text").textContent = blocksText(action, symbols) +
    " Rows ask (queries), columns answer (keys); click a row to see it in the picture.";
}

function borders(r, xs, ys, left, top, size) {
  let body = "";
  const draws = (blocks, edges, place) => {
    let from = 0;
    for (let i = 1; i <= blocks.length; i++) {
      if (i < blocks.length && blocks[i].text === blocks[from].text) continue;
      place(edges[from], edges[i], blocks[from].text ? "text" : "picture", i < blocks.length);
      from = i;
    }
  };
  draws(r.kvBlocks, xs, (a, b, name, more) => {
    body += text(name === "text" ? a : (a + b) / 2, top - 8, name, "small",
                 name === "text" ? "start" : "middle");
    if (more) body += line(b, top - 4, b, top + size, "border");
  });
  draws(r.qBlocks, ys, (a, b, name, more) => {
    const y = name === "text" ? a + 9 : (a + b) / 2 + 4;
    body += text(left - 5, y, name, "small", "end");
    if (more) body += line(left - 4, b, left + size, b, "border");
  });
  return body + text(left + size, top - 24, "key blocks \u2192", "faint small", "end") +
    text(0, top - 24, "query blocks \u2193", "faint small");
}

// What is reused, visible on any picture: darkened, with amber stripes.
const veil = path => '<defs><pattern id="weave" width="9" height="9" patternUnits="userSpaceOnUse" ' +
  'patternTransform="rotate(45)"><line x1="0" y1="0" x2="0" y2="9" class="thread"/></pattern></defs>' +
  `<path d="${path}" class="veil"/><path d="${path}" class="weave"/>`;

function drawWhere() {
  const r = run(), {symbols, action} = chosenSymbols();
  const width = 560, scale = width / r.width, height = r.height * scale;
  const unit = width / r.gridWidth;
  const path = blocks => blocks.flatMap(block => r.strips(block))
    .map(([x, y, n]) => `M${(x * unit).toFixed(2)} ${(y * unit).toFixed(2)}h${(n * unit).toFixed(2)}` +
      `v${unit.toFixed(2)}h${(-n * unit).toFixed(2)}z`).join("");
  let body = `<image href="data:image/png;base64,${r.picture}" width="${width}" ` +
    `height="${height}" style="image-rendering:auto"/>`, note;
  const image = r.qBlocks.filter(block => !block.text);
  const known = symbols >= 0;
  const liveAt = q => known ? r.live(symbols, state.head, q) : action !== FORECAST;
  if (state.q >= 0 && known) {
    const block = r.qBlocks[state.q], live = liveAt(state.q);
    const unused = r.kvBlocks.filter((kv, k) => !kv.text &&
      !(live && r.used(symbols, state.head, state.q, k)));
    body += live ? `<path d="${path(unused)}" class="dim"/>` : block.text ? "" : veil(path([block]));
    if (!block.text) body += `<path d="${path([block])}" class="outline" style="stroke-width:2.5"/>`;
    const name = block.text ? "a text block" : "the outlined block";
    const keys = r.kvBlocks.filter((kv, k) => r.used(symbols, state.head, state.q, k)).length;
    note = live ? `Query block ${state.q + 1}, ${name}, looks at ${keys} of ${r.kvBlocks.length} key ` +
      "blocks; what it leaves out is dark." :
      `Query block ${state.q + 1}, ${name}, is reused: nothing is looked at.`;
    note += " Esc goes back.";
  } else {
    const cached = image.filter(block => !liveAt(r.qBlocks.indexOf(block)));
    body += veil(path(cached));
    note = !known ? `Every part of the picture was ${action === FORECAST ? "reused" : "computed"} ` +
      "here." :
      `The chosen head ${action === SPARSE ? "reuses" : "may reuse"} ${cached.length} of ` +
      `${image.length} blocks of the picture (dark, striped) and computes the rest. Click the picture to ` +
      "see what a block looks at.";
  }
  body += rect(0, 0, width, height, "hit", 'data-map="where"');
  draw("fig-where", width, height, "The picture with its reused blocks", body);
  $("where-text").textContent = note;
}

// Lines over the steps; `series` of {values, css, name}.
function chart(id, label, series, top, format) {
  const r = RUNS[0], width = 560, height = 214, left = 46, foot = 34, head = 26;
  const steps = Math.max(...RUNS.map(one => one.S)), w = (width - left - 4) / steps;
  const y = value => head + (height - foot - head) * (1 - value / top);
  let body = range(5).map(i => top * i / 4).map(value =>
    line(left, y(value), width, y(value), "axis") +
    text(left - 6, y(value) + 4, format(value), "faint small", "end")).join("");
  let x = left;
  for (const one of series) {
    const points = one.values.flatMap((v, s) => [s, s + 1].map(
      at => `${(left + at * w).toFixed(1)},${y(v).toFixed(1)}`));
    if (one.bars) {
      body += one.values.map((v, s) => rect(left + s * w + 1.5, y(v), w - 3, y(0) - y(v),
                                            one.css[run().kinds[s]])).join("");
    } else {
      body += `<polyline points="${points.join(" ")}" class="line ${one.css}"/>`;
    }
    body += (one.bars ? rect(x, 5, 14, 9, one.css[0]) :
             `<line x1="${x}" y1="10" x2="${x + 18}" y2="10" class="line ${one.css}"/>`) +
      text(x + 23, 14, one.name, "small");
    x += 40 + one.name.length * 6.1;
  }
  for (let s = 0; s < steps; s++) {
    const tip = `step ${s + 1} (${KINDS[run().kinds[s]]})\n` + series.filter(one => s in one.values)
      .map(one => `${one.name}: ${one.exact(one.values[s])}`).join("\n");
    body += hit(left + s * w, head, w, height - foot - head, {step: s}, tip);
  }
  body += rect(left + state.step * w, head, w, height - foot - head, "chosen",
               'style="stroke-width:1.5"');
  body += kindStrip(run(), left, height - foot + 5, w) + stepAxis(r, left, height - 6, w) +
    text(left - 6, height - 6, "step", "faint small", "end");
  draw(id, width, height, label, body);
}

function drawWork() {
  const series = RUNS.flatMap((r, i) => {
    const css = i ? "rival" : "", who = RUNS.length > 1 ? ` ${r.name}` : "";
    return [{values: range(r.S).map(s => r.density(s)), css, name: "attention" + who, exact: percent},
            {values: range(r.S).map(s => r.work(s)), css: css + " second",
             name: RUNS.length > 1 ? "all work" + who : "all multiply-adds", exact: percent}];
  });
  const most = Math.max(1, ...series.flatMap(one => one.values));
  chart("fig-work", "Share computed at each step", series, most > 1.02 ? most : 1, percent);
}

function drawTime() {
  const r = run(), ms = x => `${(1000 * x).toFixed(1)} ms`;
  const series = [{values: r.seconds, css: ["computed", "computed", "reused"], bars: true,
                   name: RUNS.length > 1 ? `run ${r.name}` : "this run", exact: ms}];
  if (r.dense) {
    series.push({values: r.dense.seconds, css: "second", name: "the same drawn dense", exact: ms});
  }
  const rival = RUNS[1 - state.run];
  if (rival) {
    series.push({values: rival.seconds, css: "rival", name: `run ${rival.name}`, exact: ms});
  }
  const most = Math.max(...series.flatMap(one => one.values));
  const unit = 10 ** Math.floor(Math.log10(most)), top = Math.ceil(most / unit * 2) / 2 * unit;
  chart("fig-time", "Milliseconds of each step", series, top,
        v => 1000 * v >= 10 ? (1000 * v).toFixed(0) : (1000 * v).toFixed(1));
  $("time-text").textContent = "Milliseconds; blue bars are steps that computed everything, amber " +
    "ones left work out." + (r.dense ? ` All ${r.S} steps: ${r.secondsDenoise.toFixed(2)} s; dense ` +
    `${r.dense.seconds.reduce((a, b) => a + b).toFixed(2)} s.` : "");
}

function drawDifference() {
  const [a, b] = RUNS, steps = Math.min(a.S, b.S), layers = Math.min(a.L, b.L);
  const left = 46, width = 1160, w = (width - left) / steps, h = Math.max(8, Math.min(20, 420 / layers));
  let body = "";
  for (let l = 0; l < layers; l++) {
    body += text(left - 10, (l + .75) * h, l + 1, "small", "end");
    for (let s = 0; s < steps; s++) {
      const branch = Math.min(state.branch, a.B - 1, b.B - 1);
      const of = r => r.share(s, branch, l, -1).computed;
      const more = of(a) - of(b), x = left + s * w + 1, y = l * h + 1;
      body += rect(x, y, w - 2, h - 2, "left") +
        rect(x, y, w - 2, h - 2, more > 0 ? "computed" : "other",
             `style="opacity:${Math.abs(more).toFixed(3)}"`) +
        hit(x, y, w - 2, h - 2, {step: s, layer: l}, `step ${s + 1}, layer ${l + 1}\n` +
            `run A computed ${percent(of(a))}, run B ${percent(of(b))}`);
    }
  }
  body += stepAxis(a, left, layers * h + 16, w);
  draw("fig-difference", width, layers * h + 22, "Attention computed, run A minus run B", body);
}
