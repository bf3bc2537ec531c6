// Pictures to ask about: the shipped scenes as buttons, and files of one's own.

import { at, explained, get } from "./wire.js";
import { byId, made, trouble } from "./dom.js";

const MAX_BYTES = 20 * 1024 * 1024; // what the server takes (serve/media/image.py)
let scenes = {};
let wish = 0; // counts what was chosen: a slow picture must not replace a later one

const described = ({ caption, background }) => `Drawn scene: ${caption}, ${background} background`;

/** Show a button for each shipped scene; give them by name. */
export async function shipped(choose) {
  const files = await get("scenes/scenes.json").catch(() => ({}));
  scenes = Object.fromEntries(Object.entries(files).map(([file, scene]) => [file.replace(/\.png$/, ""), scene]));
  byId("scenes").replaceChildren(...Object.entries(scenes).map(([name, scene]) =>
    made("li", {}, made("button", { "data-scene": name, "aria-pressed": "false", onclick: () => choose(name) },
      made("img", { src: at(`scenes/small/${name}.png`).href, alt: described(scene), width: 96, height: 72, loading: "lazy" })))));
  return scenes;
}

/** A shipped scene as a picture. Throws Error in words. */
export async function drawnScene(name) {
  const reply = await fetch(at(`scenes/${name}.png`));
  if (!reply.ok) throw new Error(`The scene ${name} could not be read.`);
  return loaded(await reply.blob(), { name: `${name}.png`, alt: described(scenes[name]), scene: name });
}

/** A picture that can be asked about: {blob, name, alt, scene, url, width, height}. Throws Error in words. */
export async function loaded(blob, { name = "picture", alt = "", scene = null } = {}) {
  if (blob.size > MAX_BYTES) {
    throw new Error(`${name} has ${(blob.size / 2 ** 20).toFixed(1)} MB; a picture may have 20.`);
  }
  const url = URL.createObjectURL(blob);
  const probe = new Image();
  probe.src = url;
  try {
    await probe.decode();
  } catch {
    URL.revokeObjectURL(url);
    throw new Error(`${name} is not a picture that this browser can show.`);
  }
  return { blob, name, alt: alt || `Your picture, ${name}`, scene, url, width: probe.naturalWidth, height: probe.naturalHeight };
}

/** Put a picture that is still being read, unless another was chosen meanwhile. */
export async function take(reading, put) {
  const mine = ++wish;
  try {
    const picture = await reading;
    if (mine !== wish) return URL.revokeObjectURL(picture.url);
    trouble("");
    put(picture);
  } catch (error) {
    trouble(explained(error));
  }
}

/** Mark the scene that a picture is, if it is one. */
export function marked({ scene }) {
  for (const button of byId("scenes").querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.scene === scene));
}

/** Let a button open the browser's dialog for files. */
export function opens(button, input, given) {
  byId(button).addEventListener("click", () => byId(input).click());
  byId(input).addEventListener("change", () => {
    if (byId(input).files.length) given([...byId(input).files]);
    byId(input).value = "";
  });
}
