"use strict";
function viewer() {
  const view = { picture: 0, left: 0, right: 1, split: 0.5, zoom: 1, x: 0.5, y: 0.5, difference: false };
  const root = h("div", { class: "viewing" });
  const stage = h("div", { class: "viewer" }), side = h("div", {});
  root.append(stage, side);
  const layer = (i) => PICTURES[view.picture].layers[i];
  const drawStage = () => {
    const image = (i, style, difference) => h("div", { class: "pane", style }, h("img", { alt: layer(i).name, src: difference && layer(i).difference ? layer(i).difference : layer(i).src,
      style: `transform: scale(${view.zoom}) translate(${(-view.x * (1 - 1 / view.zoom) * 100).toFixed(2)}%, ${(-view.y * (1 - 1 / view.zoom) * 100).toFixed(2)}%)` }));
    const cut = (view.split * 100).toFixed(2);
    stage.className = view.zoom > 2 ? "viewer near" : "viewer";
    stage.style.aspectRatio = `${PICTURES[view.picture].width} / ${PICTURES[view.picture].height}`;
    stage.replaceChildren(image(view.right, "", view.difference), image(view.left, `clip-path: inset(0 ${(100 - cut).toFixed(2)}% 0 0)`, false), h("div", { class: "edge", style: `left: calc(${cut}% - 1px)` }),
      h("span", { class: "tag left" }, layer(view.left).name), h("span", { class: "tag right" }, layer(view.right).name + (view.difference && layer(view.right).difference ? ", difference" : "")));
  };
  const move = (event) => {
    const box = stage.getBoundingClientRect();
    view.split = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
    if (view.zoom > 1) { view.y = Math.max(0, Math.min(1, (event.clientY - box.top) / box.height)); view.x = view.split; }
    drawStage();
  };
  stage.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse" || event.buttons) move(event); });
  stage.addEventListener("pointerdown", move);
  const pick = (label, key) => [h("label", { for: "pick-" + key }, label), h("select", { id: "pick-" + key, onchange: (event) => { view[key] = Number(event.target.value); draw(); } },
    PICTURES[view.picture].layers.map((l, i) => h("option", { value: i, selected: i === view[key] ? "" : null }, l.name)))];
  function draw() {
    drawStage();
    const p = PICTURES[view.picture];
    side.replaceChildren(
      h("div", { class: "thumbs" }, PICTURES.map((q, i) => h("button", { "aria-pressed": String(i === view.picture), "aria-label": q.name, onclick: () => { view.picture = i; draw(); } }, h("img", { src: q.layers[1].src, alt: "" })))),
      ...pick("Left", "left"), ...pick("Right", "right"),
      h("label", {}, "Zoom"), h("div", { class: "bar" }, [1, 2, 4, 8].map((z) => h("button", { "aria-pressed": String(z === view.zoom), onclick: () => { view.zoom = z; draw(); } }, "×" + z))),
      h("div", { class: "bar" }, h("button", { "aria-pressed": String(view.difference), onclick: () => { view.difference = !view.difference; draw(); } }, "Difference " + p.difference_to)),
      h("label", { for: "split" }, "Edge"), h("input", { id: "split", type: "range", min: 0, max: 1, step: 0.005, value: view.split, style: "width: 100%", oninput: (event) => { view.split = Number(event.target.value); drawStage(); } }),
      h("p", { class: "caption" }, `${p.name}: ${p.caption}`));
  }
  draw();
  return root;
}
