"use strict";
const cell = (...content) => h("td", {}, content);
function grid(head, rows, { kind = "", most = 20 } = {}) {
  const more = showAll(rows, most);
  return [h("div", { class: "scroll" }, h("table", { class: kind }, h("thead", {}, h("tr", {}, head.map((t) => h("th", {}, t)))), h("tbody", {}, rows))), more];
}

function figures() {
  return grid(["", "p50 ms", "p90", "p99", "fastest", "mean", "std", "runs", "ratio to the first", "95 % interval", "images/s", "output MP/s"],
    results().map(([i, r]) => {
      const base = `/results/${i}/latency_ms`, digits = { digits: decimals(r.latency_ms.ci95) };
      const ratio = { digits: r.ratio.ci95[0] === r.ratio.ci95[1] ? 0 : Math.max(1, decimals(r.ratio.ci95)) };
      return h("tr", {}, cell(r.contender), ["p50", "p90", "p99", "min", "mean", "std"].map((k) => cell(fig(`${base}/${k}`, digits))),
        cell(fig(`${base}/samples`, { digits: 0 })), cell(fig(`/results/${i}/ratio/ratio`, ratio)),
        cell(fig(`/results/${i}/ratio/ci95/0`, ratio), " to ", fig(`/results/${i}/ratio/ci95/1`, ratio)),
        cell(fig(`/results/${i}/throughput/images_per_s`, { digits: 1 })), cell(fig(`/results/${i}/throughput/output_megapixels_per_s`, { digits: 1 })));
    }));
}

function qualityTable() {
  const rows = D.quality.contenders.map((q, i) => [i, q]).sort((a, b) => (b[1].mean.psnr_y_db || 1e9) - (a[1].mean.psnr_y_db || 1e9));
  return grid(["", "PSNR RGB dB", "PSNR Y dB", "SSIM Y", "RGB against FP32"], rows.map(([i, q]) => h("tr", {}, cell(q.contender),
    cell(fig(`/quality/contenders/${i}/mean/psnr_rgb_db`, { digits: 3 })), cell(fig(`/quality/contenders/${i}/mean/psnr_y_db`, { digits: 3 })),
    cell(fig(`/quality/contenders/${i}/mean/ssim_y`, { digits: 4 })), cell(fig(`/quality/contenders/${i}/difference_to_fp32/psnr_rgb_db`, { digits: 4, sign: true })))));
}

function challengeTable() {
  const c = D.challenge, entries = [];
  c.published.forEach((row, i) => {
    const p = `/challenge/published/${i}`;
    entries.push([row.computed, row.rank !== null, h("tr", { class: row.team === c.baseline ? "base" : null },
      cell(row.rank === null ? NONE : fig(`${p}/rank`, { digits: 0 })), cell(row.team), cell(fig(`${p}/psnr_test_db`)), cell(fig(`${p}/runtime_ms`, { digits: 3 })), cell(""),
      cell(fig(`${p}/params_m`, { digits: 3 })), cell(fig(`${p}/flops_g`)), cell(fig(`${p}/computed`)))]);
  });
  c.measured.forEach((row, i) => {
    const p = `/challenge/measured/${i}`;
    entries.push([row.score === null ? Infinity : row.score, true, h("tr", { class: "ours" }, cell("this run"), cell(row.contender), cell(""),
      cell(row.scaled_ms === null ? NONE : ["≈ ", fig(`${p}/scaled_ms`, { digits: 1 })]), cell(fig(`${p}/measured_ms`, { digits: 1 })),
      cell(fig(`${p}/params_m`, { digits: 3 })), cell(fig(`${p}/flops_g`)), cell(row.score === null ? NONE : ["≈ ", fig(`${p}/score`, { digits: 1 })]))]);
  });
  entries.sort((a, b) => a[0] - b[0]);
  const head = ["rank", "team", "test dB", `ms on ${c.device}`, "ms here", "params M", "FLOPs G", "score"];
  return [grid(head, entries.map((e) => e[2]), { kind: "second", most: 30 }),
    h("p", { class: "caption" }, `≈ ${c.scaling}. Source: ${c.source}. PSNR on LSDIR_DIV2K test.`)];
}

function complexity() {
  const rows = D.models.map((m, i) => {
    const row = m.published[0];
    return h("tr", {}, cell(m.name), cell(fig(`/models/${i}/unfolded/parameters`, { digits: 4, factor: 1e-6 })), cell(fig(`/models/${i}/parameters`, { digits: 4, factor: 1e-6 })),
      cell(fig(`/models/${i}/unfolded/multiply_adds`, { digits: 2, factor: 1e-9 })), cell(fig(`/models/${i}/multiply_adds`, { digits: 2, factor: 1e-9 })),
      cell(row ? [fig(`/models/${i}/published/0/params_m`, { digits: 3 }), " / ", fig(`/models/${i}/published/0/flops_g`)] : NONE),
      cell(fig(`/models/${i}/convolutions`, { digits: 0 })), cell(fig(`/models/${i}/costs/activations`, { digits: 1, factor: 1e-6 })),
      cell(fig(`/models/${i}/costs/peak_activation_bytes`, { digits: 0, factor: 1 / 1048576 })), cell(fig(`/models/${i}/costs/receptive_field`, { digits: 0 })));
  });
  return [grid(["", "params M", "folded", "multiply-adds G", "folded", "published M / G", "convs", "activations M", "peak MiB", "sees px"], rows),
    h("p", { class: "caption" }, "At 256x256, by the challenge's conventions; folded is what ran. Peak: activations in memory at once, float32. Sees: side of the receptive field, – where it is the whole image.")];
}

function surroundings() {
  const e = D.environment;
  const facts = [
    ["CPU", `${e.cpu}, ${e.threads} of ${e.cpu_cores} cores`], ...e.gpus.map((g) => ["GPU", `${g.name}, driver ${g.driver_version}, CUDA ${g.cuda}`]),
    ["Memory", e.memory_gib === null ? NONE : fig("/environment/memory_gib", { digits: 1, unit: " GiB" })],
    ["Other processes", e.other_processes_cores === undefined || e.other_processes_cores === null ? NONE : [fig("/environment/other_processes_cores", { digits: 2 }), " cores busy while measuring"]],
    ["System", `${e.os}, Python ${e.python}, numpy ${e.numpy}`],
    ...[...new Set(D.contenders.map((c) => `${c.info.backend} ${c.info.version}`))].map((v) => ["Engine", v]),
    ["Order", D.settings.order], ["Timed", D.settings.includes], ["Not timed", D.settings.excludes],
    ...D.models.map((m) => ["Model", `${m.name}: ${m.file}, SHA-256 ${m.sha256.slice(0, 16)}…`]),
  ];
  return h("dl", {}, facts.map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]));
}
