// The picture, and what was found drawn over it. Overlays live in the picture's own pixels (the SVG's viewBox).

import { byId, drawn, made } from "./dom.js";
import { painted } from "./rle.js";
import { MERGED, number, rgb, tone } from "./tones.js";

const MAX_BYTES = 20 * 1024 * 1024; // what the server takes (serve/media/image.py)
const stage = byId("stage");
const image = byId("picture");
const overlay = byId("overlay");
const hidden = new Set();

/** A picture that can be asked about: {blob, name, alt, scene, url, width, height}. Throws Error in words. */
export async function loaded(blob, { name = "picture", alt = "", scene = null } = {}) {
  if (blob.size > MAX_BYTES) {
    throw new Error(`${name} has ${(blob.size / 2 ** 20).toFixed(1)} MB; a picture may have 20.`);
  }
  const url = URL.createObjectURL(blob);
  const probe = new Image();
  probe.src = url;
  try {
    await probe.decode();
  } catch {
    URL.revokeObjectURL(url);
    throw new Error(`${name} is not a picture that this browser can show.`);
  }
  return { blob, name, alt: alt || `Your picture, ${name}`, scene, url, width: probe.naturalWidth, height: probe.naturalHeight };
}

export function show(picture) {
  image.src = picture.url;
  image.alt = picture.alt;
  overlay.setAttribute("viewBox", `0 0 ${picture.width} ${picture.height}`);
  stage.classList.add("full");
  clear();
}

export function clear() {
  overlay.replaceChildren();
  byId("layers").hidden = true;
  byId("layers").replaceChildren(made("legend", {}, "Drawn over the picture"));
}

/** Draw one reply's boxes and masks; merged ones lie on top of all. */
export function overlaid(model, boxes, size) {
  if (!boxes?.length) return;
  if (size) overlay.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
  overlay.querySelector(`g[data-layer="${CSS.escape(model)}"]`)?.remove();
  const layer = drawn("g", { class: `layer tone-${number(model)}`, "data-layer": model });
  const halos = drawn("g", { "data-halos": model });
  boxes.forEach((box, index) => {
    halos.append(drawn("rect", { ...frame(box), class: "halo" }));
    layer.append(item(model, box, index));
  });
  overlay.querySelector(`g[data-halos="${CSS.escape(model)}"]`)?.remove();
  overlay.prepend(halos); // all halos lie below all frames: none may wash out another's colour
  const merged = overlay.querySelector(`g[data-layer="${MERGED}"]`);
  if (merged && model !== MERGED) merged.before(layer);
  else overlay.append(layer);
  overlay.classList.toggle("has-merged", Boolean(overlay.querySelector(`g[data-layer="${MERGED}"]`)) && !hidden.has(MERGED));
  toggle(model);
  fit();
}

const frame = ({ box: [x, y, x1, y1] }) => ({ x, y, width: Math.max(0, x1 - x), height: Math.max(0, y1 - y) });

function item(model, found, index) {
  const { label, box: [x0, y0, x1, y1], mask } = found;
  const group = drawn("g", { class: "item", "data-item": `${model}/${index}` });
  if (mask) {
    const [height, width] = mask.size;
    group.append(drawn("image", { href: painted(mask, rgb(model), model === MERGED ? 20 : 55), width, height, preserveAspectRatio: "none" }));
  }
  group.append(
    drawn("rect", { ...frame(found), class: "frame", stroke: tone(model), "data-model": model, "data-label": label }),
    drawn("g", { class: "tag", "data-x0": x0, "data-y0": y0, "data-x1": x1, "data-y1": y1, "data-corner": number(model) },
      drawn("rect", { fill: tone(model) }), drawn("text", {}, label)),
  );
  group.addEventListener("pointerenter", () => lit(`${model}/${index}`, true));
  group.addEventListener("pointerleave", () => lit(`${model}/${index}`, false));
  return group;
}

/** Light up one item, in the picture and in its column. */
export function lit(id, on) {
  for (const element of document.querySelectorAll(`[data-item="${CSS.escape(id)}"]`)) element.classList.toggle("lit", on);
  overlay.classList.toggle("some-lit", on);
}

/** A switch for this layer, beside the others; made before anything is drawn, so that nothing moves when it is. */
export function toggle(model) {
  const layers = byId("layers");
  layers.hidden = false;
  const set = (on) => {
    on ? hidden.delete(model) : hidden.add(model);
    for (const kind of ["layer", "halos"]) {
      overlay.querySelector(`g[data-${kind}="${CSS.escape(model)}"]`)?.classList.toggle("off", !on);
    }
    if (model === MERGED) overlay.classList.toggle("has-merged", on);
  };
  if (!layers.querySelector(`input[value="${CSS.escape(model)}"]`)) {
    const box = made("input", { type: "checkbox", value: model, checked: !hidden.has(model), onchange: () => set(box.checked) });
    const label = made("label", { class: `chip tone-${number(model)}` }, box, made("span", { class: "dot" }), model);
    const place = (one) => (one === MERGED ? Infinity : number(one));
    const next = [...layers.querySelectorAll("input")].find((other) => place(other.value) > place(model));
    next ? next.closest("label").before(label) : layers.append(label);
  }
  set(!hidden.has(model));
}

/** Labels keep their size on the screen whatever the picture's: 13 px, at a corner of their own per model. */
function fit() {
  const view = overlay.viewBox.baseVal;
  if (!view || !view.width || !overlay.clientWidth) return;
  const unit = Math.max(view.width / overlay.clientWidth, view.height / overlay.clientHeight);
  for (const tag of overlay.querySelectorAll(".tag")) {
    const [plate, text] = tag.children;
    text.setAttribute("font-size", 13 * unit);
    const wide = text.getComputedTextLength() + 10 * unit;
    const high = 19 * unit;
    const { x0, y0, x1, y1, corner } = tag.dataset;
    const left = corner === MERGED || corner % 4 < 2 ? Number(x0) : Number(x1) - wide;
    const above = corner === MERGED || corner % 2 === 0;
    const top = above ? (Number(y0) - high < view.y ? Number(y0) : Number(y0) - high) : Math.min(Number(y1), view.height - high);
    const x = Math.max(0, Math.min(left, view.width - wide));
    for (const [name, value] of Object.entries({ x, y: top, width: wide, height: high, rx: 3 * unit })) plate.setAttribute(name, value);
    text.setAttribute("x", x + 5 * unit);
    text.setAttribute("y", top + 14 * unit);
  }
}

new ResizeObserver(fit).observe(stage);

/** Everything drawn now, for a picture of the page: [{model, label, box, on}] and masks as images. */
export function layersShown() {
  return [...overlay.querySelectorAll("g[data-layer]:not(.off)")];
}
