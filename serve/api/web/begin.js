// Evaluations that are started on the page: a labelled folder, or a zip file of one, sent in pieces.

import { explained, get, post } from "./wire.js";
import { byId, made, trouble } from "./dom.js";
import { opens } from "./pictures.js";
import { zipped } from "./zip.js";

const PIECE = 4 * 2 ** 20; // bytes
const ALIVE = ["receiving", "reading", "running"];
let chosen = null; // {name, blob: returns it}

/** Show the form, with what a run may take. changed: called once a run was started or cancelled. */
export async function allow({ mb, pictures, minutes }, changed) {
  byId("begin").hidden = false;
  byId("bounds").textContent = `At most ${mb} MiB, ${pictures.toLocaleString("en")} pictures and ${minutes} minutes. Everybody else goes first.`;
  const { data } = await get("v1/models");
  byId("task").append(...data.filter((entry) => entry.diptych.kind === "task").map(({ id, diptych }) => made("option", { value: id }, diptych.title)));
  const choose = (name, size, blob) => {
    chosen = { blob, name: name.replaceAll(/[^\w.-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 50) || "folder" };
    const large = size > mb * 2 ** 20;
    byId("chosen").textContent = `${name}, ${(size / 2 ** 20).toFixed(1)} MiB${large ? ": too large" : ""}`;
    byId("go").disabled = large;
  };
  opens("choose-folder", "folder", (files) => {
    const paths = files.map((file) => [file.webkitRelativePath, file]).filter(([path]) => !/(^|\/)\./.test(path));
    choose(files[0].webkitRelativePath.split("/")[0], paths.reduce((sum, [, file]) => sum + file.size, 0), () => zipped(paths));
  });
  opens("choose-zip", "zip", ([file]) => choose(file.name.replace(/\.zip$/i, ""), file.size, async () => file));
  byId("begin").addEventListener("submit", async (event) => {
    event.preventDefault();
    byId("go").disabled = true;
    trouble("");
    try {
      await send(chosen.name, await chosen.blob(), changed);
    } catch (error) {
      trouble(explained(error));
    }
    byId("go").disabled = false;
    changed();
  });
}

async function send(name, blob, changed) {
  const n = Number(byId("n").value) || null;
  const { id } = await post("v1/evaluations", JSON.stringify({ name, size: blob.size, task: byId("task").value, n }));
  changed();
  for (let offset = 0; offset < blob.size; offset += PIECE) {
    await post(`v1/evaluations/${id}?offset=${offset}`, blob.slice(offset, offset + PIECE), { method: "PUT" });
  }
}

/** List the runs that were started here; say whether one is under way. */
export function list(started, changed) {
  const pressed = document.activeElement?.dataset.run; // the keyboard stays on its button
  byId("started").replaceChildren(...started.map((run) => {
    const { id, name, state, received, size, answered, items, message } = run;
    const cancel = () => post(`v1/evaluations/${id}`, undefined, { method: "DELETE" }).catch((error) => trouble(explained(error))).then(changed);
    const share = state === "receiving" ? received / size : items ? answered / items : null;
    return made("li.row", { "data-state": state },
      made("strong", {}, name), made("span", { class: state === "failed" ? "failure" : "quiet" }, `${state}${items ? `, ${answered} of ${items}` : ""}`),
      ALIVE.includes(state) && made("progress", { max: 1, value: share, "aria-label": `${name}: how far it is` }),
      ALIVE.includes(state) && made("button", { "data-run": id, onclick: cancel }, "Cancel"),
      message && made("span.quiet", {}, message));
  }));
  if (pressed) document.querySelector(`[data-run="${pressed}"]`)?.focus();
  return started.some(({ state }) => ALIVE.includes(state));
}
