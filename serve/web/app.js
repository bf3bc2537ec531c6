// What is served, and how it stands. All addresses are relative: the page works behind any prefix.

const WORDS = { starting: "starting", ready: "ready", degraded: "some models failed" };

async function show() {
  const [list, ready] = await Promise.all(["v1/models", "ready"].map((url) => fetch(url).then((reply) => reply.json())));
  const models = list.data.filter((entry) => entry.diptych.kind === "model");
  document.getElementById("overall").textContent = WORDS[ready.status] ?? "";
  document.getElementById("models").replaceChildren(...models.map((entry) => card(entry, ready)));
  return Object.values(ready.models).includes("starting");
}

function card(entry, ready) {
  const state = ready.models[entry.id] ?? entry.diptych.state;
  const detail = ready.details[entry.id];
  const item = document.createElement("li");
  item.append(
    made("strong", entry.id),
    made("p", entry.owned_by),
    made("p", entry.diptych.tasks.join(", ")),
    made("p", entry.diptych.about ?? "", "about"),
    made("p", detail ? `${state}: ${detail.step} (${Math.round(detail.since_s)} s)` : state, `state ${state}`),
  );
  return item;
}

function made(tag, text, name = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = name;
  return element;
}

async function keepShowing() {
  let again = 2000;
  try {
    if (!(await show())) again = 15000;
  } catch {
    document.getElementById("overall").textContent = "the server does not answer";
  }
  setTimeout(keepShowing, again);
}

const address = new URL(".", location.href).href.replace(/\/$/, "");
for (const id of ["ask", "client"]) {
  const code = document.getElementById(id);
  code.textContent = code.textContent.replace("ADDRESS", address);
}
keepShowing();
