"use strict";
// Everything shown comes from the document below; a figure carries the JSON pointer it was read from.
const D = JSON.parse(document.getElementById("report").textContent);
const PICTURES = JSON.parse(document.getElementById("pictures").textContent);
const SVG = "http://www.w3.org/2000/svg";
const NONE = "–";

function put(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}
const h = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);

function at(pointer) {
  return pointer.split("/").slice(1).reduce((value, key) => (value === null || value === undefined ? null : value[key]), D);
}

// One figure of the document as text. factor: to the unit shown.
function fig(pointer, { digits = 2, factor = 1, unit = "", sign = false, group = false } = {}) {
  const value = at(pointer);
  if (typeof value !== "number") return h("span", { class: "num", "data-json": pointer }, NONE);
  const shown = value * factor;
  const rounded = Number(shown.toFixed(digits)) === 0 ? 0 : shown; // no minus before a zero
  let text = Math.abs(shown) >= 1e6 ? shown.toExponential(2) : rounded.toFixed(digits);
  if (group && Math.abs(shown) < 1e6) text = Number(text).toLocaleString("en", { minimumFractionDigits: digits });
  if (sign && rounded > 0) text = "+" + text;
  return [h("span", { class: "num", "data-json": pointer, "data-factor": factor }, text), unit];
}

// As many decimals as the interval bears out, at most three.
function decimals(ci) {
  const half = (ci[1] - ci[0]) / 2;
  return half <= 0 ? 3 : Math.max(0, Math.min(3, Math.ceil(-Math.log10(half) - 1e-9)));
}

const state = { theme: null, case: D.cases.length ? D.cases[0].label : "", shown: null };
const contender = (name) => D.contenders.find((c) => c.name === name);
const engineKey = (name) => {
  const c = contender(name);
  return c.engine === "torch" ? "torch " + c.form : c.engine + " " + c.precision;
};
const ENGINES = [...new Set(D.contenders.map((c) => engineKey(c.name)))];
const MODELS = D.models.map((m) => m.name);
const colour = (name) => `var(--c${ENGINES.indexOf(engineKey(name)) % 8})`;

// [index in the document, result] of the case shown, fastest first, of the engines chosen.
function results() {
  return D.results
    .map((result, index) => [index, result])
    .filter(([, r]) => r.case === state.case && r.latency_ms && (!state.shown || state.shown.has(engineKey(r.contender))))
    .sort((a, b) => a[1].latency_ms.p50 - b[1].latency_ms.p50);
}

function linear(domain, range) {
  const k = (range[1] - range[0]) / (domain[1] - domain[0] || 1);
  return (v) => range[0] + (v - domain[0]) * k;
}
function logarithmic(domain, range) {
  const inner = linear(domain.map(Math.log10), range);
  return (v) => inner(Math.log10(v));
}
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= raw);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) found.push(Number(v.toPrecision(12)));
  return found;
}
function logTicks(low, high, most) {
  const all = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    for (const m of [1, 2, 5]) if (m * 10 ** e >= low && m * 10 ** e <= high) all.push(m * 10 ** e);
  }
  const few = all.filter((v) => Number(v.toExponential()[0]) === 1);
  return all.length > most && few.length > 1 ? few : all;
}
const plain = (v) => (v >= 1e4 || (v < 1e-2 && v > 0) ? v.toExponential(0) : String(Number(v.toPrecision(4))));
const pathOf = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

const sections = [];
// A section whose body is drawn again when the case, the engines or the width change.
function section(id, title, text, draw) {
  const body = h("div", { class: "card" });
  document.querySelector("main").append(h("section", { id }, h("h2", {}, title), h("p", { class: "sub" }, text), body));
  sections.push(() => {
    const width = body.clientWidth - parseFloat(getComputedStyle(body).paddingLeft) * 2;
    const kept = body.querySelector(".scroll")?.scrollLeft || 0;
    body.replaceChildren(...[draw(Math.max(240, width))].flat(Infinity).filter((n) => n !== null && n !== undefined));
    const table = body.querySelector(".scroll");
    if (table) table.scrollLeft = kept;
  });
}
const redraw = () => sections.forEach((draw) => draw());

function legend() {
  return h("div", { class: "bar" }, ENGINES.map((key) => {
    const name = D.contenders.find((c) => engineKey(c.name) === key).name;
    const on = !state.shown || state.shown.has(key);
    const toggle = () => {
      const shown = state.shown || new Set(ENGINES);
      if (shown.has(key) && shown.size > 1) shown.delete(key); else shown.add(key);
      state.shown = shown.size === ENGINES.length ? null : shown;
      redraw();
    };
    return h("button", { class: "chip", "aria-pressed": String(on), onclick: toggle },
      h("span", { class: "dot", style: `background:${colour(name)}` }), key);
  }));
}
