"use strict";
function theme(name) {
  state.theme = name;
  document.documentElement.dataset.theme = name;
}

function top_() {
  const all = D.results.map((r, i) => [i, r]).filter(([, r]) => r.latency_ms && r.case === D.cases[0].label);
  const tiles = [];
  const tile = (what, big, who) => tiles.push(h("div", { class: "tile" }, h("div", { class: "what" }, what), h("div", { class: "big" }, big), h("div", { class: "who" }, who)));
  if (all.length) {
    const [i, r] = all.reduce((a, b) => (b[1].latency_ms.p50 < a[1].latency_ms.p50 ? b : a));
    const digits = decimals(r.latency_ms.ci95);
    tile(`fastest at ${r.case}`, [fig(`/results/${i}/latency_ms/p50`, { digits }), h("small", {}, "ms")], r.contender);
    tile("pixels made, each second", [fig(`/results/${i}/throughput/output_megapixels_per_s`, { digits: 1 }), h("small", {}, "MP")], r.contender);
    const faster = all.filter(([, q]) => q.speedup_over_torch).sort((a, b) => b[1].speedup_over_torch.ratio - a[1].speedup_over_torch.ratio)[0];
    if (faster) {
      const bound = Math.max(1, decimals(faster[1].speedup_over_torch.ci95));
      tile("as fast as PyTorch", [fig(`/results/${faster[0]}/speedup_over_torch/ratio`, { digits: Math.min(2, bound) }), h("small", {}, "times")], faster[1].contender);
    }
    const reached = all.filter(([, q]) => q.limit).sort((a, b) => b[1].limit.share - a[1].limit.share)[0];
    if (reached) tile("of what the machine could do", [fig(`/results/${reached[0]}/limit/share`, { digits: 0, factor: 100 }), h("small", {}, "%")], reached[1].contender);
  }
  if (D.quality) {
    const best = D.quality.contenders.map((q, i) => [i, q]).filter(([, q]) => q.mean.psnr_y_db !== null).sort((a, b) => b[1].mean.psnr_y_db - a[1].mean.psnr_y_db)[0];
    if (best) tile("highest PSNR of Y", [fig(`/quality/contenders/${best[0]}/mean/psnr_y_db`, { digits: 2 }), h("small", {}, "dB")], best[1].contender);
  }
  const button = h("button", { "aria-label": "light or dark", onclick: () => theme(state.theme === "dark" ? "light" : "dark") }, "◐");
  const models = MODELS.length === 1 ? MODELS[0] : `${MODELS.length} networks`;
  const saved = h("button", { onclick: () => {
    const link = h("a", { download: "bench.json", href: URL.createObjectURL(new Blob([JSON.stringify(D, null, 1)], { type: "application/json" })) });
    link.click();
  } }, "Save the JSON");
  document.querySelector("main").append(
    h("header", { class: "top" }, h("div", {}, h("div", { class: "eyebrow" }, "espan-deploy bench"), h("h1", {}, `${models}, ${ENGINES.length === 1 ? ENGINES[0] : ENGINES.length + " engines"}`),
      h("p", { class: "lead" }, `${D.environment.cpu}${D.environment.gpus.map((g) => ", " + g.name).join("")}, ${D.environment.threads} threads. ${D.created.slice(0, 10)}, version ${D.tool.version}.`)),
      h("div", { class: "bar" }, saved, button)),
    h("div", { class: "tiles" }, tiles), D.command ? h("code", { class: "command" }, D.command) : "",
    D.notes.length || D.interrupted ? h("div", { class: "notes" }, h("ul", {}, D.notes.map((n) => h("li", {}, n)), D.interrupted ? h("li", {}, "Interrupted: what was measured until then is shown.") : null)) : "");
  if (D.cases.length > 1) {
    const bar = h("div", { class: "bar", style: "margin-top: 22px" }, D.cases.map((c) => h("button", { "aria-pressed": String(c.label === state.case), onclick: (event) => {
      state.case = c.label;
      bar.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(b === event.currentTarget)));
      redraw();
    } }, c.label)));
    document.querySelector("main").append(bar);
  }
}

theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
top_();
if (PICTURES.length) section("pictures", "See it", "Drag the edge. Zoomed in, the picture follows the pointer.", viewer);
section("latency", "Latency", "Contenders took turns, round by round, so that whatever slowed the machine slowed all alike.", latency);
section("figures", "In figures", "No more digits than the intervals bear out; the JSON has them all.", figures);
if (D.quality) section("trade-off", "Quality against latency", `Mean of ${D.quality.images.length} images.`, tradeOff);
section("parts", "Where the time goes", "The limit is the least time this machine could take: its measured peak, layer after layer.", parts);
if (D.roofline.length) section("roofline", "Roofline", "Work done per second over work per byte. On a roof, nothing is left to gain without changing the network.", roofline);
if (D.results.some((r) => r.limit && r.limit.layers)) section("layers", "Layers", "What each layer takes at least, and what it took.", layerBars);
section("time", "Over time", "Every run, in the order it was made.", overTime);
if (D.quality) section("quality", "Quality", "Against the truth, uint8, the border cut off by the scale. PSNR of RGB and of Y (BT.601); SSIM of Y, 11x11 Gaussian window.", qualityTable);
if (D.challenge) section("challenge", `NTIRE ${D.challenge.year} efficient super-resolution`, `Score: exp(2 × metric / baseline), weighted ${D.challenge.weights.join(" / ")} for runtime, FLOPs and parameters. Lower is better.`, challengeTable);
section("complexity", "Complexity", "Counted in the graphs.", complexity);
section("surroundings", "Measured with", "All that would change a figure.", surroundings);
document.querySelector("main").append(h("footer", {}, "Made by espan-deploy. This page holds its data and loads nothing."));
redraw();
let lastWidth = innerWidth;
addEventListener("resize", () => { if (innerWidth !== lastWidth) { lastWidth = innerWidth; redraw(); } });
document.documentElement.dataset.ready = "true";
