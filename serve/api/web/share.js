// The same question elsewhere: as a link, as curl, as Python, as JSON, as one picture.

import { address, post } from "./wire.js";
import { words } from "./columns.js";
import { layersShown } from "./picture.js";
import { listsPlaces, pixels, placesOf } from "./places.js";
import { MERGED, tone } from "./tones.js";

/** What the address bar says: {task, written: by the name of a field, multiple, models: [..] or null, scene}. */
export function fromUrl(search = location.search) {
  const given = new URLSearchParams(search);
  return {
    task: given.get("task"), written: given, scene: given.get("scene"),
    multiple: given.has("multiple"), models: given.get("models")?.split(",").filter(Boolean) ?? null,
  };
}

export function toUrl(asked) {
  const said = new URLSearchParams();
  said.set("task", asked.task);
  if (asked.text) said.set(asked.field, asked.text);
  if (asked.scene) said.set("scene", asked.scene);
  if (asked.multiple) said.set("multiple", "");
  if (asked.models) said.set("models", asked.models.join(","));
  const url = new URL(location.href);
  url.search = said;
  url.hash = "";
  return url.href;
}

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const field = (name, text) => `--form-string ${shell(`${name}=${text}`)}`; // with -F a semicolon would start an option

function file(asked) {
  return asked.scene ? `${asked.scene}.png` : asked.name.replaceAll(/[^\w.-]/g, "_");
}

export function curl(asked) {
  const lines = [`curl --no-buffer -F ${shell(`image=@${file(asked)}`)}`];
  if (asked.text) lines.push(field(asked.field, asked.text));
  if (asked.multiple) lines.push(field("multiple", "true"));
  if (asked.models) lines.push(field("models", asked.models.join(",")));
  lines.push(field("stream", "true"), shell(address(`v1/tasks/${asked.task}`)));
  const fetched = asked.scene ? `curl --remote-name ${shell(address(`scenes/${file(asked)}`))}\n` : "";
  return `${fetched}${lines.join(" \\\n  ")}\n`;
}

export function python(asked) {
  const { text } = asked;
  const model = `${asked.task}:${asked.models ? asked.models.join(",") : "*"}`;
  const name = file(asked);
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
reply = client.chat.completions.create(model=${JSON.stringify(model)}, messages=[{"role": "user", "content": content}])
for choice in reply.choices:  # the merged answer, then each model's own
    print(choice.diptych["model"] or "merged", choice.message.content, sep=": ")
`;
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Keep the answer and its picture at the server; gives the address of its page. */
export async function publish(asked, answer, { blob }) {
  const image = await new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(blob);
  });
  const { path } = await post("v1/results", JSON.stringify({ answer: whole(asked, answer), image, question: asked.heading }));
  return address(path);
}

export function json(asked, answer) {
  return new Blob([`${JSON.stringify(whole(asked, answer), null, 2)}\n`], { type: "application/json" });
}

/** The whole answer as the HTTP interface would have given it unstreamed, and what was asked. */
function whole(asked, answer) {
  const usage = { prompt_tokens: 0, completion_tokens: 0, total_tokens: 0 };
  for (const { usage: one } of answer.replies) for (const name in usage) usage[name] += one?.[name] ?? 0;
  const { field: name, text, multiple, models } = asked;
  return {
    id: answer.id, object: "diptych.task", task: asked.task, asked: { ...(name && { [name]: text }), multiple, models },
    image: answer.size, merged: answer.merged, replies: answer.replies, usage,
  };
}

const WIDE = 1600;
const EDGE = 48;

/** One PNG, 1600 wide: the picture with what is drawn over it, the question, the merged answer, every model's. */
export async function png(asked, answer, picture) {
  const styles = getComputedStyle(document.documentElement);
  const colour = (name) => styles.getPropertyValue(name).trim();
  const ink = getComputedStyle(document.body).color;
  const ground = getComputedStyle(document.body).backgroundColor;
  const quiet = getComputedStyle(document.querySelector(".quiet")).color;
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const serif = colour("--serif");
  const sans = colour("--sans");
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
    blocks.push([listed(merged.result), `30px ${serif}`, ink, 40, 30]);
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
    context.font = font;
    context.fillStyle = fill;
    context.fillText(line, left, at);
  }
  context.save();
  context.translate(EDGE + (shownWide - picture.width * fitted) / 2, EDGE);
  context.scale(fitted, fitted);
  const image = new Image();
  image.src = picture.url;
  await image.decode();
  context.drawImage(image, 0, 0);
  await drawLayers(context, 1 / fitted, sans);
  context.restore();
  context.font = `16px ${sans}`;
  context.fillStyle = quiet;
  context.fillText("Diptych · one picture, every model, side by side", EDGE, canvas.height - 24);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

function listed(result) {
  if (!listsPlaces(result) || !placesOf(result).length) return words(result) || "(nothing)";
  return placesOf(result).map((place) => `${place.label} [${pixels(place)}]`).join("\n");
}

async function drawLayers(context, unit, sans) {
  const layers = layersShown();
  const labelled = layers.some((layer) => layer.dataset.layer === MERGED) ? MERGED : null;
  const items = layers.flatMap((layer) => [...layer.querySelectorAll(".item")].map((item) => {
    const frame = item.querySelector(".frame");
    const { x, y } = frame.getBBox();
    const point = frame.classList.contains("point");
    return { name: layer.dataset.layer, x, y, point, path: new Path2D(frame.getAttribute("d")), label: frame.dataset.label, mask: item.querySelector("image") };
  }));
  context.lineCap = "round";
  const stroked = (width, stroke, path) => {
    context.lineWidth = width * unit;
    context.strokeStyle = stroke;
    context.stroke(path);
  };
  for (const { point, path } of items) stroked(point ? 18 : 5, "#ffffffbf", path); // all halos below all frames, as on the page
  for (const { name, point, path, mask } of items) {
    if (mask) {
      const painted = new Image();
      painted.src = mask.getAttribute("href");
      await painted.decode();
      context.drawImage(painted, 0, 0, mask.width.baseVal.value, mask.height.baseVal.value);
    }
    stroked(point ? (name === MERGED ? 7 : 13) : name === MERGED ? 3 : 2.5, tone(name), path);
  }
  context.font = `600 ${18 * unit}px ${sans}`;
  for (const { name, label, point, x, y } of items) {
    if (labelled && name !== labelled) continue;
    const top = Math.max(0, y - (point ? 36 : 26) * unit);
    context.fillStyle = tone(name);
    context.fillRect(x, top, context.measureText(label).width + 12 * unit, 26 * unit);
    context.fillStyle = "#ffffff";
    context.fillText(label, x + 6 * unit, top + 19 * unit);
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
    }
    lines.push(line);
  }
  return lines;
}
