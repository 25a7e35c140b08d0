"use strict";
// The first of many rows, and a button for the rest.
function few(rows, most = 30) {
  return [...rows, showAll(rows, most)];
}
function showAll(rows, most) {
  rows.slice(most).forEach((row) => { row.style.display = "none"; });
  if (rows.length <= most) return null;
  const all = (event) => { rows.forEach((row) => { row.style.display = ""; }); event.target.parentNode.remove(); };
  return h("div", { class: "bar" }, h("button", { onclick: all }, `Show all ${rows.length}`));
}

function latency(width) {
  const rows = results();
  if (!rows.length) return h("p", {}, "Nothing was measured.");
  const low = Math.min(...rows.map(([, r]) => r.latency_ms.min)) * 0.97;
  const high = Math.max(...rows.map(([, r]) => (r.latency_ms.p90 || r.latency_ms.max))) * 1.12;
  const strip = width > 660 ? width - (Math.min(250, Math.max(150, width * 0.25)) + 96 + 132 + 42) : width;
  const wide = high / low > 6;
  const x = (wide ? logarithmic : linear)([low, high], [4, strip - 4]);
  const marks = wide ? logTicks(low, high, strip / 48) : ticks(low, high, strip / 80);
  const axis = s("svg", { height: 16, viewBox: `0 0 ${strip} 16` },
    marks.map((v) => s("text", { class: "tick", x: x(v), y: 12, "text-anchor": "middle" }, plain(v))));
  const head = h("div", { class: "row head" }, h("div", {}, ""), h("div", { class: "strip" }, axis),
    h("div", { class: "val" }, "median ms"), h("div", { class: "aside" }, "95 % interval"));
  const drawn = rows.map(([index, r]) => {
    const l = r.latency_ms, tint = colour(r.contender), base = `/results/${index}/latency_ms`;
    const digits = decimals(l.ci95);
    const inside = (v) => Math.max(4, Math.min(strip - 4, x(v)));
    const picture = s("svg", { height: 24, viewBox: `0 0 ${strip} 24`, role: "img", "aria-label": `latencies of ${r.contender}` },
      marks.map((v) => s("line", { class: "gridline", x1: x(v), x2: x(v), y1: 0, y2: 24 })),
      r.series_ms.map((v, i) => s("circle", {
        cx: inside(v).toFixed(1), cy: (12 + 7 * Math.sin(i * 2.4)).toFixed(1), r: 1.8, fill: tint, opacity: 0.38,
      })),
      s("line", { x1: inside(l.min), x2: inside(l.p90 || l.max), y1: 12, y2: 12, stroke: tint, "stroke-width": 1 }),
      s("rect", { x: inside(l.ci95[0]), y: 7, width: Math.max(1, inside(l.ci95[1]) - inside(l.ci95[0])), height: 10, rx: 2, fill: tint, opacity: 0.45 }),
      s("line", { x1: inside(l.p50), x2: inside(l.p50), y1: 3, y2: 21, stroke: tint, "stroke-width": 2.5 }));
    const flag = r.verdicts.length ? h("span", { class: "flag", title: r.verdicts.join("\n") }, " ⚑") : null;
    return h("div", { class: "row" },
      h("div", { class: "name" }, h("span", { class: "dot", style: `background:${tint}` }), h("span", { title: r.contender }, r.contender)),
      h("div", { class: "strip" }, picture),
      h("div", { class: "val" }, fig(`${base}/p50`, { digits }), flag),
      h("div", { class: "aside" }, fig(`${base}/ci95/0`, { digits }), " to ", fig(`${base}/ci95/1`, { digits })));
  });
  return [legend(), h("div", { class: "rows" }, head, few(drawn, width > 660 ? 30 : 12)),
    h("p", { class: "caption" }, "Every dot is one run; bar: the median's 95 % interval; line: fastest run to p90. ⚑ marks what is noisy, drifting or too short.")];
}

function overTime(width) {
  const rows = results().filter(([, r]) => r.series_ms.length > 1);
  if (!rows.length) return h("p", {}, "Too few runs to draw.");
  const height = 190, left = 44, bottom = 24;
  const end = Math.max(...rows.map(([, r]) => r.started_s[r.started_s.length - 1]));
  const x = linear([0, end], [left, width - 6]);
  const ratios = rows.flatMap(([, r]) => r.series_ms.map((v) => v / r.latency_ms.p50)).sort((a, b) => a - b);
  const top = Math.max(1.2, ratios[Math.floor(ratios.length * 0.985)]), floor = Math.min(0.85, ratios[0]);
  const y = linear([floor, top], [height - bottom, 8]);
  const caption = h("p", { class: "caption" }, "Latency over its own median. What moves all lines at once is the machine, and cancels in the ratios.");
  const lines = rows.map(([, r]) => s("path", {
    d: pathOf(r.series_ms.map((v, i) => [x(r.started_s[i]), y(Math.min(top, v / r.latency_ms.p50))])),
    fill: "none", stroke: colour(r.contender), "stroke-width": rows.length > 8 ? 1 : 1.6, opacity: rows.length > 8 ? 0.5 : 0.85,
    onpointerenter: () => { caption.textContent = r.contender; },
  }));
  return [s("svg", { height, viewBox: `0 0 ${width} ${height}` },
    ticks(floor, top, 4).map((v) => [s("line", { class: "gridline", x1: left, x2: width, y1: y(v), y2: y(v) }),
      s("text", { class: "tick", x: left - 8, y: y(v) + 4, "text-anchor": "end" }, "×" + plain(v))]),
    ticks(0, end, width / 90).map((v) => s("text", { class: "tick", x: x(v), y: height - 6, "text-anchor": "middle" }, plain(v) + " s")),
    lines), caption];
}

function parts(width) {
  const rows = results();
  const high = Math.max(...rows.map(([, r]) => r.latency_ms.p50), 1e-9);
  const seen = new Map();
  const piece = (name, ms, shade) => { seen.set(name, shade); return { name, ms, shade }; };
  const drawn = rows.map(([index, r]) => {
    const stages = Object.entries(r.stages_ms || {});
    const found = stages.length
      ? stages.map(([name, stage], i) => piece(name, stage.p50, [0.35, 1, 0.6][i % 3]))
      : r.limit
        ? [piece("the least this machine could take", Math.min(r.limit.ms, r.latency_ms.p50), 1), piece("above the limit", Math.max(0, r.latency_ms.p50 - r.limit.ms), 0.28)]
        : [piece("engine", r.latency_ms.p50, 0.7)];
    let from = 0;
    const strip = width > 660 ? width - (Math.min(250, Math.max(150, width * 0.25)) + 96 + 132 + 42) : width;
    const bars = found.map((f) => {
      const x = (from / high) * strip, w = (f.ms / high) * strip;
      from += f.ms;
      return s("rect", { x, y: 4, width: Math.max(0, w - 1), height: 14, rx: 2, fill: colour(r.contender), opacity: f.shade }, s("title", {}, `${f.name}: ${f.ms.toPrecision(3)} ms`));
    });
    return h("div", { class: "row" },
      h("div", { class: "name" }, h("span", { class: "dot", style: `background:${colour(r.contender)}` }), h("span", {}, r.contender)),
      h("div", { class: "strip" }, s("svg", { height: 22, viewBox: `0 0 ${strip} 22` }, bars)),
      h("div", { class: "val" }, r.limit ? fig(`/results/${index}/limit/share`, { digits: 0, factor: 100, unit: " %" }) : NONE),
      h("div", { class: "aside" }, r.limit ? ["limit ", fig(`/results/${index}/limit/ms`, { digits: r.limit.ms < 10 ? 2 : 1, unit: " ms" })] : "no limit known"));
  });
  return [h("div", { class: "rows" }, h("div", { class: "row head" }, h("div"), h("div"), h("div", { class: "val" }, "of the limit"), h("div")), few(drawn, width > 660 ? 30 : 12)),
    h("p", { class: "caption" }, [...seen].map(([name, shade], i) => [i ? "   " : "", h("span", { class: "swatch", style: `opacity:${shade}` }), name]))];
}

// Points with names that cover neither each other nor a dot: those given first win.
function labelled(points, dots, width, size = 11) {
  const taken = dots.map(([x, y]) => [x - 4, y - 4, x + 4, y + 4]);
  return points.map((p) => {
    const w = p.text.length * size * 0.55 + 4;
    const spots = [[9, 4, "start"], [-9, 4, "end"], [0, -10, "middle"], [0, 18, "middle"]];
    for (const [dx, dy, anchor] of spots) {
      const x0 = p.x + dx - (anchor === "end" ? w : anchor === "middle" ? w / 2 : 0), box = [x0, p.y + dy - 10, x0 + w, p.y + dy + 3];
      const free = x0 > 46 && box[2] < width && taken.every((t) => box[2] < t[0] || box[0] > t[2] || box[3] < t[1] || box[1] > t[3]);
      if (free) { taken.push(box); return s("text", { class: "label", x: p.x + dx, y: p.y + dy, "text-anchor": anchor }, p.text); }
    }
    return null;
  });
}

function tradeOff(width) {
  const byName = new Map(D.quality.contenders.map((q, i) => [q.contender, i]));
  const points = results().filter(([, r]) => byName.has(r.contender)).map(([index, r]) => ({ index, r, q: byName.get(r.contender) }))
    .filter((p) => D.quality.contenders[p.q].mean.psnr_y_db !== null);
  if (!points.length) return h("p", {}, "No model was measured in this case.");
  const height = Math.min(430, Math.max(300, width * 0.45)), left = 50, bottom = 40;
  const times = points.map((p) => p.r.latency_ms.p50), db = points.map((p) => D.quality.contenders[p.q].mean.psnr_y_db);
  const pad = Math.max(0.02, (Math.max(...db) - Math.min(...db)) * 0.12);
  const span = [Math.min(...times) / 1.15, Math.max(...times) * 1.25];
  const x = logarithmic(span, [left, width - 12]), y = linear([Math.min(...db) - pad, Math.max(...db) + pad], [height - bottom, 10]);
  const caption = h("p", { class: "caption" }, "Up and to the left is better. The line joins what nothing else beats in both.");
  const front = [];
  let best = -Infinity;
  points.forEach((p, i) => { if (db[i] > best + 0.0005) { best = db[i]; front.push(i); } });
  const tell = (p) => {
    const digits = decimals(p.r.latency_ms.ci95);
    caption.replaceChildren(h("b", {}, p.r.contender), ": ", ...fig(`/results/${p.index}/latency_ms/p50`, { digits, unit: " ms, " }),
      ...fig(`/quality/contenders/${p.q}/mean/psnr_y_db`, { digits: 3, unit: " dB (Y), " }), ...fig(`/quality/contenders/${p.q}/mean/psnr_rgb_db`, { digits: 3, unit: " dB (RGB)" }));
  };
  const order = [...front, ...points.map((_, i) => i).filter((i) => !front.includes(i))];
  const labels = order.map((i) => ({ x: x(times[i]), y: y(db[i]), text: points[i].r.contender.split(" · ")[0] }))
    .filter((l, i, all) => all.findIndex((o) => o.text === l.text) === i);
  return [legend(), s("svg", { height, viewBox: `0 0 ${width} ${height}` },
    ticks(Math.min(...db) - pad, Math.max(...db) + pad, 6).map((v) => [s("line", { class: "gridline", x1: left, x2: width, y1: y(v), y2: y(v) }),
      s("text", { class: "tick", x: left - 8, y: y(v) + 4, "text-anchor": "end" }, v.toFixed(2))]),
    logTicks(span[0], span[1], width / 55).map((v) => [s("line", { class: "gridline", x1: x(v), x2: x(v), y1: 10, y2: height - bottom }),
      s("text", { class: "tick", x: x(v), y: height - bottom + 18, "text-anchor": "middle" }, plain(v))]),
    s("text", { x: width - 4, y: height - 4, "text-anchor": "end" }, "median latency, ms (logarithmic)"),
    s("text", { x: 4, y: height - 4 }, "PSNR of Y, dB"),
    s("path", { d: pathOf(front.map((i) => [x(times[i]), y(db[i])])), fill: "none", stroke: "var(--faint)", "stroke-dasharray": "3 4" }),
    points.map((p, i) => s("circle", { cx: x(times[i]), cy: y(db[i]), r: front.includes(i) ? 6 : 4.5, fill: colour(p.r.contender),
      opacity: front.includes(i) ? 1 : 0.75, tabindex: 0, stroke: "var(--card)", onpointerenter: () => tell(p), onfocus: () => tell(p) }, s("title", {}, p.r.contender))),
    labelled(labels, points.map((p, i) => [x(times[i]), y(db[i])]), width)), caption];
}

function roofline(width) {
  const points = results().filter(([, r]) => r.limit);
  if (!points.length) return h("p", {}, "No limit is known for this device.");
  const device = D.roofline.findIndex((d) => d.key === points[0][1].limit.device), roof = D.roofline[device];
  const shown = points.filter(([, r]) => r.limit.device === roof.key);
  const height = Math.min(400, Math.max(300, width * 0.4)), left = 54, bottom = 40;
  const peaks = Object.entries(roof.gflops), lanes = roof.bandwidths;
  const xs = shown.map(([, r]) => r.limit.flops_per_byte);
  const slow = lanes[lanes.length - 1].gb_per_s, top = Math.max(...peaks.map(([, v]) => v));
  const xSpan = [Math.min(Math.min(...xs) / 3, Math.min(...peaks.map(([, v]) => v)) / slow / 3), Math.max(Math.max(...xs) * 3, (top / slow) * 3)];
  const ySpan = [Math.min(...shown.map(([, r]) => r.limit.gflops), xSpan[0] * slow) / 1.6, top * 1.7];
  const x = logarithmic(xSpan, [left, width - 12]), y = logarithmic(ySpan, [height - bottom, 10]);
  const caption = h("p", { class: "caption" }, roof.basis === "measured" ? "Peaks measured in this run, with short probes." : "Peaks from the " + roof.basis + ".");
  const tell = ([index, r]) => caption.replaceChildren(h("b", {}, r.contender), ": ",
    ...fig(`/results/${index}/limit/gflops`, { digits: 0, unit: " GFLOP/s, " }), ...fig(`/results/${index}/limit/flops_per_byte`, { digits: 0, unit: " FLOP per byte, " }),
    ...fig(`/results/${index}/limit/share`, { digits: 0, factor: 100, unit: " % of its limit" }));
  const line = (rate, from, to) => [[x(from), y(from * rate)], [x(to), y(to * rate)]];
  const slopes = [0, lanes.length - 1].filter((v, i, all) => all.indexOf(v) === i).map((i) => {
    const rate = lanes[i].gb_per_s, from = Math.max(xSpan[0], ySpan[0] / rate), to = Math.min(xSpan[1], top / rate);
    const name = i === 0 && lanes.length > 1 ? " GB/s, in cache" : " GB/s, memory";
    return to > from ? [s("path", { d: pathOf(line(rate, from, to)), stroke: "var(--faint)", "stroke-width": 1.5, fill: "none", "stroke-dasharray": i === 0 && lanes.length > 1 ? "4 4" : null }),
      s("text", { x: x(Math.sqrt(from * to)) + 8, y: y(Math.sqrt(from * to) * rate) + 12 }, s("tspan", { "data-json": `/roofline/${device}/bandwidths/${i}/gb_per_s`, "data-factor": 1 }, rate.toFixed(0)), name)] : null;
  });
  return [legend(), s("svg", { height, viewBox: `0 0 ${width} ${height}` },
    logTicks(ySpan[0], ySpan[1], 8).map((v) => [s("line", { class: "gridline", x1: left, x2: width, y1: y(v), y2: y(v) }),
      s("text", { class: "tick", x: left - 8, y: y(v) + 4, "text-anchor": "end" }, plain(v))]),
    logTicks(xSpan[0], xSpan[1], width / 55).map((v) => s("text", { class: "tick", x: x(v), y: height - bottom + 18, "text-anchor": "middle" }, plain(v))),
    s("text", { x: width - 4, y: height - 4, "text-anchor": "end" }, "FLOP per byte moved"), s("text", { x: 4, y: height - 4 }, "GFLOP/s"),
    slopes,
    peaks.map(([precision, v]) => [s("line", { x1: x(Math.max(xSpan[0], v / lanes[0].gb_per_s)), x2: width - 12, y1: y(v), y2: y(v), stroke: "var(--ink)", "stroke-width": 1.5 }),
      s("text", { class: "label", x: width - 12, y: y(v) - 6, "text-anchor": "end" }, precision + " peak ", s("tspan", { "data-json": `/roofline/${device}/gflops/${precision}`, "data-factor": 1 }, v.toFixed(0)), " GFLOP/s")]),
    shown.map((p) => s("circle", { cx: x(p[1].limit.flops_per_byte), cy: y(p[1].limit.gflops), r: 5, fill: colour(p[1].contender), opacity: 0.85, stroke: "var(--card)", tabindex: 0,
      onpointerenter: () => tell(p), onfocus: () => tell(p) }, s("title", {}, p[1].contender)))), caption];
}

function layerBars(width) {
  const seen = new Set();
  const withLayers = results().filter(([, r]) => {
    const c = contender(r.contender), key = `${c.model} ${c.engine} ${c.precision}`;
    return r.limit && r.limit.layers && !seen.has(key) && seen.add(key);
  });
  return withLayers.slice(0, 16).map(([, r]) => {
    const { layers, profile } = r.limit, tint = colour(r.contender), c = contender(r.contender);
    const whole = Math.max(r.limit.ms, profile ? profile.ms : 0);
    const bar = (blocks, y) => {
      let from = 0;
      return blocks.map(([ms, fill, opacity, text]) => {
        const w = (ms / whole) * width;
        from += w;
        return s("rect", { x: from - w, y, width: Math.max(0.5, w - 1), height: 24, fill, opacity }, s("title", {}, text));
      });
    };
    const least = layers.map((l, i) => [l.ms, tint, l.bound === "memory" ? 0.35 : i % 2 ? 0.75 : 1, `${l.name} (${l.kernel}): at least ${l.ms.toPrecision(3)} ms, ${l.bound} bound`]);
    const took = !profile ? [] : layers.map((l, i) => [l.took_ms || 0, tint, i % 2 ? 0.75 : 1, `${l.name} (${l.kernel}): took ${(l.took_ms || 0).toPrecision(3)} ms, ${(100 * l.ms / (l.took_ms || l.ms)).toFixed(0)} % of its limit`])
      .concat(Object.entries(profile.between_ms).map(([kind, ms]) => [ms, "var(--faint)", 0.5, `${kind}, between the layers: ${ms.toPrecision(3)} ms`]));
    const height = profile ? 52 : 24;
    return [h("h3", {}, `${c.model}, ${c.engine} ${c.precision}`), s("svg", { height, viewBox: `0 0 ${width} ${height}` }, bar(least, 0), bar(took, 28))];
  }).concat([h("p", { class: "caption" }, "Each block is a layer. Above, what it takes at least; pale blocks are bound by memory. Below, where the engine tells, what it took in a profiled run, on the same scale; grey is spent between the layers. Point at one for its figures.")]);
}
