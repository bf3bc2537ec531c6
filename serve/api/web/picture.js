// The picture, and what was found drawn over it. Overlays live in the picture's own pixels (the SVG's viewBox).

import { byId, drawn, made } from "./dom.js";
import { edges, framed, veil } from "./places.js";
import { MERGED, number, rgb, tone } from "./tones.js";

const stage = byId("stage");
const image = byId("picture");
const overlay = byId("overlay");
const hidden = new Set();
const group = (kind, model) => overlay.querySelector(`g[data-${kind}="${CSS.escape(model)}"]`);

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

/** Draw one reply's boxes, masks or points; merged ones lie on top of all. */
export function overlaid(model, places, size) {
  if (!places.length) return;
  overlay.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
  group("layer", model)?.remove();
  const layer = drawn("g", { class: `layer tone-${number(model)}`, "data-layer": model });
  const halos = drawn("g", { "data-halos": model });
  places.forEach((place, index) => {
    const [halo, whole] = item(model, place, index);
    halos.append(halo);
    layer.append(whole);
  });
  group("halos", model)?.remove();
  overlay.prepend(halos); // all halos lie below all frames: none may wash out another's colour
  const merged = group("layer", MERGED);
  if (merged && model !== MERGED) merged.before(layer);
  else overlay.append(layer);
  overlay.classList.toggle("has-merged", Boolean(group("layer", MERGED)) && !hidden.has(MERGED));
  toggle(model);
  fit();
}

function item(model, place, index) {
  const { label, mask, point } = place;
  const [x0, y0, x1, y1] = edges(place);
  const [halo, frame] = framed(place, { stroke: tone(model), "data-model": model, "data-label": label });
  const whole = drawn("g.item", { "data-item": `${model}/${index}` });
  if (mask) whole.append(veil(mask, rgb(model), model === MERGED ? 20 : 55));
  whole.append(frame,
    drawn("g.tag", { "data-x0": x0, "data-y0": y0, "data-x1": x1, "data-y1": y1, "data-corner": number(model), "data-around": point ? 9 : 0 },
      drawn("rect", { fill: tone(model) }), drawn("text", {}, label)),
  );
  whole.addEventListener("pointerenter", () => lit(`${model}/${index}`, true));
  whole.addEventListener("pointerleave", () => lit(`${model}/${index}`, false));
  return [halo, whole];
}

/** Light up one item, in the picture and in its column. */
export function lit(id, on) {
  for (const element of document.querySelectorAll(`[data-item="${CSS.escape(id)}"]`)) element.classList.toggle("lit", on);
  overlay.classList.toggle("some-lit", on);
}

/** A switch for this layer; made before anything is drawn, so that nothing moves when it is. */
export function toggle(model) {
  const layers = byId("layers");
  layers.hidden = false;
  const set = (on) => {
    on ? hidden.delete(model) : hidden.add(model);
    for (const kind of ["layer", "halos"]) group(kind, model)?.classList.toggle("off", !on);
    if (model === MERGED) overlay.classList.toggle("has-merged", on);
  };
  if (!layers.querySelector(`input[value="${CSS.escape(model)}"]`)) {
    const box = made("input", { type: "checkbox", value: model, checked: !hidden.has(model), onchange: () => set(box.checked) });
    const label = made("label", { class: `chip tone-${number(model)}` }, box, made("span.dot"), model);
    const place = (one) => (one === MERGED ? Infinity : number(one));
    const next = [...layers.querySelectorAll("input")].find((other) => place(other.value) > place(model));
    next ? next.closest("label").before(label) : layers.append(label);
  }
  set(!hidden.has(model));
}

/** Labels keep their size on the screen whatever the picture's: 13 px, at a corner of their own per model. */
function fit() {
  const view = overlay.viewBox.baseVal;
  if (!view || !view.width || !overlay.clientWidth || !overlay.clientHeight) return;
  const unit = Math.max(view.width / overlay.clientWidth, view.height / overlay.clientHeight);
  for (const tag of overlay.querySelectorAll(".tag")) {
    const [plate, text] = tag.children;
    text.setAttribute("font-size", 13 * unit);
    const wide = text.getComputedTextLength() + 10 * unit;
    const high = 19 * unit;
    const { corner } = tag.dataset;
    const [x0, y0, x1, y1, around] = ["x0", "y0", "x1", "y1", "around"].map((name) => Number(tag.dataset[name]));
    const left = corner === MERGED || corner % 4 < 2 ? x0 : x1 - wide;
    const above = corner === MERGED || corner % 2 === 0;
    const [over, under] = [y0 - around * unit - high, y1 + around * unit];
    const top = above ? (over < view.y ? (around ? under : y0) : over) : Math.min(under, view.height - high);
    const x = Math.max(0, Math.min(left, view.width - wide));
    for (const [name, value] of Object.entries({ x, y: top, width: wide, height: high, rx: 3 * unit })) plate.setAttribute(name, value);
    text.setAttribute("x", x + 5 * unit);
    text.setAttribute("y", top + 14 * unit);
  }
}

new ResizeObserver(fit).observe(stage);
