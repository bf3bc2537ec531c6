// What is asked: in the address bar, and as the fields of a request.

import { kept } from "./wire.js";

/** What the address bar says: {task, written: by the name of a field, multiple, least, models: [..] or null, scene}. */
export function fromUrl() {
  const given = new URLSearchParams(location.search);
  return {
    task: given.get("task"), written: given, scene: given.get("scene"),
    multiple: given.has("multiple"), least: given.get("min_agreement"), models: given.get("models")?.split(",").filter(Boolean) ?? null,
  };
}

export function toUrl(asked) {
  const url = new URL(location.href);
  url.search = new URLSearchParams([["task", asked.task], ...fieldsOf(asked), ["scene", asked.scene]].filter(([, value]) => value));
  url.hash = "";
  return url.href;
}

/** [name, value] of each field that is given beside the image. */
export function fieldsOf({ field, text, multiple, least, models }) {
  return [[field, text], ["multiple", multiple && "true"], ["min_agreement", least], ["models", models?.join(",")]].filter(([, value]) => value);
}

/** The token by which this browser may delete a result that it shared; kept where given. */
export const remembered = (result, token) => kept("localStorage", `diptych-result-${result}`, token);
