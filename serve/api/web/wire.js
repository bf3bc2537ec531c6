// The HTTP side. All addresses hang on this file's own, so the page works behind any prefix.

const ROOT = new URL("..", import.meta.url);

export const at = (path) => new URL(path, ROOT);
export const address = (path = "") => at(path).href.replace(/\/$/, "");

/** What the server refused, in its own words. `param` names the field. */
export class Refusal extends Error {
  constructor(error, status) {
    super(error.message);
    Object.assign(this, { code: error.code, param: error.param, status });
  }
}

/** Why a request failed, in words. */
export const explained = (error) => (error instanceof TypeError ? "The server does not answer." : error.message);

const COMPARE = at("compare/").pathname;

/** The names in the address, as written; null where this is not a comparison page. */
export function named() {
  if (!location.pathname.startsWith(COMPARE)) return null;
  return decodeURIComponent(location.pathname.slice(COMPARE.length)).split("-vs-").map((name) => name.trim()).filter(Boolean);
}

export const link = (names) => at(`compare/${names.map(encodeURIComponent).join("-vs-")}`).href;

const KEY = "diptych-api-key";
const memory = {};
let declined = false;

/** What a storage has, after putting `value` there, if any; where storage is switched off, this page has it. */
export function kept(storage, name, value) {
  try {
    if (value) window[storage].setItem(name, value);
    return window[storage].getItem(name);
  } catch {
    return (memory[name] = value ?? memory[name] ?? null);
  }
}

/** This tab's API key. */
export const storedKey = (value) => kept("sessionStorage", KEY, value);

/** fetch with this tab's API key. Where the server wants another one, the person is asked, until they decline. */
async function call(path, options = {}) {
  for (;;) {
    const key = storedKey();
    const reply = await fetch(at(path), { ...options, headers: { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) } });
    if (reply.status !== 401 || declined) return reply;
    if (storedKey() !== key) continue; // given meanwhile, to another request
    const given = window.prompt("This server asks for an API key. It is kept until this tab is closed.")
      ?.replace(/[^ -ÿ]/g, "").trim(); // no header takes other letters, as of a key that was copied with an invisible space
    declined = !given;
    if (declined) return reply;
    storedKey(given);
  }
}

/** The reply, where its status is one of success, or accepted. */
async function accepted(path, options, statuses = []) {
  const reply = await call(path, options);
  if (reply.ok || statuses.includes(reply.status)) return reply;
  const body = await reply.json().catch(() => ({}));
  throw new Refusal(body.error ?? { message: `The server answered with status ${reply.status}.` }, reply.status);
}

export const get = async (path, statuses) => (await accepted(path, {}, statuses)).json();

/** The bytes of a large file, as a stream. */
export const bytes = async (path) => (await accepted(path)).body;

/** POST a form, or JSON text; or another method. */
export const post = async (path, body, options) => (await accepted(path, { method: "POST", body, ...options })).json();

/** Ask a task; yields {event, data} as they come. Aborting `signal` stops the engines' work. */
export async function* ask(task, form, signal) {
  const reply = await accepted(`v1/tasks/${task}`, { method: "POST", body: form, signal });
  yield { event: "opened", data: { id: `task-${reply.headers.get("x-request-id")}` } };
  yield* events(reply.body);
}

/** Server-sent events of a byte stream, up to [DONE]. A stream that ends without it was cut off. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The answer was cut off.");
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      let event = "message";
      let data = "";
      for (const line of frame.split("\n")) {
        if (line.startsWith("event: ")) event = line.slice(7);
        else if (line.startsWith("data: ")) data += line.slice(6);
      }
      if (data === "[DONE]") return;
      if (data) yield { event, data: JSON.parse(data) };
    }
  }
}
