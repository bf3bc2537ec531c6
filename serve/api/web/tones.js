// One colour per model, the same in chips, columns and over the picture. All carry white letters (4.5 to 1).

const TONES = ["#0b6fb8", "#b8500b", "#17785a", "#8a3fa0", "#a8324a", "#5c6800", "#00707b", "#6b4f2a"];
export const MERGED = "merged";
const order = [];

/** Colours go by the place of a model among those served here. */
export function settle(models) {
  order.splice(0, order.length, ...models);
}

export const number = (model) => (model === MERGED ? MERGED : Math.max(0, order.indexOf(model)) % TONES.length);
export const tone = (model) => (model === MERGED ? "#14161a" : TONES[number(model)]);
export const rgb = (model) => [1, 3, 5].map((start) => parseInt(tone(model).slice(start, start + 2), 16));
export const toned = (model, more = "") => `tone-${number(model)} ${more}`.trim();
