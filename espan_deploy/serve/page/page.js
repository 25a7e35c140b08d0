"use strict";

const at = (id) => document.getElementById(id);
const view = { scale: 1, x: 0, y: 0, width: 0, height: 0 };
let request = null;
let urls = [];
let token = "";

async function describe() {
  const answer = await fetch("v1/model", { headers: authorisation() });
  at("access").hidden = answer.status !== 401;
  if (!answer.ok) return;
  const { model, engine, limits } = await answer.json();
  at("model").textContent = `${model.title}, x${model.scale}, on ${engine.device}`;
  at("limits").textContent =
    `up to ${Math.round(limits.bytes / 2 ** 20)} MB and ${Math.round(limits.pixels / 1e6)} megapixels`;
}

function authorisation() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

function send(file) {
  if (request) request.abort();
  fail("");
  at("result").hidden = true;
  at("work").hidden = false;
  at("name").textContent = file.name;
  say("sending", 0);
  const started = performance.now();
  request = new XMLHttpRequest();
  request.open("POST", "v1/upscale");
  request.responseType = "blob";
  for (const [name, value] of Object.entries(authorisation())) request.setRequestHeader(name, value);
  request.upload.onprogress = (event) => event.lengthComputable && say("sending", event.loaded / event.total);
  request.upload.onload = () => say("working", null);
  request.onprogress = (event) => event.lengthComputable && say("receiving", event.loaded / event.total);
  request.onload = () => done(file, request, (performance.now() - started) / 1000);
  request.onerror = () => end("The service cannot be reached.");
  request.onabort = () => end("");
  request.send(file);
}

function say(what, share) {
  at("status").textContent = share === null ? `${what}…` : `${what} ${Math.round(share * 100)} %`;
  if (share === null) at("progress").removeAttribute("value");
  else at("progress").value = share;
}

function end(problem) {
  request = null;
  at("work").hidden = true;
  fail(problem);
}

function fail(problem) {
  at("error").textContent = problem;
  at("error").hidden = !problem;
}

async function done(file, answered, seconds) {
  const blob = answered.response;
  if (answered.status !== 200) {
    if (answered.status === 401) at("access").hidden = false;
    return end(await reason(blob, answered.status));
  }
  urls.forEach(URL.revokeObjectURL);
  urls = [URL.createObjectURL(file), URL.createObjectURL(blob)];
  at("before").src = urls[0];
  at("after").src = urls[1];
  try {
    await Promise.all([at("before").decode(), at("after").decode()]);
  } catch {
    return end("The browser cannot show this kind of picture; the result can be downloaded all the same.");
  } finally {
    at("download").href = urls[1];
    at("download").download = file.name.replace(/(\.[^.]*)?$/, `_x.${blob.type.split("/")[1].replace("jpeg", "jpg")}`);
  }
  end("");
  const after = at("after");
  view.width = after.naturalWidth;
  view.height = after.naturalHeight;
  at("facts").textContent =
    `${at("before").naturalWidth}x${at("before").naturalHeight} → ${view.width}x${view.height} in ${seconds.toFixed(1)} s` +
    takenModel(answered);
  at("result").hidden = false;
  fit();
  compare();
}

function takenModel(answered) {
  const model = answered.getResponseHeader("X-Model");
  return model ? `, by ${model} (${answered.getResponseHeader("X-Model-Because")})` : "";
}

async function reason(blob, status) {
  try {
    const { error } = JSON.parse(await blob.text());
    return error.hint ? `${error.message} (${error.hint})` : error.message;
  } catch {
    return `The service answered ${status}.`;
  }
}

// Comparing and zooming

function compare() {
  const share = at("slider").value / 1000;
  const stage = at("stage").getBoundingClientRect();
  // The line stands where the slider says on the stage, however far the pictures are zoomed.
  const edge = Math.min(Math.max((share * stage.width - view.x) / view.scale, 0), view.width);
  at("clip").style.width = `${edge}px`;
  at("handle").style.left = `${edge}px`;
  at("handle").style.width = `${2 / view.scale}px`;
}

function place() {
  const pictures = at("pictures");
  pictures.style.width = `${view.width}px`;
  pictures.style.height = `${view.height}px`;
  pictures.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  at("before").style.width = `${view.width}px`;
  at("before").style.height = `${view.height}px`;
  at("zoom").textContent = `${Math.round(view.scale * 100)} %`;
  compare();
}

function fit() {
  const ratio = view.height / view.width;
  at("stage").style.height = `${Math.max(160, Math.min(0.7 * innerHeight, at("stage").clientWidth * ratio))}px`;
  const stage = at("stage").getBoundingClientRect();
  view.scale = Math.min(stage.width / view.width, stage.height / view.height);
  view.x = (stage.width - view.width * view.scale) / 2;
  view.y = (stage.height - view.height * view.scale) / 2;
  place();
}

function zoom(factor, x, y) {
  const stage = at("stage").getBoundingClientRect();
  const [centreX, centreY] = [x ?? stage.width / 2, y ?? stage.height / 2];
  const scale = Math.min(Math.max(view.scale * factor, 0.02), 16);
  view.x = centreX - ((centreX - view.x) * scale) / view.scale;
  view.y = centreY - ((centreY - view.y) * scale) / view.scale;
  view.scale = scale;
  place();
}

const pointers = new Map();

function spread() {
  const [a, b] = [...pointers.values()];
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, distance: Math.hypot(a.x - b.x, a.y - b.y) };
}

at("stage").addEventListener("pointerdown", (event) => {
  at("stage").setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
});
at("stage").addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const old = pointers.size === 2 ? spread() : null;
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  if (old) {
    const box = at("stage").getBoundingClientRect();
    const now = spread();
    zoom(now.distance / old.distance, now.x - box.left, now.y - box.top);
  } else if (pointers.size === 1) {
    view.x += event.clientX - before.x;
    view.y += event.clientY - before.y;
    place();
  }
});
for (const kind of ["pointerup", "pointercancel"]) {
  at("stage").addEventListener(kind, (event) => pointers.delete(event.pointerId));
}
at("stage").addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    const box = at("stage").getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
  },
  { passive: false },
);
at("slider").addEventListener("input", compare);
at("in").addEventListener("click", () => zoom(1.5));
at("out").addEventListener("click", () => zoom(1 / 1.5));
at("fit").addEventListener("click", fit);
at("cancel").addEventListener("click", () => request && request.abort());
addEventListener("resize", () => !at("result").hidden && fit());

// Choosing

at("file").addEventListener("change", () => at("file").files[0] && send(at("file").files[0]));
at("drop").addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && at("file").click());
for (const kind of ["dragover", "dragenter"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
}
addEventListener("dragleave", (event) => !event.relatedTarget && at("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
});
at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value;
  fail("");
  describe();
});
describe();
