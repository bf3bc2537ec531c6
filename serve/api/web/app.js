// The page: asks, shows the columns as they fill, keeps the address in step.

import { fieldsOf, fromUrl, toUrl } from "./asked.js";
import { Refusal, ask, explained, get, link, named } from "./wire.js";
import { Column, MergedCard, catalogue, recalled } from "./columns.js";
import { announce, byId, made, offerText, stated, trouble } from "./dom.js";
import { clear, show, toggle } from "./picture.js";
import { drawnScene, loaded, marked, opens, shipped, take } from "./pictures.js";
import { words } from "./places.js";
import { MERGED, settle, toned } from "./tones.js";

const MAX_HISTORY = 24;
const LIST = new Intl.ListFormat("en");

const merged = new MergedCard(byId("merged"));
const typed = {}; // what was typed, per task
let tasks = []; // as /v1/models describes them; example: the phrases, or the text as the only one
const taskOf = (id) => tasks.find((one) => one.id === id);
let models = []; // names served here (on a comparison: those of it)
let ready = null; // the last /ready
let scenes = {};
let task = null;
let chosen = null; // names, or null for all able ones
let picture = null;
let asking = null; // {controller, columns, picture} while an answer comes
let last = null; // the last answer: {asked, answer, picture}
const before = []; // can be shown again, the newest first

// What is served

async function start() {
  const names = named();
  if (names) {
    try {
      const { compared } = await import("./compare.js"); // no part of a first visit
      const table = await compared(names);
      if (table) {
        await offer({ only: table.served, shared: table.tasks.shared.map((row) => row.task) });
        byId("bench").hidden = !tasks.length;
      } else byId("bench").hidden = true;
    } catch (error) {
      byId("bench").hidden = true;
      byId("toys").hidden = true;
      return stated(explained(error), "failed");
    }
  } else {
    await offer({});
  }
  scenes = await shipped(choose);
  applied(fromUrl());
}

const gone = (error) => stated(`${explained(error)} Asking it again every two seconds.`, "failed");

/** Fill in tasks and models, once the server says which it has. */
async function offer({ only, shared }) {
  for (;;) {
    try {
      const [{ data: list }, cards] = await Promise.all([get("v1/models"), catalogue()]);
      const served = [...cards.values()].filter((entry) => entry.served);
      byId("toys").hidden = !served.length || !served.every((entry) => entry.toy);
      const entries = list.filter((entry) => entry.diptych.kind === "model");
      settle(entries.map((entry) => entry.id));
      models = entries.map((entry) => entry.id).filter((name) => !only || only.includes(name));
      tasks = list.filter((entry) => entry.diptych.kind === "task")
        .map(({ id, diptych: { text_field: field, example, models: able, ...about } }) =>
          ({ ...about, id, text_field: field, example: field && [example[field]].flat(), models: able.filter((name) => models.includes(name)) }))
        .filter((one) => one.models.length && (!shared || shared.includes(one.id)));
      break;
    } catch (error) {
      gone(error);
      await new Promise((done) => setTimeout(done, 2000));
    }
  }
  byId("to-compare").href = link(models);
  byId("tasks").replaceChildren(...tasks.map((one) =>
    made("label.chip", { title: `Asked of ${one.models.join(", ")}` },
      made("input", { type: "radio", name: "task", value: one.id, onchange: () => pick(one.id) }), one.title,
      made("span.quiet.count", { "aria-label": `${one.models.length} models` }, `${one.models.length}`))));
  watch();
}

/** Ask /ready for as long as the page is open: often while something starts, seldom when all is well. */
async function watch() {
  let again = 2000;
  try {
    ready = await get("ready", [503]);
    standing();
    if (ready.status === "ready" && !Object.values(ready.models).includes("starting")) again = 10_000;
  } catch (error) {
    ready = null;
    gone(error);
  }
  usable();
  setTimeout(watch, again);
}

function standing() {
  const of = (state) => Object.keys(ready.models).filter((name) => ready.models[name] === state);
  const [able, asleep, starting, failed] = ["ready", "asleep", "starting", "failed"].map(of);
  const step = (name) => `${name} ${ready.details[name]?.step ?? ""} (${Math.round(ready.details[name]?.since_s ?? 0)} s)`;
  const why = (name) => `${name}: ${ready.details[name]?.step ?? "unknown reason"}`;
  for (const chip of document.querySelectorAll("#models label")) chip.dataset.state = ready.models[chip.dataset.model] ?? "";
  const count = able.length;
  const open = `${count} of ${Object.keys(ready.models).length} models ready`;
  if (!Object.keys(ready.models).length) stated("No model is served here.", "failed");
  else if (starting.length) stated(`${count ? open : "Models are loading"}. Starting: ${starting.map(step).join("; ")}.`, "starting");
  else if (!count && !asleep.length) stated(`No model can answer. ${failed.map(why).join("; ")}`, "failed");
  else if (failed.length) stated(`${open}. Failed: ${failed.map(why).join("; ")}`, "failed");
  else if (asleep.length) stated(`${open}. Wakes when it is asked: ${asleep.join(", ")}`, "ready");
  else stated(`${LIST.format(able)} ${count === 1 ? "is" : "are"} ready.`, "ready");
}

// The question

function pick(id) {
  task = taskOf(id) ?? null;
  for (const radio of byId("tasks").querySelectorAll("input")) radio.checked = radio.value === task?.id;
  offerText(byId("text-field"), task ?? {}, { placeholder: task?.example?.join("; "), oninput: written });
  if (task?.text_field) byId("text").value = typed[task.id] ?? suggested();
  byId("multiple-field").hidden = !task?.multiple;
  byId("models").replaceChildren(...(task?.models ?? []).map((name) =>
    made("label", { class: toned(name, "chip"), "data-model": name, "data-state": ready?.models[name] ?? "" },
      made("input", { type: "checkbox", value: name, checked: !chosen || chosen.includes(name), onchange: rechosen }),
      made("span.dot"), name)));
  usable();
  addressed();
}

function written() {
  typed[task.id] = byId("text").value;
  addressed();
}

/** The example's words; of phrases what the shipped scene shows: one where the example has one. */
function suggested() {
  const shapes = scenes[picture?.scene]?.shapes ?? [];
  if (task.text_kind !== "phrases" || !shapes.length) return task.example.join("; ");
  const labels = [...new Set(shapes.map((shape) => shape.label))];
  const most = task.example.length === 1 ? 1 : (task.max_phrases ?? undefined);
  return (labels.length < task.min_phrases ? task.example : labels.slice(0, most)).join("; ");
}

function rechosen() {
  const on = [...byId("models").querySelectorAll("input:checked")].map((box) => box.value);
  chosen = on.length === task.models.length ? null : on;
  usable();
  addressed();
}

function usable() {
  const able = Boolean(task && picture && ready && byId("models").querySelector("input:checked"));
  byId("go").disabled = !able || Boolean(asking);
  byId("stop").disabled = !asking;
  byId("again").disabled = !last || Boolean(asking);
}

function addressed() {
  if (task) history.replaceState(null, "", toUrl({ ...current(), models: chosen }));
}

function current() {
  const text = task.text_field ? byId("text").value.trim() : "";
  return {
    task: task.id, title: task.title, field: task.text_field, text, heading: task.text_kind === "json" ? "" : text,
    multiple: Boolean(task.multiple) && byId("multiple").checked,
    least: byId("least").value / 100 || null,
    models: chosen?.filter((name) => task.models.includes(name)) ?? (named() ? task.models : null),
    scene: picture?.scene ?? null, name: picture?.name ?? "", type: picture?.blob.type ?? "",
  };
}

/** What the address asks for; the first task and scene where it says nothing. */
async function applied(given) {
  const wrong = [];
  if (given.task && !tasks.some((one) => one.id === given.task)) wrong.push(`No model that is served here can do ${given.task}.`);
  const unknown = given.models?.filter((name) => !models.includes(name)) ?? [];
  if (unknown.length) wrong.push(`Not served here: ${unknown.join(", ")}.`);
  chosen = given.models?.filter((name) => models.includes(name)) ?? null;
  if (!chosen?.length) chosen = null;
  const names = Object.keys(scenes);
  const wanted = names.includes(given.scene) ? given.scene : names[0];
  const id = tasks.some((one) => one.id === given.task) ? given.task : taskOf("caption")?.id ?? tasks[0]?.id;
  const text = given.written.get(taskOf(id)?.text_field);
  if (text) typed[id] = text;
  optioned(given);
  if (id) pick(id); // before the scene has come: whoever is quick to pick another task keeps it
  if (wanted && (!picture || picture.scene)) await choose(wanted);
  if (wrong.length) trouble(wrong.join(" "));
}

function optioned({ multiple, least }) {
  byId("multiple").checked = multiple;
  byId("least").value = Math.round(100 * least) || "";
}

// The picture

const choose = (name) => take(drawnScene(name), put);

function put(next) {
  const replaced = picture;
  picture = next;
  if (!asking && last?.picture !== next) forget();
  release(replaced);
  show(picture);
  marked(picture);
  if (task?.text_field && !(task.id in typed)) byId("text").value = suggested();
  usable();
  addressed();
}

/** Take the last answers away. */
function forget() {
  last = null;
  merged.element.hidden = byId("share").hidden = true;
  for (const id of ["columns", "cost"]) byId(id).replaceChildren();
}

/** Free a picture that cannot be shown again. */
function release(one) {
  const kept = [{ picture }, asking, last, ...before];
  if (one && !kept.some((other) => other?.picture === one)) URL.revokeObjectURL(one.url);
}

function given(files) {
  const file = files?.[0];
  if (file) take(loaded(file, { name: file.name || "pasted picture" }), put);
}

function listen() {
  opens("choose", "file", given);
  opens("photograph", "camera", given);
  addEventListener("paste", (event) => event.clipboardData.files.length && given(event.clipboardData.files));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("stage").classList.add("over");
  });
  addEventListener("dragleave", (event) => event.relatedTarget || byId("stage").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    byId("stage").classList.remove("over");
    given(event.dataTransfer.files);
  });
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!byId("go").disabled) pose(current(), picture);
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      byId("ask").requestSubmit();
    }
  });
  for (const id of ["multiple", "least"]) byId(id).addEventListener("change", addressed);
  byId("stop").addEventListener("click", () => asking?.controller.abort());
  byId("again").addEventListener("click", () => {
    if (last.picture !== picture) put(last.picture);
    pose(last.asked, last.picture);
  });
}

// The answer

async function pose(asked, about) {
  trouble("");
  asking?.controller.abort();
  const form = new FormData();
  form.set("image", about.blob, about.name);
  for (const [name, value] of fieldsOf(asked)) form.set(name, value);
  form.set("stream", "true");
  const names = asked.models ?? taskOf(asked.task).models;
  const columns = new Map(names.map((name) => [name, new Column(name)]));
  const controller = new AbortController();
  const answer = { id: null, size: { width: about.width, height: about.height }, merged: null, replies: [] };
  const now = { controller, columns, picture: about };
  asking = now;
  forget();
  const shown = () => picture === about ? answer : {}; // else another one was chosen meanwhile
  clear();
  const placed = Boolean(taskOf(asked.task).places);
  if (placed) for (const layer of [...names, MERGED]) toggle(layer);
  byId("columns").replaceChildren(...[...columns.values()].map((column) => column.element));
  merged.wait(columns.size, placed);
  usable();
  announce(`Asking ${names.join(", ")}.`);
  tick(now);
  if (byId("answers").getBoundingClientRect().top > innerHeight - 120) {
    byId("answers").scrollIntoView();
  }
  let why;
  try {
    for await (const { event, data } of ask(asked.task, form, controller.signal)) {
      if (event === "opened") answer.id = data.id;
      else if (event === "waiting") columns.get(data.model)?.waits(data.message);
      else if (event === "delta") columns.get(data.model)?.says(data.text, data.reasoning);
      else if (event === "reply") {
        answer.replies.push(data);
        columns.get(data.model)?.ends(data, shown());
      } else if (event === "merged") {
        answer.merged = data;
        merged.show(data, shown());
        for (const [name, share] of Object.entries(data.result ? data.deviations : {})) columns.get(name)?.strayed(share);
      } else if (event === "error") why = data.error.message;
    }
  } catch (error) {
    if (controller.signal.aborted) why = "Stopped.";
    else if (error instanceof Refusal) why = refused(error);
    else why = error instanceof TypeError ? "The server went away while it answered." : error.message;
  }
  if (why && !controller.signal.aborted) trouble(why);
  for (const column of columns.values()) {
    if (answer.merged && !column.reply) column.element.remove(); // it was not asked: the question is not for it
    else column.cut(why ?? "It gave no reply.");
  }
  merged.cut(why);
  if (asking !== now) return; // another question was asked meanwhile
  asking = null;
  answer.replies.sort((one, other) => names.indexOf(one.model) - names.indexOf(other.model));
  last = { asked, answer, picture: about };
  finished(last);
  if (answer.replies.length) remember(last);
  usable();
}

async function finished({ answer }) {
  const parts = [import("./share.js"), import("./cost.js"), catalogue().catch(() => new Map())]; // no part of a first visit
  const [{ offerSharing }, { costs }, cards] = await Promise.all(parts);
  if (last?.answer !== answer) return;
  offerSharing(last);
  byId("cost").replaceChildren(...costs(answer.replies, cards));
}

function refused(error) {
  const place = error.param ? ` (${error.param})` : "";
  return `${error.message}${error.message.includes(error.param) ? "" : place}`;
}

function tick(now) {
  if (asking !== now) return;
  const time = performance.now();
  for (const column of now.columns.values()) column.tick(time);
  requestAnimationFrame(() => tick(now));
}

// This visit's questions

function remember(one) {
  const { asked, answer, picture: about } = one;
  byId("history").hidden = false;
  const said = answer.merged ? answer.merged.error?.message ?? words(answer.merged.result) : "no merged answer";
  const list = byId("asked");
  list.prepend(made("li", {}, made("button", { onclick: () => recall(one) },
    made("img", { src: about.url, alt: "", width: 56, height: 42 }),
    made("span", {}, made("strong", {}, asked.title), ` ${asked.heading} `, made("span.quiet", {}, said)))));
  before.unshift(one);
  while (before.length > MAX_HISTORY) {
    list.lastElementChild.remove();
    release(before.pop().picture);
  }
}

/** Show an answer of before as it was. */
function recall(one) {
  if (asking) return;
  const { asked, answer } = one;
  put(one.picture);
  chosen = asked.models;
  typed[asked.task] = asked.text;
  optioned(asked);
  if (tasks.some((entry) => entry.id === asked.task)) pick(asked.task);
  recalled(answer, answer.size, merged);
  last = one;
  finished(one);
  usable();
}

listen();
start();
