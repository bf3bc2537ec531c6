// Evaluated runs: a table for each task, of the newest run of a labelled set by the same models; older ones are its repeats.

import { at, explained, get } from "./wire.js";
import { byId, made, stated, tabled } from "./dom.js";

const number = (value, digits = 1) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const signed = (value) => `${value > 0 ? "+" : ""}${number(value)}`;
const whole = (value) => (value < 0.05 && value > -0.05 ? 0 : value); // no -0.0
const models = (run) => [...new Set(run.tasks.flatMap((task) => task.rows.map((row) => row.name)))].join(", ");

let again, shownNames;
let begun = null; // begin.js, where evaluations may be started

/** Show the runs; again each second while one that was started here is under way. */
async function show() {
  let runs, started, bounds;
  try {
    ({ data: runs, started, bounds } = await get("v1/evaluations"));
    if (bounds && !begun) {
      const form = await import("./begin.js");
      await form.allow(bounds, show);
      begun = form;
    }
  } catch (error) {
    again = setTimeout(show, 2000);
    return stated(explained(error), "failed");
  }
  clearTimeout(again);
  if (begun?.list(started, show)) again = setTimeout(show, 1000);
  if (!runs.length) return stated("No run is kept yet: diptych evaluate toy --keep FOLDER, with the folder of gateway.evaluations.", "starting");
  const groups = new Map(); // by labelled set and models, the newest run first
  for (const run of runs) {
    const key = `${run.labelled_set} ${models(run)}`;
    groups.set(key, [...(groups.get(key) ?? []), run]);
  }
  stated(`${runs.length} ${runs.length === 1 ? "run" : "runs"} of ${groups.size} ${groups.size === 1 ? "comparison" : "comparisons"}.`, "ready");
  const names = runs.map(({ name }) => name).join();
  if (names === shownNames) return; // what a person reads stays as it is
  shownNames = names;
  byId("runs").replaceChildren(...[...groups.values()].map(shown));
}

function shown(repeats) {
  const [run] = repeats;
  const when = new Date(1000 * run.at).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
  return made("section.run", { "aria-label": run.name },
    made("h2", {}, `${run.target}, ${when}`),
    made("p.quiet", {}, repeats.length > 1 ? `The newest of ${repeats.length} runs.` : "One run."),
    ...run.tasks.flatMap((task) => table(run, task, repeats)));
}

function table(run, task, repeats) {
  const measures = Object.entries(task.measures);
  const to = (row, more = {}) => {
    const url = at("report");
    url.search = new URLSearchParams({ run: run.name, task: task.task, ...(row.merged ? {} : { model: row.name }), ...more });
    return url.href;
  };
  const costs = task.rows.map((row) => row.cost).filter(Boolean);
  const has = { word: costs.some((cost) => cost.first_word_s != null), price: costs.some((cost) => cost.price_per_1000 != null), energy: costs.some((cost) => cost.energy_wh_per_1000 != null) };
  const failed = task.rows.some((row) => row.failed);
  const head = ["Model", ...measures.map(([name, lower]) => `${name} ${lower ? "↓" : "↑"}`), failed && "no answer", has.word && "first word",
    "seconds", "tokens in", "tokens out", has.price && "price per 1,000", has.energy && "energy per 1,000"].filter((title) => title !== false);
  const body = task.rows.map((row) => {
    const { cost } = row;
    const cells = measures.map(([name]) => score(row, name, task, repeats, to(row)));
    const linked = (text, more) => (text == null ? "–" : made("a", { href: to(row, more) }, text));
    if (failed) cells.push(linked(String(row.failed), { how: "silent" }));
    if (has.word) cells.push(linked(cost?.first_word_s == null ? null : `${number(cost.first_word_s, 2)} s`));
    for (const text of [cost && `${number(cost.seconds, 2)} s`, cost && number(cost.prompt_tokens, 0), cost && number(cost.completion_tokens, 1)]) cells.push(linked(text));
    if (has.price) cells.push(linked(cost?.price_per_1000 == null ? null : `${number(cost.price_per_1000, 2)} ${cost.price.currency}`));
    if (has.energy) cells.push(linked(cost?.energy_wh_per_1000 == null ? null : `${number(cost.energy_wh_per_1000, 1)} Wh`));
    return [row.name, ...cells];
  });
  const title = `${task.task}: ${task.items} items${task.items === task.pictures ? "" : ` in ${task.pictures} pictures`}`;
  return [
    made("h3", {}, title),
    tabled(title, head, body),
    ...task.gains.map(({ row, measure, best, gain }) => made("p", { class: gain.value < -1e-9 ? "trouble" : "quiet" },
      `${measure}: ${row} − ${best} (best single) = ${signed(whole(gain.value))} [${signed(whole(gain.low))}, ${signed(whole(gain.high))}]`)),
    task.left_out ? made("p.trouble", {}, `${task.left_out} items are left out: their request failed.`) : null,
  ].filter(Boolean);
}

/** A score and its interval, linked to its items; below it the range of its repeats. */
function score(row, name, task, repeats, href) {
  const { value, low, high } = row.measures[name];
  const values = repeats.map((run) => run.tasks.find((one) => one.task === task.task)?.rows.find((one) => one.name === row.name)?.measures[name]?.value)
    .filter((one) => one != null);
  const range = repeats.length > 1 ? made("span.interval", {}, `${values.length} runs: ${number(Math.min(...values))} to ${number(Math.max(...values))}`) : null;
  return made("span", {},
    made("a", { href, class: task.best[name].includes(row.name) ? "best" : "" }, number(value),
      task.best[name].includes(row.name) ? made("span.sr", {}, " (best)") : null),
    made("span.interval", {}, `[${number(low)}, ${number(high)}]`), range);
}

show();
