// Elements. Words are only ever text: nothing that a model says becomes HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** made("p.quiet", {onclick: f}, "words", child, ...): a tag with its classes, attributes, children. */
export function made(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  return filled(document.createElement(tag), classes, attributes, children);
}

export function drawn(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  return filled(document.createElementNS(SVG, tag), classes, attributes, children);
}

function filled(element, classes, attributes, children) {
  if (classes.length) element.setAttribute("class", classes.join(" "));
  if (element.localName === "button") element.type = "button"; // a form is sent by buttons of the page alone
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

/** Fill a label with the input for what a task takes beside the picture, #text; hide it for one that takes nothing. */
export function offerText(label, { text_field: field, text_title: title, text_kind: kind }, attributes) {
  label.hidden = !field;
  const input = kind === "json"
    ? made("textarea", { id: "text", rows: 8, spellcheck: "false", ...attributes })
    : made("input", { id: "text", type: "text", ...attributes });
  label.replaceChildren(...(field ? [`${title} `, input] : []));
}

/** Say it to screen readers, once. */
export function announce(words) {
  byId("heard").textContent = words;
}

/** Say why something did not go; nothing where it does. */
export const trouble = (words) => (byId("trouble").textContent = words);

/** An element that scrolls, for the keyboard and screen readers. */
export const region = (name, title, ...children) => made(name, { tabindex: 0, role: "region", "aria-label": title }, ...children);

/** A table that scrolls sideways. head, and each row: cells, texts or elements; the first cell of a row is its title. */
export function tabled(title, head, rows) {
  const cell = (tag, scope) => (content) => made(tag, { scope }, content);
  return region("div.scroll", title,
    made("table.ratings", {}, made("thead", {}, made("tr", {}, ...head.map(cell("th", "col")))),
      made("tbody", {}, ...rows.map(([first, ...others]) => made("tr", {}, cell("th", "row")(first), ...others.map(cell("td")))))));
}

/** A panel over the page: a card, raw text. */
export function sheet(title, ...body) {
  byId("sheet")?.remove();
  const panel = made("dialog", { id: "sheet", "aria-labelledby": "sheet-title", onclose: () => panel.remove() },
    made("div.sheet-head", {}, made("h2", { id: "sheet-title" }, title),
      made("button.plain", { id: "sheet-close", onclick: () => panel.close() }, "Close")),
    made("div.sheet-body", { id: "sheet-body", tabindex: 0, role: "region", "aria-labelledby": "sheet-title" },
      ...body.filter(Boolean)));
  document.body.append(panel);
  panel.showModal();
}

/** Say in the line below the title how it stands. kind: ready, starting or failed. */
export function stated(text, kind) {
  const line = byId("state");
  if (line.textContent === text) return; // a live region says what changes
  line.textContent = text;
  line.dataset.kind = kind;
}

const dirty = new Set();
let due = false;

/** Run `paint` in the next frame, once however often it is asked for: streams come faster than screens. */
export function soon(paint) {
  dirty.add(paint);
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    const paints = [...dirty];
    dirty.clear();
    for (const one of paints) one();
  });
}
