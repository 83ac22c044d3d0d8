"use strict";
// run.js -- the recorded runs of a report, as apps/cli/report.cpp writes them, and their shares.

const [UPDATE, SPARSE, FORECAST, REFRESH] = [1, 2, 3, 4];  // what a layer did
const KINDS = ["dense", "update", "dispatch"];
const KIND_TEXT = ["everything computed",
                   "everything computed, then a new choice of what to leave out",
                   "only what the choice says"];

const $ = id => document.getElementById(id);
const percent = x => (x > 0 && x < .005 ? "<1" : Math.round(100 * x)) + " %";
const escape = text => String(text).replace(/[&<>"]/g,
  c => ({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})[c]);
const range = n => Array.from({length: n}, (_, i) => i);
const mean = values => values.length ? values.reduce((a, b) => a + b, 0) / values.length : 0;

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes.buffer;
}

class Run {
  constructor(json, name) {
    Object.assign(this, json);
    this.name = name;
    this.S = this.kinds.length;
    this.B = this.branches;
    this.L = this.layers;
    this.H = this.heads;
    this.action = new Uint8Array(bytesOf(json.action));
    this.index = new Int32Array(bytesOf(json.symbols));
    this.layerSeconds = new Float32Array(bytesOf(json.layerSeconds));
    this.macs = new Float32Array(bytesOf(json.layerMacs));
    this.cacheWords = new Uint32Array(bytesOf(json.cacheWords));
    this.skipWords = new Uint32Array(bytesOf(json.skipWords));
    this.order = new Int32Array(bytesOf(json.order));
    this.qBlocks = this.cut(this.blockQ);
    this.kvBlocks = this.cut(this.blockKv);
    this.headWords = Math.ceil(this.H / 32);
    this.kvWords = Math.ceil(this.kvBlocks.length / 32);
    this.tokens = this.segments.reduce((sum, s) => sum + s[1], 0);
    this.shares = new Map();
  }
  // Blocks restart at every segment.
  cut(size) {
    const blocks = [];
    let start = 0, image = 0;
    for (const [kind, count] of this.segments) {
      for (let at = 0; at < count; at += size) {
        const length = Math.min(size, count - at), text = kind === "text";
        blocks.push({start: start + at, count: length, text, image: text ? -1 : image + at});
      }
      start += count;
      if (kind !== "text") image += count;
    }
    return blocks;
  }
  at(step, branch, layer) { return (step * this.B + branch) * this.L + layer; }
  live(symbols, head, q) {
    const word = (symbols * this.qBlocks.length + q) * this.headWords + (head >> 5);
    return this.cacheWords[word] >>> (head & 31) & 1;
  }
  used(symbols, head, q, kv) {
    const row = (symbols * this.H + head) * this.qBlocks.length + q;
    return this.skipWords[row * this.kvWords + (kv >> 5)] >>> (kv & 31) & 1;
  }
  // Shares of the token pairs of one head under `symbols`.
  headShare(symbols, head) {
    const key = symbols * this.H + head;
    if (this.shares.has(key)) return this.shares.get(key);
    let computed = 0, reused = 0;
    this.qBlocks.forEach((block, q) => {
      if (!this.live(symbols, head, q)) { reused += block.count * this.tokens; return; }
      let keys = 0;
      this.kvBlocks.forEach((kv, i) => { if (this.used(symbols, head, q, i)) keys += kv.count; });
      computed += block.count * keys;
    });
    const pairs = this.tokens * this.tokens;
    const share = {computed: computed / pairs, reused: reused / pairs,
                   left: 1 - (computed + reused) / pairs, whole: false};
    this.shares.set(key, share);
    return share;
  }
  // What one head, or all of a layer (head -1), did at a step.
  share(step, branch, layer, head) {
    const at = this.at(step, branch, layer), action = this.action[at];
    if (action === FORECAST) return {computed: 0, reused: 1, left: 0, whole: true};
    if (action !== SPARSE) return {computed: 1, reused: 0, left: 0, whole: false};
    const heads = head < 0 ? range(this.H) : [head];
    const each = heads.map(h => this.headShare(this.index[at], h));
    return {computed: mean(each.map(s => s.computed)), reused: mean(each.map(s => s.reused)),
            left: mean(each.map(s => s.left)), whole: false};
  }
  stepsOf(kind) { return range(this.S).filter(step => this.kinds[step] === kind); }
  // The mean over dispatch steps.
  typical(branch, layer, head) {
    const all = this.stepsOf(2).map(step => this.share(step, branch, layer, head));
    if (!all.length) return {computed: 1, reused: 0, left: 0, whole: false};
    return {computed: mean(all.map(s => s.computed)), reused: mean(all.map(s => s.reused)),
            left: mean(all.map(s => s.left)), whole: all.every(s => s.whole)};
  }
  // Multiply-adds against the dense first step.
  work(step) {
    let done = 0, dense = 0;
    for (let i = 0; i < this.B * this.L; i++) {
      done += this.macs[step * this.B * this.L + i];
      dense += this.macs[i];
    }
    return dense ? done / dense : 1;
  }
  density(step) {
    return mean(range(this.B).flatMap(
      b => range(this.L).map(l => this.share(step, b, l, -1).computed)));
  }
  // Rows of tokens of a block as rectangles [column, row, width] of the picture's token grid.
  strips(block) {
    const strips = [];
    for (let i = 0; i < block.count; i++) {
      const token = this.order[block.image + i];
      const column = token % this.gridWidth, row = Math.floor(token / this.gridWidth);
      const last = strips[strips.length - 1];
      if (last && last[1] === row && last[0] + last[2] === column) last[2]++;
      else strips.push([column, row, 1]);
    }
    return strips;
  }
}

const DATA = JSON.parse($("data").textContent);
const RUNS = DATA.runs.map((json, i) => new Run(json, "AB"[i]));
const state = {run: 0, step: 0, branch: 0, layer: 0, head: 0, q: -1, heads: "mean"};
const run = () => RUNS[state.run];
const branchName = branch => run().B === 1 ? "prompt" : ["prompt", "negative prompt"][branch];
