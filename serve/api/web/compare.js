// /compare/a-vs-b: what the catalogue knows of some models, side by side, before anything is asked of them.

import { get, link } from "./wire.js";
import { catalogue, value } from "./columns.js";
import { byId, made, region } from "./dom.js";

/** Show a comparison. Gives the models and which of them are served, or null where a name is unknown. */
export async function compared(names) {
  byId("comparison").hidden = false;
  const cards = await catalogue();
  picker(cards, names);
  if (!names.length) return null;
  const table = await get(`v1/compare?models=${encodeURIComponent(names.join(","))}`);
  const title = table.models.join(" vs ");
  byId("title").textContent = title;
  document.title = `${title} · Diptych`;
  byId("overview").replaceChildren(...table.models.map((name) => overview(cards.get(name), table.served.includes(name))));
  byId("skills").replaceChildren(...skills(table));
  byId("table").hidden = false;
  byId("table").replaceChildren(made("h2", {}, "In detail"), rows(table));
  for (const box of byId("choices").querySelectorAll("input")) box.checked = table.models.includes(box.value);
  return table;
}

function overview(entry, served) {
  return made("li.panel", {},
    made("h2", {}, entry.id),
    made("p", { class: served ? "standing ready" : "standing" }, served ? "served here" : "not served here"),
    ...(entry.overview.length ? entry.overview : [entry.about]).map((paragraph) => made("p", {}, paragraph)),
    made("p.quiet", {}, `${entry.organization} · ${value("parameters", entry.parameters)} parameters · ${value("released", entry.released)}`),
    made("p.quiet", {}, `Tasks: ${value("skills", entry.skills)}`));
}

function skills({ models, served, tasks }) {
  const names = (rows) => rows.map((row) => row.title).join(", ");
  const said = [];
  if (models.length > 1) {
    said.push(made("p", {}, made("strong", {}, "Tasks they share: "), tasks.shared.length
      ? names(tasks.shared) : "none, so there is nothing to show side by side; the table below still compares them."));
  }
  for (const row of tasks.unshared) {
    said.push(made("p.quiet", {}, `Only ${row.models.join(", ")}: ${row.title}.`));
  }
  if (!served.length) said.push(made("p.notice", {}, "None of them is served here, so there is no live demo. Where there are GPUs: ",
    made("code", {}, `diptych serve --models ${models.join(",")}`)));
  else if (served.length < models.length) {
    const absent = models.filter((name) => !served.includes(name));
    said.push(made("p.notice", {}, `Not served here: ${absent.join(", ")}. The live demo asks ${served.join(", ")}.`));
  }
  return said;
}

function rows(table) {
  const head = made("tr", {}, made("th", { scope: "col" }, made("span.sr", {}, "Property")),
    ...table.models.map((name) => made("th", { scope: "col" }, name,
      table.served.includes(name) ? null : made("span.quiet", {}, " (not served here)"))));
  const body = made("tbody");
  const row = (title, differs, cells) => body.append(made("tr", { class: differs ? "differs" : "" },
    made("th", { scope: "row" }, title, differs ? made("span.mark", {}, "differs") : null),
    ...cells.map((cell) => made("td", {}, cell))));
  for (const { name, title, values, differs } of table.rows) row(title, differs, values.map((one) => value(name, one)));
  for (const { title, models, bases } of [...table.tasks.shared, ...table.tasks.unshared]) {
    const how = Object.fromEntries(models.map((name, at) => [name, bases[at]]));
    row(title, new Set(table.models.map((name) => how[name])).size > 1, table.models.map((name) => how[name] ?? "no"));
  }
  const whole = made("table.compared", {}, made("thead", {}, head), body);
  whole.style.setProperty("--models", table.models.length);
  return region("div.scroll", "Comparison table", whole);
}

function picker(cards, names) {
  const items = [...cards.values()].map((entry) => made("li", { "data-text": [entry.id, entry.organization, entry.released].join(" ").toLowerCase() },
    made("label", {}, made("input", { type: "checkbox", value: entry.id }), ` ${entry.id} `,
      entry.served ? made("span.standing.ready", {}, "served here") : null)));
  byId("choices").replaceChildren(...items);
  byId("picker").open = names.length === 0;
  byId("find").addEventListener("input", () => {
    const wanted = byId("find").value.toLowerCase();
    for (const item of items) item.hidden = !item.dataset.text.includes(wanted);
  });
  byId("compare").addEventListener("click", () => {
    const chosen = [...byId("choices").querySelectorAll("input:checked")].map((box) => box.value);
    if (chosen.length) location.href = link(chosen);
  });
}

