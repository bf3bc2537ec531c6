// What each model's answer took: first word, seconds, tokens, price and energy of 1,000 pictures like this one.

import { made, tabled } from "./dom.js";

const seconds = (ms) => (ms == null ? "–" : `${(ms / 1000).toFixed(2)} s`);
const whole = (count) => (count == null ? "–" : count.toLocaleString("en"));

/** Replies and their models' cards, by name -> the table behind its title, if any. */
export function costs(replies, cards) {
  const asked = replies.filter((reply) => reply.usage);
  if (!asked.length) return [];
  const priced = asked.some((reply) => cards.get(reply.model)?.price);
  const metered = asked.some((reply) => reply.energy_j != null);
  const head = ["Model", "First word", "Whole answer", "Tokens in", "Tokens out", priced && "Price per 1,000", metered && "Energy per 1,000"].filter(Boolean);
  const rows = asked.map(({ model, ttft_ms: first, latency_ms: all, usage, energy_j: joules }) => [
    model, seconds(first), seconds(all), whole(usage.prompt_tokens), whole(usage.completion_tokens),
    priced && price(usage, cards.get(model)?.price), metered && (joules == null ? "–" : `${(joules / 3.6).toFixed(1)} Wh`)].filter((cell) => cell !== false));
  return [made("details.cost", {}, made("summary", {}, "Cost and speed"), tabled("Cost and speed", head, rows))];
}

/** Of a thousand such answers; a price is of a million tokens. */
function price(usage, given) {
  if (!given) return "–";
  const sum = (usage.prompt_tokens * given.input + usage.completion_tokens * given.output) / 1000;
  return `${sum.toLocaleString("en", { maximumFractionDigits: sum < 1 ? 4 : 2 })} ${given.currency}`;
}
