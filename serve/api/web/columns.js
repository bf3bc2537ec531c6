// The answers: a column per model that fills as it speaks, and the merged card that stands apart.

import { get } from "./wire.js";
import { announce, byId, made, region, sheet, soon } from "./dom.js";
import { lit, overlaid } from "./picture.js";
import { found, listsPlaces, placesOf, words } from "./places.js";
import { MERGED, toned } from "./tones.js";

const seconds = (ms) => `${(ms / 1000).toFixed(ms < 9950 ? 2 : 1)} s`;
const REASONS = { stop: "finished", length: "cut at its limit of words", abort: "stopped" };

export class Column {
  constructor(model) {
    this.model = model;
    this.began = performance.now();
    this.reply = null;
    this.first = null;
    this.waiting = "";
    this.thinking = "";
    this.thought = null;
    this.speech = document.createTextNode("");
    this.clock = made("span.clock", {}, "0.0 s");
    this.facts = made("p.facts", {}, "waiting for its first word");
    this.body = region("div.body", `${model}: answer`, made("p.speech", {}, this.speech));
    this.raw = made("button.plain", { disabled: true, onclick: () => raw(model, this.reply) }, "Raw");
    this.element = made("article", { class: toned(model, "column"), "data-model": model, "aria-label": model },
      made("header", {},
        made("h3", {}, made("span.dot"), made("button.name", { title: "Its card", onclick: () => card(model) }, model)),
        this.clock),
      this.body,
      made("footer", {}, this.facts, this.raw));
    this.paint = () => {
      if (this.reply?.status === "ok") return;
      this.thought?.lastChild.append(this.thinking);
      this.speech.appendData(this.waiting);
      this.thinking = this.waiting = "";
      this.body.scrollTop = this.body.scrollHeight;
      if (this.first !== null && !this.reply) this.facts.textContent = `first word after ${seconds(this.first)}`;
    };
  }

  /** The next words, painted in the next frame together with all others that came by then. */
  says(text, reasoning = "") {
    this.first ??= performance.now() - this.began;
    this.waiting += text;
    if (reasoning) {
      this.thinking += reasoning;
      if (!this.thought) this.body.prepend(this.thought = folded("Reasoning", ""));
    }
    soon(this.paint);
  }

  /** What it waits for, until it speaks. */
  waits(message) {
    if (this.first === null && !this.reply) this.facts.textContent = message;
  }

  tick(now) {
    if (!this.reply) this.clock.textContent = `${((now - this.began) / 1000).toFixed(1)} s`;
  }

  /** Its whole reply; nothing that comes later changes it. Without a size nothing is drawn. */
  ends(reply, { size, aloud = true } = {}) {
    this.reply = reply;
    this.raw.disabled = false;
    this.element.classList.add(reply.status === "ok" ? "done" : "failed");
    this.element.dataset.status = reply.status;
    this.clock.textContent = seconds(reply.latency_ms);
    this.facts.textContent = facts(reply);
    if (reply.status === "ok") {
      const thought = reply.reasoning ? folded("Reasoning", reply.reasoning, this.thought?.open) : null;
      this.body.replaceChildren(...[thought, ...shown(this.model, reply.result)].filter(Boolean));
      if (size) overlaid(this.model, placesOf(reply.result), size);
    } else {
      if (reply.reasoning && !this.thought) this.body.prepend(this.thought = folded("Reasoning", reply.reasoning));
      this.paint();
      this.body.append(made("p.failure", {}, reply.error.message));
    }
    this.body.scrollTop = 0;
    if (aloud) announce(`${this.model}: ${reply.status === "ok" ? words(reply.result) : reply.error.message}`);
  }

  /** Stopped by the one who asked, or by a stream that ended. */
  cut(why) {
    if (this.reply) return;
    const text = this.speech.data + this.waiting;
    this.ends({
      model: this.model, status: "error", result: null, text, error: { code: "stopped", message: why }, confidence: null,
      latency_ms: performance.now() - this.began, ttft_ms: this.first, usage: null, finish_reason: "abort",
    }, { aloud: false });
  }

  /** How far it strayed from the merged answer, 0..1. */
  strayed(share) {
    if (share > 0.005) this.facts.append(` · ${Math.round(100 * share)} % off the merged answer`);
  }
}

/** A text behind its title, which opens it. */
function folded(title, text, open = false) {
  return made("details.folded", { open }, made("summary", {}, title), made("p.speech", {}, text));
}

function facts(reply) {
  const said = [];
  if (reply.ttft_ms !== null) said.push(`first word ${seconds(reply.ttft_ms)}`);
  const tokens = reply.usage?.completion_tokens ?? 0;
  const speaking = reply.latency_ms - (reply.ttft_ms ?? 0);
  if (tokens > 1 && speaking > 1) said.push(`${Math.round((tokens - 1) / (speaking / 1000))} tokens/s`);
  if (tokens) said.push(`${tokens} tokens`);
  if (reply.status === "timeout") said.push("out of time");
  else if (reply.finish_reason) said.push(REASONS[reply.finish_reason]);
  return said.join(" · ") || "no word";
}

/** Later fields that are texts or numbers, by name. How one model counted says nothing of the merged count. */
const further = (layer, result) => Object.entries(result).slice(1)
  .filter(([name, value]) => /string|number/.test(typeof value) && !(name === "by" && layer === MERGED))
  .map(([name, value]) => made("span.quiet", {}, ` ${name} ${value.toPrecision ? +value.toPrecision(4) : value}`));

/** A result as elements: a sentence, or a list of what was found, each linked with its place in the picture. */
function shown(layer, result, supporters = []) {
  if (!listsPlaces(result)) {
    if (result.data) return [made("pre", {}, words(result)), supported(supporters[0])];
    if (result.labels) return [classified(result.labels), supported(supporters[0])];
    return [made("p.said", {}, words(result) || "(nothing)", ...further(layer, result)), supported(supporters[0])];
  }
  const places = placesOf(result);
  if (!places.length) return [made("p.said", {}, "Nothing found.")];
  const list = made("ul.found");
  places.forEach((place, index) => {
    const id = `${layer}/${index}`;
    const on = () => lit(id, true);
    const off = () => lit(id, false);
    list.append(
      found(place, { "data-item": id, tabindex: 0, onpointerenter: on, onpointerleave: off, onfocus: on, onblur: off },
        place.score == null ? null : made("span.quiet", {}, ` · ${Math.round(100 * place.score)}\u00a0%`),
        supported(supporters[index])));
  });
  return [list];
}

function classified(labels) {
  if (!labels.length) return made("p.said", {}, "None of them.");
  return made("ul.found", {}, ...labels.map(({ label, score }) =>
    made("li", {}, made("strong", {}, label), made("span.quiet", {}, ` · ${Math.round(100 * score)}\u00a0%`))));
}

function supported(models) {
  if (!models?.length) return null;
  return made("span.supporters", {}, made("span.sr", {}, " said by "),
    ...models.map((model) => made("span", { class: toned(model, "by") }, made("span.dot"), model)));
}

/** The merged answer: method, agreement, who supports what. */
export class MergedCard {
  constructor(element) {
    this.element = element;
  }

  /** long: whether a list will come, for which room is kept from the start. */
  wait(count, long = false) {
    this.element.hidden = false;
    this.element.className = "merged waiting";
    this.element.classList.toggle("long", long);
    this.element.replaceChildren(
      made("header", {}, made("h3", {}, "Merged")),
      made("div.body", {}, made("p.quiet", {}, count > 1 ? `when all ${count} have answered` : "when it has answered")),
      made("footer", {}, made("p.facts", {}, " ")));
  }

  cut(why = "There is no merged answer.") {
    if (!this.element.classList.contains("waiting")) return;
    this.element.querySelector(".body").replaceChildren(made("p.quiet", {}, why));
  }

  show(merged, { size, aloud = true } = {}) {
    const share = Math.round(100 * merged.agreement);
    const meter = made("meter", { min: 0, max: 1, value: merged.agreement, "aria-label": `Agreement ${share} %` });
    this.element.hidden = false;
    this.element.classList.remove("waiting");
    this.element.classList.add("done");
    this.element.replaceChildren(
      made("header", {}, made("h3", {}, "Merged"),
        made("span.agreement", {}, `${share} % agreement`, meter)),
      region("div.body", "Merged answer",
        ...(merged.result ? shown(MERGED, merged.result, merged.supporters) : [made("p.failure", {}, merged.error?.message ?? "Nothing to merge.")]).filter(Boolean)),
      made("footer", {},
        made("p.facts", {}, `by ${merged.method.replaceAll("_", " ")}, of ${merged.models.join(", ")}`,
          merged.judge?.model ? `, judged by ${merged.judge.model}` : ""),
        made("button.plain", { onclick: () => raw("Merged", merged) }, "Raw")));
    if (size) overlaid(MERGED, placesOf(merged.result), size);
    if (aloud) announce(`Merged, ${share} % agreement: ${merged.error?.message ?? words(merged.result)}`);
  }
}

/** An answer of before, as it was, in the columns and the merged card. */
export function recalled({ replies, merged }, size, card) {
  byId("columns").replaceChildren(...replies.map((reply) => {
    const column = new Column(reply.model);
    column.ends(reply, { size, aloud: false });
    column.strayed((merged?.result && merged.deviations[reply.model]) ?? 0);
    return column.element;
  }));
  card.wait(replies.length, listsPlaces(merged?.result));
  if (merged) card.show(merged, { size, aloud: false });
  else card.cut();
}

function raw(title, reply) {
  const parts = { "Its reasoning": reply.reasoning, "Its words": reply.text, JSON: JSON.stringify(reply, null, 2) };
  sheet(title, ...Object.entries(parts).flatMap(([name, text]) => (text ? [made("h3", {}, name), made("pre", {}, text)] : [])));
}

let cards = null;

/** All cards of the catalogue, by name; fetched once. */
export async function catalogue() {
  cards ??= get("v1/catalog").then((list) => new Map(list.data.map((entry) => [entry.id, entry])));
  try {
    return await cards;
  } catch (error) {
    cards = null;
    throw error;
  }
}

const FIELDS = {
  organization: "Organization", category: "Category", modality: "Modality", released: "Released",
  context_window: "Context window", parameters: "Parameters", licence: "Licence", features: "Features",
  hardware: "Hardware", checked: "Checked on", revision: "Revision",
};

export function value(name, given) {
  if (given == null || given === "" || given.length === 0) return "not stated";
  if (name === "parameters") return large(given);
  if (name === "context_window") return `${given.toLocaleString("en")} tokens`;
  return Array.isArray(given) ? given.join(", ") : String(given);
}

function large(count) {
  const [size, unit] = count >= 1e9 ? [1e9, "billion"] : [1e6, "million"];
  return `${(count / size).toFixed(1).replace(/\.0$/, "")} ${unit}`;
}

async function card(model) {
  let entry;
  try {
    entry = (await catalogue()).get(model);
  } catch (error) {
    return sheet(model, made("p", {}, error.message));
  }
  const list = made("dl");
  for (const [field, title] of Object.entries(FIELDS)) {
    list.append(made("dt", {}, title), made("dd", {}, value(field, entry[field])));
  }
  if (entry.check) list.append(made("dt", {}, "Check of its answers"), made("dd", {}, entry.check.summary));
  list.append(made("dt", {}, "Tasks here"), made("dd", {}, value("skills", entry.skills)));
  sheet(model, made("p", {}, entry.about), list, ...entry.links.map((link) =>
    made("p", {}, made("a", { href: link, rel: "noreferrer" }, link))));
}
