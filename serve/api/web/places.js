// What a result holds: objects with their places in the picture (boxes, some with masks, and points), or an answer.

import { drawn, made } from "./dom.js";
import { painted } from "./rle.js";

const FIELDS = ["boxes", "points"];

/** The objects of a result, to be drawn; none of one that has no places. */
export const placesOf = (result) => FIELDS.map((name) => result?.[name]).find(Array.isArray) ?? [];

/** Whether a result is a list of places, and not a text or a number. */
export const listsPlaces = (result) => FIELDS.includes(Object.keys(result ?? {})[0]);

/** A result in words: how many of what were found, or its first field, a text, a number, labels, an object. */
export function words(result) {
  if (!listsPlaces(result)) {
    const [answer] = Object.values(result ?? {});
    if (Array.isArray(answer)) return answer.map((item) => item?.label ?? item).join(" · ");
    return answer !== null && typeof answer === "object" ? JSON.stringify(answer, null, 2) : String(answer ?? "");
  }
  const counts = new Map();
  for (const { label } of placesOf(result)) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].map(([label, count]) => (count > 1 ? `${count} × ${label}` : label)).join(", ") || "nothing found";
}

/** x0 y0 x1 y1 of a box, x y of a point, in whole pixels. */
export const pixels = ({ box, point }) => (box ?? point).map((value) => Math.round(value)).join(" ");

/** The outline of a place as an SVG path: a point is a line without length, which its round ends make a dot. */
export function outline({ box, point }) {
  if (point) return `M${point[0]} ${point[1]}h0.01`;
  const [x0, y0, x1, y1] = box;
  return `M${x0} ${y0}H${Math.max(x0, x1)}V${Math.max(y0, y1)}H${x0}Z`;
}

/** A place's halo, and the frame over it, as SVG. more: the frame's attributes. */
export function framed(place, more = {}) {
  const [d, kind] = [outline(place), place.point ? " point" : ""];
  return [drawn("path", { d, class: `halo${kind}` }), drawn("path", { d, class: `frame${kind}`, ...more })];
}

/** A mask as an SVG image in a colour, [r, g, b]. */
export const veil = (mask, ...colour) =>
  drawn("image", { href: painted(mask, ...colour), width: mask.size[1], height: mask.size[0], preserveAspectRatio: "none" });

/** A place in a list of what was found. */
export const found = (place, attributes = {}, ...more) =>
  made("li", attributes, made("strong", {}, place.label), made("span.quiet", {}, ` ${pixels(place)}`), ...more);

/** left, top, right, bottom. */
export const edges = ({ box, point }) => box ?? [...point, ...point];
