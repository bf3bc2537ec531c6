// The report: every picture of a record, the most disagreement first; filters, and a picture's answers side by side.
// It holds ten thousand pictures: only the tiles on the screen are elements, and no step of work is long.

import { announce, byId, drawn, made, stated } from "./dom.js";
import { found, framed, listsPlaces, outline, placesOf, veil, words } from "./places.js";
import { rgb, settle, toned } from "./tones.js";

const SLICE_MS = 8; // work in one go, before the page may answer
const NARROWEST = 210; // pixels of a tile
const GAP = 12;
const BELOW = 98; // pixels of a tile under its picture
const BEYOND = 300; // pixels above and below the screen that have tiles
const LINES = 50; // in a block of the file, as diptych report writes them
const MAX_LINE = 32e6; // characters; one with more is none of a record, and would stand still while it is read
const KEPT_BLOCKS = 60;
const KEPT_URLS = 300;
const TRUTH = "truth";
const OPTIONS = ["models", "merge", "judge", "weights", "lang", "reasoning_effort", "schema"]; // of a request, which are no part of a title

const gallery = byId("gallery");
const entries = [];
const models = [];
const hidden = new Set(); // layers that are not drawn
const tiles = new Map(); // by place in `listed`
const texts = [...document.querySelectorAll("script.block")]; // of lines and their pictures, parsed when they are shown
const blocks = new Map(); // parsed
const wanted = []; // {canvas, entry}: tiles that wait for their pictures
const files = new Map(); // of the folder that was chosen, by path
const urls = new Map();
let listed = [];
let current = 0;
let columns = 1;
let rowHeight = 1;
let frame = 0; // that will paint
let lastTop = 0; // where the screen was in the last frame

const turn = () => new Promise((done) => setTimeout(done));
const percent = (part) => `${Math.round(100 * part)} %`;
const compare = new Intl.Collator(undefined, { numeric: true }).compare;

// Reading

async function start() {
  const given = document.querySelectorAll("script.index");
  const asked = new URLSearchParams(location.search);
  if (!given.length && asked.get("run")) {
    const { bytes } = await import("./wire.js");
    try {
      await read(await bytes(`v1/evaluations/${encodeURIComponent(asked.get("run"))}`));
    } catch (error) {
      return stated(error.message, "failed");
    }
    for (const id of ["task", "model", "how"]) if (asked.has(id)) byId(id).value = asked.get(id);
    return list();
  }
  if (!given.length) {
    byId("open").hidden = false;
    return stated("No record is open.", "starting");
  }
  for (const block of given) {
    for (const [file, task, agreement, labels, said, states, deviations] of JSON.parse(block.textContent)) {
      enter({ file, task, agreement, labels, said, states, deviations, line: null });
    }
    await turn();
  }
  ready(0);
}

/** Read a record of JSON lines from a stream of bytes. */
async function read(stream) {
  entries.length = models.length = 0;
  let parts = []; // of a line that is not whole yet
  let size = 0; // of them, in characters
  let bad = 0;
  let began = performance.now();
  const take = (text) => {
    try {
      if (size > MAX_LINE) throw new RangeError();
      const line = JSON.parse(text);
      if (typeof line.task === "string" && typeof (line.file ?? line.item) === "string") return add(line);
    } catch {
      // counted below
    }
    bad += 1;
  };
  const end = () => {
    const text = parts.join("");
    if (size > MAX_LINE || text.trim()) take(text);
    parts = [];
    size = 0;
  };
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    for (const [at, text] of (value ?? "").split("\n").entries()) {
      if (at) end();
      size += text.length;
      if (size <= MAX_LINE) parts.push(text);
      else parts.length = 0;
      if (performance.now() - began > SLICE_MS) {
        stated(`Reading … ${entries.length.toLocaleString("en")} lines`, "starting");
        await turn();
        began = performance.now();
      }
    }
    if (done) break;
  }
  end();
  ready(bad);
}

/** What the lists need of a line; `diptych report` writes the same into a file's index. */
function add(line) {
  const replies = (line.replies = Array.isArray(line.replies) ? line.replies : []);
  const result = line.merged?.result ?? null;
  const results = [result, line.truth, ...replies.map((reply) => reply.result)];
  enter({
    file: String(line.picture ?? line.file ?? line.item),
    task: line.task,
    agreement: result ? line.merged.agreement : -1,
    labels: [...new Set(results.flatMap(placesOf).map((place) => place.label))],
    said: String((line.error ?? line.merged?.error)?.message ?? words(result)),
    states: Object.fromEntries(replies.map(({ model, status }) => [model, status])),
    deviations: line.merged?.deviations ?? {},
    line,
  });
}

function enter(entry) {
  for (const model in entry.states) if (!models.includes(model)) models.push(model);
  entry.at = entries.length;
  entry.words = `${entry.file} ${entry.said}`.toLowerCase();
  entries.push(entry);
}

function ready(bad) {
  settle(models);
  byId("open").hidden = entries.length > 0;
  byId("filters").hidden = !entries.length;
  const unread = bad ? ` ${bad.toLocaleString("en")} lines are none of a record.` : "";
  if (!entries.length) return stated(`There is no answer in it.${unread}`, "failed");
  stated(`${entries.length.toLocaleString("en")} answers of ${models.join(", ")}.${unread}`, bad ? "starting" : "ready");
  const options = (id, all, values) => {
    byId(id).replaceChildren(made("option", { value: "" }, all), ...values.map((value) => made("option", { value }, value)));
  };
  const tasks = [...new Set(entries.map((entry) => entry.task))];
  const labels = [...new Set(entries.flatMap((entry) => entry.labels))].sort(compare);
  options("task", "all", tasks);
  options("model", "any", models);
  options("label", "all", labels);
  byId("task-field").hidden = tasks.length < 2;
  byId("label-field").hidden = !labels.length;
  list();
}

// Which pictures, in which order

function list() {
  const [sort, task, model, how, label] = ["sort", "task", "model", "how", "label"].map((id) => byId(id).value);
  const from = Number(byId("from").value || 0) / 100;
  const to = Number(byId("to").value || 100) / 100;
  const search = byId("words").value.trim().toLowerCase();
  const about = model ? [model] : models;
  const matches = (entry) => {
    const { states, deviations } = entry;
    if (task && entry.task !== task) return false;
    if (label && !entry.labels.includes(label)) return false;
    if (search && !entry.words.includes(search)) return false;
    if (entry.agreement >= 0 ? entry.agreement < from - 1e-9 || entry.agreement > to + 1e-9 : from > 0) return false;
    if (how === "apart") return about.some((name) => (deviations[name] ?? 0) > 1e-9);
    if (how === "silent") return about.some((name) => states[name] !== "ok");
    return !model || model in states;
  };
  listed = entries.filter(matches);
  if (sort === "name") listed.sort((a, b) => compare(a.file, b.file));
  else listed.sort((a, b) => (sort === "best" ? b.agreement - a.agreement : a.agreement - b.agreement) || a.at - b.at);
  byId("count").textContent = `${listed.length.toLocaleString("en")} of ${entries.length.toLocaleString("en")}`;
  current = 0;
  clear();
  scrollTo({ top: 0, behavior: "instant" });
  lay();
}

// The gallery: tiles for what is on the screen

function clear() {
  for (const tile of tiles.values()) tile.remove();
  tiles.clear();
}

function lay() {
  const width = gallery.clientWidth;
  columns = Math.max(1, Math.floor((width + GAP) / (NARROWEST + GAP)));
  const tileWidth = (width - GAP * (columns - 1)) / columns;
  rowHeight = Math.round(tileWidth * 0.75) + BELOW + GAP;
  gallery.style.height = `${Math.ceil(listed.length / columns) * rowHeight}px`;
  gallery.style.setProperty("--tile", `${tileWidth}px`);
  clear();
  lastTop = -gallery.getBoundingClientRect().top;
  paint();
}

function paint() {
  frame = 0;
  const top = -gallery.getBoundingClientRect().top;
  const flying = Math.abs(top - lastTop) > innerHeight / 2; // nobody sees these pictures: wait for those that stay
  lastTop = top;
  const first = Math.max(0, Math.floor((top - BEYOND) / rowHeight)) * columns;
  const last = Math.min(listed.length, Math.ceil((top + innerHeight + BEYOND) / rowHeight) * columns);
  for (const [place, tile] of tiles) {
    if ((place < first || place >= last) && !tile.contains(document.activeElement)) {
      tile.remove();
      tiles.delete(place);
    }
  }
  if (flying) return soonPaint();
  const began = performance.now();
  for (let place = last - 1; place >= first; place--) { // from the end: each goes before the one that is there
    if (tiles.has(place)) continue;
    if (performance.now() - began > SLICE_MS) return soonPaint();
    tiles.set(place, tiled(listed[place], place));
    gallery.insertBefore(tiles.get(place), tiles.get(place + 1) ?? null);
  }
}

function soonPaint() {
  frame ||= requestAnimationFrame(paint);
}

function tiled(entry, place) {
  const canvas = drawn("svg.overlay", { "aria-hidden": "true" });
  fillSoon(canvas, entry);
  const button = made("button", { tabindex: place === current ? 0 : -1, onclick: () => show(place), onfocus: () => settleOn(place) },
    canvas,
    made("span.tile-name", {}, entry.file),
    made("span.tile-agreement", {}, entry.agreement < 0 ? "no answer" : `${percent(entry.agreement)} agreement`),
    made("span.tile-words", {}, entry.said || "nothing"));
  const tile = made("li.tile", { "aria-posinset": place + 1, "aria-setsize": listed.length }, button);
  tile.style.transform = `translate(calc(${place % columns} * (var(--tile) + ${GAP}px)), ${Math.floor(place / columns) * rowHeight}px)`;
  return tile;
}

function settleOn(place) {
  tiles.get(current)?.firstChild.setAttribute("tabindex", -1);
  current = place;
  tiles.get(place)?.firstChild.setAttribute("tabindex", 0);
}

function go(place) {
  place = Math.min(listed.length - 1, Math.max(0, place));
  const top = gallery.getBoundingClientRect().top + Math.floor(place / columns) * rowHeight;
  if (top < 0 || top + rowHeight > innerHeight) scrollBy({ top: top - (innerHeight - rowHeight) / 2, behavior: "instant" });
  settleOn(place);
  paint();
  if (!tiles.has(place)) {
    tiles.set(place, tiled(listed[place], place));
    gallery.append(tiles.get(place));
  }
  settleOn(place);
  tiles.get(place).firstChild.focus({ preventScroll: true });
}

// Pictures, boxes, masks, points

/** Draw a line's picture and places into an SVG, with masks and titles where `large`. */
function fill(canvas, line, url, large) {
  const { width = 4, height = 3 } = line.image ?? {};
  canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
  if (large) canvas.style.aspectRatio = `${width} / ${height}`;
  canvas.append(drawn("image", { width, height, preserveAspectRatio: "none", href: url }));
  for (const { name, result } of layersOf(line)) canvas.append(layer(name, placesOf(result), large));
}

function layersOf(line) {
  const layers = line.replies.filter((reply) => reply.status === "ok").map((reply) => ({ name: reply.model, result: reply.result }));
  if (line.truth) layers.push({ name: TRUTH, result: line.truth });
  if (line.merged?.result) layers.push({ name: "merged", result: line.merged.result });
  return layers;
}

const classed = (name, more = "") => (name === TRUTH ? `tone-truth ${more}`.trim() : toned(name, more));
const inkOf = (name) => (name === TRUTH ? [33, 106, 64] : rgb(name));

function layer(name, places, large) {
  const group = drawn("g", { class: classed(name, "layer"), "data-layer": name });
  if (hidden.has(name)) group.setAttribute("class", `${group.getAttribute("class")} off`);
  if (!large) { // one element for all of them
    const kind = places[0]?.point ? " point" : "";
    const d = places.map(outline).join("");
    if (name === "merged") group.append(drawn("path", { d, class: `halo${kind}` }));
    group.append(drawn("path", { d, class: `frame${kind}` }));
    return group;
  }
  for (const place of places) {
    const [halo, frame] = framed(place);
    frame.append(drawn("title", {}, place.label));
    group.append(halo, frame);
    if (place.mask) setTimeout(() => halo.isConnected && halo.before(veil(place.mask, inkOf(name), 70))); // each takes its time
  }
  return group;
}

/** Return a line and the URL of its picture: of the chosen folder, else of the one in the file, null where there is none. */
function lineOf(entry) {
  if (entry.line) return [entry.line, fileUrl(entry.file) ?? (entry.line.preview || null)];
  const number = Math.floor(entry.at / LINES);
  if (!blocks.has(number)) blocks.set(number, JSON.parse(texts[number].textContent));
  const [line, preview] = blocks.get(number)[entry.at % LINES];
  if (blocks.size > KEPT_BLOCKS) blocks.delete(blocks.keys().next().value);
  return [line, fileUrl(entry.file) ?? (preview || null)];
}

/** Draw an entry's picture and places into a tile's canvas, unless it has scrolled by till then. */
function fillSoon(canvas, entry) {
  if (!wanted.length) setTimeout(readNext);
  wanted.push({ canvas, entry });
}

function readNext() {
  const began = performance.now();
  while (wanted.length && performance.now() - began < SLICE_MS) {
    const { canvas, entry } = wanted.shift();
    if (canvas.isConnected) fill(canvas, ...lineOf(entry), false);
  }
  if (wanted.length) setTimeout(readNext);
}

function fileUrl(name) {
  const file = files.get(name);
  if (!file) return null;
  if (!urls.has(name)) {
    urls.set(name, URL.createObjectURL(file));
    if (urls.size > KEPT_URLS) {
      const [oldest, url] = urls.entries().next().value;
      URL.revokeObjectURL(url);
      urls.delete(oldest);
    }
  }
  return urls.get(name);
}

// A picture and its answers

let shown = 0; // closing gives the focus back to the tile that opened, which settles there

function show(place) {
  shown = place;
  settleOn(place);
  const entry = listed[place];
  const [line, url] = lineOf(entry);
  byId("item-title").textContent = entry.file;
  const written = Object.entries(line.asked ?? {}).filter(([name, value]) => !OPTIONS.includes(name) && (Array.isArray(value) || typeof value === "string"));
  const question = written.map(([, value]) => [value].flat().join("; ")).filter(Boolean).join("; ");
  byId("item-place").textContent = `${place + 1} of ${listed.length} · ${entry.task}${question ? `: ${question}` : ""}`;
  const canvas = drawn("svg.overlay", { role: "img", "aria-label": `${entry.file}, with what was found` });
  fill(canvas, line, url, true);
  byId("item-stage").replaceChildren(canvas);
  const placed = layersOf(line).filter(({ result }) => placesOf(result).length);
  byId("layers").closest("fieldset").hidden = !placed.length;
  byId("layers").replaceChildren(...placed.map(({ name }) => made("label", { class: classed(name, "chip") },
    made("input", { type: "checkbox", checked: !hidden.has(name), onchange: (event) => toggle(name, event.target.checked) }),
    made("span.dot"), name)));
  const columnsOf = [
    line.merged ? answer("merged", line.merged.result, `${percent(line.merged.agreement)} agreement · by ${line.merged.method}`, line.merged.error?.message ?? null) : null,
    line.error ? made("article.column", {}, made("header", {}, made("h3", {}, "No answer")), made("p.body.failure", {}, String(line.error.message))) : null,
    line.truth ? answer(TRUTH, line.truth, "") : null,
    ...line.replies.map((reply) => reply.status === "ok" ? answer(reply.model, reply.result, facts(line, reply))
      : answer(reply.model, null, facts(line, reply), reply.error?.message ?? reply.status, reply.text)),
  ];
  byId("answers").replaceChildren(...columnsOf.filter(Boolean));
  byId("before").disabled = place === 0;
  byId("after").disabled = place === listed.length - 1;
  if (!byId("item").open) byId("item").showModal();
  const focused = document.activeElement;  // its element may be gone, or be a button that is off now: keys would be lost
  if (!byId("item").contains(focused) || focused.disabled) byId("item-body").focus();
  byId("item-body").scrollTop = 0;
}

function facts(line, reply) {
  const apart = line.merged?.deviations?.[reply.model];
  const parts = [apart == null ? null : apart < 1e-9 ? "as merged" : `${percent(apart)} from merged`,
    reply.latency_ms == null ? null : `${Math.round(reply.latency_ms)} ms`];
  return parts.filter(Boolean).join(" · ");
}

function answer(name, result, about, failure = null, text = "") {
  const places = listsPlaces(result) ? placesOf(result) : [];
  const body = failure !== null
    ? [made("p.failure", {}, String(failure)), text ? made("p.speech", {}, text) : null]
    : places.length
      ? [made("ul.found", {}, ...places.map((place) =>
        found(place, {}, place.score != null && made("span.quiet", {}, ` · ${Number(place.score).toFixed(2)}`))))]
      : [made("p.said", {}, words(result) || "(nothing)")];
  return made("article", { class: classed(name, "column"), "data-model": name },
    made("header", {}, made("h3", {}, made("span.dot"), name), made("span.clock", {}, about)),
    made("div.body", {}, ...body.filter(Boolean)));
}

function toggle(name, on) {
  on ? hidden.delete(name) : hidden.add(name);
  for (const group of document.querySelectorAll(".layer")) if (group.dataset.layer === name) group.classList.toggle("off", !on);
}

function walk(step) {
  const place = current + step;
  if (place < 0 || place >= listed.length) return;
  show(place);
  announce(`${listed[place].file}, ${place + 1} of ${listed.length}`);
}

// What people press

for (const id of ["sort", "task", "model", "how", "label", "from", "to"]) byId(id).addEventListener("change", list);
let typing = 0;
byId("words").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(list, 150);
});
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("choose-record").addEventListener("click", () => byId("record").click());
byId("record").addEventListener("change", () => byId("record").files[0] && read(byId("record").files[0].stream()));
byId("choose-folder").addEventListener("click", () => byId("folder").click());
byId("folder").addEventListener("change", () => {
  for (const file of byId("folder").files) files.set(file.webkitRelativePath.split("/").slice(1).join("/"), file);
  clear();
  paint();
});
byId("before").addEventListener("click", () => walk(-1));
byId("after").addEventListener("click", () => walk(1));
byId("close").addEventListener("click", () => byId("item").close());
byId("item").addEventListener("close", () => go(shown));
byId("item").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, k: -1, ArrowRight: 1, j: 1 }[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  walk(step);
});
gallery.addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.floor(innerHeight / rowHeight)) * columns;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page, k: -1, j: 1 };
  const place = event.key === "Home" ? 0 : event.key === "End" ? listed.length - 1 : current + steps[event.key];
  if (Number.isNaN(place) || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  go(place);
});
addEventListener("scroll", soonPaint, { passive: true });
let lastWidth = 0;
new ResizeObserver(() => {
  if (gallery.clientWidth !== lastWidth && listed.length) lay();
  lastWidth = gallery.clientWidth;
}).observe(document.body);
start();
