// page.js -- selection by mouse, keys and address; export of figures; the start.

function radios(id, name, labels, chosen) {
  $(id).innerHTML = labels.map((label, i) => `<label><input type="radio" name="${name}" value="${i}"` +
    `${i === chosen ? " checked" : ""}>${escape(label)}</label>`).join("");
}

function controls() {
  const r = run();
  $("step").max = r.S - 1;
  $("step").value = state.step;
  const options = (n, name) => range(n).map(i => `<option value="${i}">${name}${i + 1}</option>`).join("");
  $("layer").innerHTML = options(r.L, "");
  $("head").innerHTML = options(r.H, "");
  $("layer").value = state.layer;
  $("head").value = state.head;
  radios("pick-branch", "branch", range(r.B).map(branchName), state.branch);
  radios("heads-mode", "heads", ["mean of dispatch steps", "this step"], state.heads === "mean" ? 0 : 1);
  $("pick-run").hidden = RUNS.length < 2;
  radios("pick-run", "run", RUNS.map(one => "run " + one.name), state.run);
}

const clamp = (x, n) => Math.min(Math.max(x, 0), n - 1);

function choose(change) {
  const other = "run" in change && change.run !== state.run;
  Object.assign(state, change);
  const r = run();
  state.step = clamp(state.step, r.S);
  state.branch = clamp(state.branch, r.B);
  state.layer = clamp(state.layer, r.L);
  state.head = clamp(state.head, r.H);
  state.q = Math.min(state.q, r.qBlocks.length - 1);
  render(other);
}

function render(everything) {
  const focus = document.activeElement, inBar = focus && focus.name;
  if (everything) intro();
  controls();
  if (inBar) document.querySelector(`input[name="${focus.name}"]:checked`)?.focus();
  say();
  drawLayers();
  drawHeads();
  drawHeadSteps();
  drawBlocks();
  drawWhere();
  drawWork();
  drawTime();
  if (RUNS.length > 1) drawDifference();
  const keep = ["step", "layer", "head", "branch", "run", "q"].map(key => `${key}=${state[key]}`);
  if (document.documentElement.classList.contains("dark")) keep.push("theme=dark");
  try {
    history.replaceState(null, "", "#" + keep.join("&"));
  } catch {
    // Some browsers allow only so many changes of the address in a while.
  }
}

function setTheme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  $("theme").textContent = dark ? "Light" : "Dark";
}

// Where a press on a figure with a map of its own falls: a query block, or -1.
function blockAt(kind, x, y) {
  const r = run();
  if (kind === "blocks") return clamp(Math.floor(y * r.qBlocks.length), r.qBlocks.length);
  const column = clamp(Math.floor(x * r.gridWidth), r.gridWidth);
  const row = clamp(Math.floor(y * r.gridHeight), r.gridHeight);
  const place = r.order.indexOf(row * r.gridWidth + column);
  return r.qBlocks.findIndex(b => !b.text && place >= b.image && place < b.image + b.count);
}

function mapTip(kind, x, y) {
  const r = run(), {symbols, action} = chosenSymbols(), q = blockAt(kind, x, y);
  const row = r.qBlocks[q].text ? `text block ${q + 1}` : `picture block ${q + 1}`;
  if (symbols < 0) return `${row}: ${action === FORECAST ? "reused" : "computed"}`;
  const live = r.live(symbols, state.head, q);
  if (kind === "where" || !live) return `${row}: ${live ? "computed" : "reused"}`;
  const k = clamp(Math.floor(x * r.kvBlocks.length), r.kvBlocks.length);
  const key = r.kvBlocks[k].text ? "text" : "picture";
  return `${row} on ${key} block ${k + 1}: ${r.used(symbols, state.head, q, k) ? "computed" : "left out"}`;
}

const inside = (event, box) => [(event.clientX - box.left) / box.width,
                                (event.clientY - box.top) / box.height];

document.addEventListener("click", event => {
  const set = event.target.closest("[data-set]"), map = event.target.closest("[data-map]");
  const save = event.target.closest("[data-save]");
  if (set) choose(JSON.parse(set.dataset.set));
  if (save) exportFigure(save.closest("figure"), save.dataset.save);
  if (!map) return;
  const q = blockAt(map.dataset.map, ...inside(event, map.getBoundingClientRect()));
  choose({q: q === state.q ? -1 : q});
});

document.addEventListener("pointermove", event => {
  const tip = $("tip"), target = event.target.closest?.("[data-tip],[data-map]");
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip ||
    mapTip(target.dataset.map, ...inside(event, target.getBoundingClientRect()));
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.min(event.clientX + 14, innerWidth - box.width - 8) + "px";
  tip.style.top = (event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 :
                   event.clientY + 18) + "px";
});

document.addEventListener("input", event => {
  const {id, name, value} = event.target;
  if (["step", "layer", "head"].includes(id)) choose({[id]: +value});
  else if (name === "branch" || name === "run") choose({[name]: +value});
  else if (name === "heads") choose({heads: +value ? "step" : "mean"});
});

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^(INPUT|SELECT)$/.test(event.target.tagName) && /^Arrow/.test(event.key)) return;
  const s = state, blocks = run().qBlocks.length;
  const keys = {
    ArrowLeft: {step: s.step - 1}, ArrowRight: {step: s.step + 1},
    ArrowUp: {layer: s.layer - 1}, ArrowDown: {layer: s.layer + 1},
    ",": {head: s.head - 1}, ".": {head: s.head + 1}, b: {branch: (s.branch + 1) % run().B},
    r: {run: (s.run + 1) % RUNS.length}, Escape: {q: -1},
    j: {q: Math.min(s.q + 1, blocks - 1)}, k: {q: Math.max(s.q - 1, -1)},
  };
  if (event.key === "t") $("theme").click();
  if (!(event.key in keys)) return;
  event.preventDefault();
  choose(keys[event.key]);
});

$("theme").addEventListener("click", () => {
  setTheme(!document.documentElement.classList.contains("dark"));
  render(false);
});

function standalone(svg) {
  const copy = svg.cloneNode(true), view = svg.viewBox.baseVal;
  const style = getComputedStyle(document.documentElement);
  const rules = $("figure-style").textContent.replace(/:root[^{]*\{[^}]*\}/g, "")
    .replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  copy.querySelectorAll(".hit").forEach(node => node.remove());
  copy.setAttribute("width", view.width);
  copy.setAttribute("height", view.height);
  const paper = style.getPropertyValue("--paper").trim();
  copy.insertAdjacentHTML("afterbegin",
    `<style>${rules}</style><rect width="100%" height="100%" fill="${paper}"/>`);
  return new XMLSerializer().serializeToString(copy);
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function exportFigure(figure, kind) {
  const name = `${figure.id.replace("fig-", "")}.${kind}`, svg = figure.querySelector("svg");
  const blob = new Blob([standalone(svg)], {type: "image/svg+xml"});
  if (kind === "svg") { download(blob, name); return; }
  const image = new Image(), canvas = document.createElement("canvas");
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(await blob.text());
  await image.decode();
  canvas.width = 2 * image.width;
  canvas.height = 2 * image.height;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob(png => download(png, name), "image/png");
}

function firstView() {
  const r = RUNS[0], dispatch = r.stepsOf(2);
  // The square that says most: a dispatch step, and the layer and head nearest to half computed.
  state.step = dispatch.length ? dispatch[dispatch.length >> 1] : 0;
  const far = (l, h) => Math.abs(.5 - r.share(state.step, 0, l, h).computed);
  const best = range(r.L).flatMap(l => range(r.H).map(h => [far(l, h), l, h]))
    .sort((x, y) => x[0] - y[0])[0];
  [, state.layer, state.head] = best;
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const key of ["step", "layer", "head", "branch", "run", "q"]) {
    if (wanted.has(key) && Number.isInteger(+wanted.get(key))) state[key] = +wanted.get(key);
  }
  state.run = clamp(state.run, RUNS.length);
  setTheme(wanted.has("theme") ? wanted.get("theme") === "dark" :
           matchMedia("(prefers-color-scheme: dark)").matches);
}

firstView();
intro();
differenceIntro();
choose({});
document.documentElement.dataset.ready = "1";
