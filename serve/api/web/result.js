// A shared result: what one visitor was answered, as it was, for everybody who has its address.

import { Refusal, address, get } from "./wire.js";
import { Column, MergedCard } from "./columns.js";
import { costs } from "./cost.js";
import { byId, made, sheet } from "./dom.js";
import { show } from "./picture.js";
import { listsPlaces } from "./places.js";
import { settle } from "./tones.js";

const id = location.pathname.split("/").at(-1);

async function start() {
  let given;
  try {
    given = await get(`v1/results/${id}`);
  } catch (error) {
    byId("state").dataset.kind = "failed";
    byId("state").textContent = error instanceof Refusal ? error.message : "The server does not answer.";
    return;
  }
  const { answer, question, expires } = given;
  const day = new Date(1000 * expires).toLocaleDateString("en", { dateStyle: "long" });
  byId("title").textContent = question ? `${answer.task}: ${question}` : answer.task;
  byId("state").dataset.kind = "ready";
  byId("state").textContent = `A shared result, kept until ${day}.`;
  byId("bench").hidden = false;
  settle(answer.replies.map((reply) => reply.model));
  show({ ...answer.image, url: address(`v1/results/${id}/image`), alt: "The picture that was asked about" });
  const columns = answer.replies.map((reply) => {
    const column = new Column(reply.model);
    column.ends(reply, { size: answer.image, aloud: false });
    column.strayed(answer.merged.deviations[reply.model] ?? 0);
    return column.element;
  });
  byId("columns").replaceChildren(...columns);
  const merged = new MergedCard(byId("merged"));
  merged.wait(columns.length, listsPlaces(answer.merged.result));
  merged.show(answer.merged, { size: answer.image, aloud: false });
  byId("cost").replaceChildren(...costs(answer.replies, new Map()));
  byId("as-png").href = address(`r/${id}.png`);
}

byId("embed").addEventListener("click", () => sheet("Embed this result",
  made("p", {}, "Other pages show it by this frame, which runs no script:"),
  made("pre", {}, `<iframe src="${address(`r/${id}/card`)}" width="600" height="400" title="A result of Diptych"></iframe>`)));
byId("sheet-close").addEventListener("click", () => byId("sheet").close());
start();
