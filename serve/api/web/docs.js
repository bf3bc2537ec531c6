// openapi.json as a page: every route, its fields, its replies.

import { get } from "./wire.js";
import { byId, made } from "./dom.js";

const named = (schema) => schema?.$ref?.split("/").pop();

function start(document) {
  const schemas = document.components.schemas;
  const groups = new Map();
  for (const [path, operations] of Object.entries(document.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const tag = operation.tags?.[0] ?? "other";
      groups.set(tag, [...(groups.get(tag) ?? []), route(method, path, operation, schemas)]);
    }
  }
  byId("routes").replaceChildren(...[...groups].map(([tag, routes]) =>
    made("section", {}, made("h2", {}, tag[0].toUpperCase() + tag.slice(1)), ...routes)));
}

function route(method, path, operation, schemas) {
  const parts = [];
  const parameters = operation.parameters ?? [];
  if (parameters.length) parts.push(made("h3", {}, "Parameters"), fields(parameters.map((one) => [one.name, one.schema, one.required, one.description]), schemas));
  const body = operation.requestBody?.content;
  if (body) {
    const schema = schemas[named(body["application/json"].schema)];
    const kinds = Object.keys(body).join(" or ");
    parts.push(made("h3", {}, `Body: ${kinds}`), fields(Object.entries(schema.properties).map(([name, one]) =>
      [name, one, schema.required?.includes(name), one.description]), schemas));
  }
  const replies = Object.entries(operation.responses).map(([status, reply]) => {
    const schema = named(reply.content?.["application/json"]?.schema);
    return made("li", {}, made("strong", {}, status), ` ${reply.description}`, schema ? made("span", { class: "quiet" }, ` ${schema}`) : null);
  });
  parts.push(made("h3", {}, "Replies"), made("ul", {}, ...replies));
  return made("details", { class: "panel route" },
    made("summary", {}, made("code", {}, `${method.toUpperCase()} ${path}`), made("span", { class: "quiet" }, ` ${operation.summary ?? ""}`)),
    ...parts);
}

function fields(rows, schemas) {
  const list = made("dl", {});
  for (const [name, schema, required, about] of rows) {
    const said = [kind(schema, schemas), required ? "required" : null, schema.default == null ? null : `default ${JSON.stringify(schema.default)}`];
    list.append(made("dt", {}, made("code", {}, name)),
      made("dd", {}, made("span", { class: "quiet" }, said.filter(Boolean).join(", ")), about ? made("p", {}, about) : null));
  }
  return list;
}

function kind(schema, schemas) {
  const reference = named(schema);
  if (reference) return schemas[reference]?.enum ? schemas[reference].enum.join(" | ") : reference;
  const several = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (several) return several.map((one) => kind(one, schemas)).filter((one) => one !== "null").join(" or ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${kind(schema.items ?? {}, schemas)}`;
  return schema.type ?? "anything";
}

try {
  start(await get("openapi.json"));
} catch {
  byId("state").textContent = "The server does not answer.";
}
