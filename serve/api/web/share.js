// The same question elsewhere: as a link, as curl, as Python, as JSON, as one picture.

import { fieldsOf, remembered, toUrl } from "./asked.js";
import { address, explained, post } from "./wire.js";
import { byId, made, sheet, trouble } from "./dom.js";
import { listsPlaces, pixels, placesOf, words } from "./places.js";
import { tone } from "./tones.js";

let last = null; // {asked, answer, picture}

/** Offer to share an answer: {asked, answer, picture}. */
export function offerSharing(one) {
  last = one;
  byId("share").hidden = false;
  byId("publish").disabled = !one.answer.merged;
  byId("shared").textContent = "";
}

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const field = (name, text) => `--form-string ${shell(`${name}=${text}`)}`; // with -F a semicolon would start an option

function curl(asked) {
  const name = asked.name.replaceAll(/[\\"]/g, "\\$&"); // in quotes a comma or semicolon is no option
  const lines = [`curl --no-buffer -F ${shell(`image=@"${name}"`)}`];
  lines.push(...[...fieldsOf(asked), ["stream", "true"]].map(([name, text]) => field(name, text)), shell(address(`v1/tasks/${asked.task}`)));
  const fetched = asked.scene ? `curl --remote-name ${shell(address(`scenes/${asked.name}`))}\n` : "";
  return `${fetched}${lines.join(" \\\n  ")}\n`;
}

function python(asked) {
  const { text, least, name } = asked;
  const model = `${asked.task}:${asked.models ? asked.models.join(",") : "*"}`;
  const from = asked.scene
    ? `image = urlopen(${JSON.stringify(address(`scenes/${name}`))}).read()`
    : `image = Path(${JSON.stringify(name)}).read_bytes()`;
  return `import base64
${asked.scene ? "from urllib.request import urlopen" : "from pathlib import Path"}

from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(address("v1"))}, api_key="none")
${from}
url = "data:${asked.type || "image/png"};base64," + base64.b64encode(image).decode()
content = [{"type": "image_url", "image_url": {"url": url}}${text ? `, {"type": "text", "text": ${JSON.stringify(text)}}` : ""}]
reply = client.chat.completions.create(model=${JSON.stringify(model)}, messages=[{"role": "user", "content": content}]${least ? `, extra_body={"min_agreement": ${least}}` : ""})
for choice in reply.choices:  # the merged answer, then each model's own
    print(choice.diptych["model"] or "merged", choice.message.content, sep=": ")
`;
}

function save(blob, asked, kind) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `diptych-${asked.task}-${asked.name.replace(/\.\w+$/, "")}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Keep the answer and its picture at the server; gives the address of its page. */
async function publish(asked, answer, { blob }) {
  const image = await new Promise((done) => {
    Object.assign(new FileReader(), { onload() { done(this.result); } }).readAsDataURL(blob);
  });
  const { id, path, delete_token: token } = await post("v1/results", JSON.stringify({ answer: whole(asked, answer), image, question: asked.heading }));
  remembered(id, token);
  return address(path);
}

/** The whole answer as the HTTP interface would have given it unstreamed, and what was asked. */
function whole(asked, answer) {
  const usage = { prompt_tokens: 0, completion_tokens: 0, total_tokens: 0 };
  for (const { usage: one } of answer.replies) for (const name in usage) usage[name] += one?.[name] ?? 0;
  const { field: name, text, multiple, least, models } = asked;
  return {
    id: answer.id, object: "diptych.task", task: asked.task, asked: { ...(name && { [name]: text }), multiple, min_agreement: least ?? undefined, models },
    image: answer.size, merged: answer.merged, replies: answer.replies, usage,
  };
}

const WIDE = 1600;
const EDGE = 48;

/** One PNG, 1600 wide: the picture with what is drawn over it, the question, the merged answer, every model's. */
async function png(asked, answer, picture) {
  const styles = getComputedStyle(document.body);
  const { color: ink, backgroundColor: ground } = styles;
  const [serif, sans] = ["--serif", "--sans"].map((name) => styles.getPropertyValue(name));
  const quiet = getComputedStyle(document.querySelector(".quiet")).color;
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const shownWide = 720;
  const scale = shownWide / picture.width;
  const shownHigh = Math.min(picture.height * scale, 1200);
  const fitted = shownHigh / picture.height;
  const left = EDGE + shownWide + EDGE;
  const textWide = WIDE - left - EDGE;

  const blocks = [[`${asked.title}${asked.heading ? `: ${asked.heading}` : ""}`, `500 34px ${serif}`, ink, 44, 26]];
  const { merged } = answer;
  if (merged) {
    blocks.push([`merged by ${merged.method.replaceAll("_", " ")} · ${Math.round(100 * merged.agreement)} % agreement`, `600 18px ${sans}`, quiet, 28, 2]);
    blocks.push([merged.error?.message ?? listed(merged.result), `30px ${serif}`, ink, 40, 30]);
  }
  for (const reply of answer.replies) {
    blocks.push([`● ${reply.model} · ${(reply.latency_ms / 1000).toFixed(2)} s`, `600 18px ${sans}`, tone(reply.model), 28, 2]);
    blocks.push([reply.status === "ok" ? listed(reply.result) : reply.error.message, `22px ${sans}`, ink, 32, 22]);
  }
  const laid = [];
  let y = EDGE;
  for (const [text, font, fill, high, after] of blocks) {
    context.font = font;
    for (const line of wrapped(context, text, textWide)) {
      y += high;
      laid.push([line, font, fill, y]);
    }
    y += after;
  }
  canvas.width = WIDE;
  canvas.height = Math.ceil(Math.max(y, EDGE + shownHigh + EDGE) + 40);
  context.fillStyle = ground;
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (const [line, font, fill, at] of laid) {
    Object.assign(context, { font, fillStyle: fill });
    context.fillText(line, left, at);
  }
  context.save();
  context.translate(EDGE + (shownWide - picture.width * fitted) / 2, EDGE);
  context.scale(fitted, fitted);
  const image = new Image();
  image.src = picture.url;
  await image.decode();
  context.drawImage(image, 0, 0);
  await paintOverlay(context, 1 / fitted, sans);
  context.restore();
  Object.assign(context, { font: `16px ${sans}`, fillStyle: quiet });
  context.fillText("Diptych · one picture, every model, side by side", EDGE, canvas.height - 24);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

function listed(result) {
  if (!listsPlaces(result) || !placesOf(result).length) return words(result) || "(nothing)";
  return placesOf(result).map((place) => `\u2068${place.label}\u2069 [${pixels(place)}]`).join("\n");
}

/** Paint what the overlay shows, as it is on the screen. unit: the picture's pixels for one of the PNG. */
async function paintOverlay(context, unit, sans) {
  context.lineCap = "round";
  for (const element of byId("overlay").querySelectorAll("path, image, rect, text")) {
    if (!element.checkVisibility()) continue;
    const { fill, stroke, strokeWidth } = getComputedStyle(element);
    const [x, y, width, height, size] = ["x", "y", "width", "height", "font-size"].map((name) => Number(element.getAttribute(name)));
    context.fillStyle = fill;
    if (element.matches("path")) {
      Object.assign(context, { lineWidth: parseFloat(strokeWidth) * unit, strokeStyle: stroke });
      context.stroke(new Path2D(element.getAttribute("d")));
    } else if (element.matches("image")) {
      const mask = new Image();
      mask.src = element.getAttribute("href");
      await mask.decode();
      context.drawImage(mask, 0, 0, width, height);
    } else if (element.matches("rect")) {
      context.fillRect(x, y, width, height);
    } else {
      context.font = `600 ${size}px ${sans}`;
      context.fillText(element.textContent, x, y);
    }
  }
}

function wrapped(context, text, wide) {
  const lines = [];
  for (const paragraph of text.split("\n")) {
    let line = "";
    for (const word of paragraph.split(" ")) {
      const longer = line ? `${line} ${word}` : word;
      if (line && context.measureText(longer).width > wide) {
        lines.push(line);
        line = word;
      } else line = longer;
      while (context.measureText(line).width > wide) { // an address, or a script without spaces
        const letters = [...line];
        const fits = letters.findIndex((_, at) => context.measureText(letters.slice(0, at + 1).join("")).width > wide);
        lines.push(letters.splice(0, fits || 1).join(""));
        line = letters.join("");
      }
    }
    lines.push(line);
  }
  return lines;
}

async function copy(text, said) {
  try {
    await navigator.clipboard.writeText(text);
    byId("shared").textContent = said;
  } catch {
    // without https there may be no clipboard: the text is copied by hand
    sheet("Copy", made("pre", {}, text));
  }
}

const ACTIONS = {
  publish: async ({ asked, answer, picture }) => {
    byId("publish").disabled = true;
    try {
      await copy(await publish(asked, answer, picture), "Kept here for everybody with its address, which is copied.");
    } catch (error) {
      trouble(explained(error));
    }
    byId("publish").disabled = false;
  },
  "copy-link": ({ asked }) => copy(toUrl(asked), asked.scene ? "Link copied." : "Link copied; your own picture does not travel with it."),
  "copy-curl": ({ asked }) => copy(curl(asked), "curl command copied."),
  "copy-python": ({ asked }) => copy(python(asked), "Python copied."),
  "save-json": ({ asked, answer }) => save(new Blob([`${JSON.stringify(whole(asked, answer), null, 2)}\n`]), asked, "json"),
  "save-png": async ({ asked, answer, picture }) => save(await png(asked, answer, picture), asked, "png"),
};
for (const [id, act] of Object.entries(ACTIONS)) byId(id).addEventListener("click", () => act(last));
