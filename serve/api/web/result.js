// A shared result: what one visitor was answered, as it was, for everybody who has its address.

import { remembered } from "./asked.js";
import { address, explained, get, post, storedKey } from "./wire.js";
import { MergedCard, recalled } from "./columns.js";
import { costs } from "./cost.js";
import { byId, made, sheet, stated } from "./dom.js";
import { show } from "./picture.js";
import { settle } from "./tones.js";

const id = location.pathname.split("/").at(-1);

async function start() {
  let given;
  try {
    given = await get(`v1/results/${id}`);
  } catch (error) {
    return stated(explained(error), "failed");
  }
  const { answer, question, expires } = given;
  const day = new Date(1000 * expires).toLocaleDateString("en", { dateStyle: "long" });
  byId("title").textContent = question ? `${answer.task}: ${question}` : answer.task;
  stated(`A shared result, kept until ${day}.`, "ready");
  byId("bench").hidden = false;
  settle(answer.replies.map((reply) => reply.model));
  show({ ...answer.image, url: address(`v1/results/${id}/image`), alt: "The picture that was asked about" });
  recalled(answer, answer.image, new MergedCard(byId("merged")));
  byId("cost").replaceChildren(...costs(answer.replies, new Map()));
  byId("as-png").href = address(`r/${id}.png`);
  byId("delete").hidden = !remembered(id) && !storedKey();
}

byId("embed").addEventListener("click", () => sheet("Embed this result",
  made("p", {}, "Other pages show it by this frame, which runs no script:"),
  made("pre", {}, `<iframe src="${address(`r/${id}/card`)}" width="600" height="400" title="A result of Diptych"></iframe>`)));
byId("delete").addEventListener("click", async () => {
  if (!confirm("Delete this result, for everybody?")) return;
  try {
    await post(`r/${id}`, undefined, { method: "DELETE", headers: { "x-delete-token": remembered(id) ?? "" } });
    byId("bench").hidden = true;
    stated("The result is deleted.", "ready");
  } catch (error) {
    stated(explained(error), "failed");
  }
});
start();
