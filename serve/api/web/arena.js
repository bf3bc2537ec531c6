// The arena: a picture and a task, two answers without names, a vote, then the names and the board.

import { Refusal, explained, get, post } from "./wire.js";
import { announce, byId, drawn, made, offerText, region, stated, tabled, trouble } from "./dom.js";
import { drawnScene, loaded, marked, opens, shipped, take } from "./pictures.js";
import { edges, found, framed, listsPlaces, placesOf, veil, words } from "./places.js";

const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "tie", ArrowDown: "both_bad" };
const TRIES = 4; // duels that are asked for: one of them may have a model that gives no answer in time
const SEATS = ["left", "right"];
const ballot = [...document.querySelectorAll("[data-choice]")];
let tasks = [];
let task = null;
let picture = null; // as pictures.js loads one
let duel = null; // the one that waits for its vote
let busy = false;
let turn = 0; // counts what was cleared: an answer or a vote that comes after that is for no seat

const usable = () => (byId("go").disabled = busy || !task || !picture);

async function start() {
  try {
    await get("v1/arena/board?task=vqa");
    const { data } = await get("v1/models");
    tasks = data.filter((entry) => entry.diptych.kind === "task" && entry.diptych.models.length > 1);
  } catch (error) {
    return stated(explained(error), "failed");
  }
  if (!tasks.length) return stated("A duel takes two models that can do the same task.", "failed");
  stated("Two models are drawn for each duel. Their names come after your vote.", "ready");
  byId("tasks").replaceChildren(...tasks.map(({ id, diptych }) =>
    made("label.chip", {}, made("input", { type: "radio", name: "task", value: id, onchange: () => pick(id) }), diptych.title)));
  pick((tasks.find((entry) => entry.id === "caption") ?? tasks[0]).id);
  const [first] = Object.keys(await shipped(choose));
  if (first && !picture) await choose(first);
}

function pick(id) {
  task = tasks.find((entry) => entry.id === id);
  const { text_field: field, example } = task.diptych;
  for (const radio of byId("tasks").querySelectorAll("input")) radio.checked = radio.value === id;
  offerText(byId("text-field"), task.diptych, {});
  if (field) byId("text").value = [example[field]].flat().join("; ");
  clear();
  usable();
  board();
}

const choose = (name) => take(drawnScene(name), put);

function put(next) {
  picture = next;
  marked(picture);
  Object.assign(byId("picture"), { src: picture.url, alt: picture.alt });
  clear();
  usable();
}

function clear() {
  turn++;
  duel = null;
  for (const button of ballot) button.disabled = true;
  for (const seat of SEATS) {
    byId(seat).classList.remove("chosen");
    byId(seat).replaceChildren(made("header", {}, made("h2", {}, seat === "left" ? "Left" : "Right")));
  }
}

async function begin() {
  busy = true;
  usable();
  clear();
  trouble("");
  announce("Asking two models.");
  const mine = turn;
  const { blob, name, url, alt, width, height } = picture;
  const form = new FormData();
  form.set("image", blob, name);
  const field = task.diptych.text_field;
  if (field) form.set(field, byId("text").value);
  for (const seat of SEATS) byId(seat).append(made("p.body.quiet", {}, "waits for both answers"));
  try {
    const given = await asked(task.id, form);
    if (mine !== turn) throw new Error("The picture or the task was changed meanwhile. Start a duel again.");
    for (const seat of SEATS) {
      byId(seat).lastChild.replaceWith(region("div.body", `${seat} answer`,
        ...shown(given[seat].result, { url, alt, width, height })));
    }
    duel = given;
    for (const button of ballot) button.disabled = false;
    announce("Both answers are here. Vote by the arrow keys: left, right, up for a tie, down for both bad.");
  } catch (error) {
    clear();
    trouble(explained(error));
  }
  busy = false;
  usable();
}

async function asked(id, form) {
  for (let left = TRIES - 1; ; left--) {
    try {
      return await post(`v1/arena/duels/${id}`, form);
    } catch (error) {
      if (error.code !== "duel_incomplete" || !left) throw error;
    }
  }
}

/** An answer as elements: its words, or its boxes, masks and points drawn over the picture, in the same colour for both seats. */
function shown(result, { url, alt, width, height }) {
  if (!listsPlaces(result)) return [made("p.said", {}, words(result) || "(nothing)")];
  const canvas = drawn("svg.seen", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${alt}, with what was found` },
    drawn("image", { href: url, width, height }));
  const unit = width / 320;
  for (const place of placesOf(result)) {
    const { label, mask, point } = place;
    const [x, y] = edges(place);
    if (mask) canvas.append(veil(mask, [11, 111, 184], 70));
    canvas.append(...framed(place),
      drawn("text", { x: x + 3 * unit, y: Math.max(12 * unit, y - (point ? 9 : 3) * unit), "font-size": 11 * unit }, label));
  }
  const list = made("ul.found", {}, ...placesOf(result).map((place) => found(place)));
  return [canvas, placesOf(result).length ? list : made("p.said", {}, "Nothing found.")];
}

async function vote(choice) {
  if (!duel) return;
  const { id } = duel;
  const mine = turn;
  duel = null;
  for (const button of ballot) button.disabled = true;
  try {
    const told = await post("v1/arena/votes", JSON.stringify({ duel: id, choice }));
    if (mine !== turn) return board();
    for (const seat of SEATS) {
      const { model, latency_ms: ms, tokens } = told[seat];
      byId(seat).querySelector("h2").textContent = model;
      byId(seat).append(made("footer", {}, made("p.facts", {}, `${Math.round(ms)} ms · ${tokens} tokens`)));
      byId(seat).classList.toggle("chosen", choice === seat);
    }
    announce(`Voted. Left was ${told.left.model}, right was ${told.right.model}.`);
    byId("go").focus();
    board();
  } catch (error) {
    if (mine !== turn) return;
    trouble(error instanceof Refusal ? error.message : "The vote did not arrive. Vote again: it counts once.");
    duel = { id };
    for (const button of ballot) button.disabled = false;
  }
}

async function board() {
  const id = task.id;
  const given = await get(`v1/arena/board?task=${id}`).catch(() => null);
  if (!given || task.id !== id) return;
  const head = ["Model", "Rank", "Rating", "Interval", "Duels", "Won", "Lost", "Tied", "Bad", "Length", "ms"];
  const rows = given.models.map((row) => [row.model, row.rank, Math.round(row.rating), `${Math.round(row.low)} to ${Math.round(row.high)}`,
    row.duels, row.wins, row.losses, row.ties, row.both_bad, Math.round(row.length), Math.round(row.latency_ms)]);
  byId("board").replaceChildren(rows.length ? tabled("Board", head, rows)
    : made("p.body.quiet", {}, `Nobody has voted on ${task.diptych.title.toLowerCase()} yet.`));
  byId("cautions").replaceChildren(...(rows.length ? given.cautions : []).map(({ message }) => made("li", {}, message)));
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!byId("go").disabled) begin();
});
opens("choose", "file", ([file]) => take(loaded(file, { name: file.name }), put));
for (const button of ballot) button.addEventListener("click", () => vote(button.dataset.choice));
addEventListener("keydown", (event) => {
  if (!duel || event.repeat || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.target.matches?.("input, textarea, .scroll") || !(event.key in KEYS)) return;
  event.preventDefault();
  vote(KEYS[event.key]);
});
clear();
start();
