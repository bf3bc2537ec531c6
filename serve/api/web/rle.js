// Masks as COCO writes them: run lengths down the columns, six bits a character.

/** {size: [height, width], counts: "..."} -> run lengths, the first of them background. */
export function runs(counts) {
  const found = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0;
    let shift = 0;
    let bits;
    do {
      bits = counts.charCodeAt(at++) - 48;
      value |= (bits & 31) << shift;
      shift += 5;
    } while (bits & 32);
    if (bits & 16) value |= -1 << shift;
    if (found.length > 2) value += found[found.length - 2];
    found.push(value);
  }
  return found;
}

/** A mask as a picture of one colour, [r, g, b], `alpha` strong inside a firm edge, at most `side` long: a data URL. */
export function painted(mask, [red, green, blue], alpha, side = 640) {
  const [height, width] = mask.size;
  const flat = new Uint8Array(height * width);
  let at = 0;
  runs(mask.counts).forEach((length, index) => {
    if (index % 2) flat.fill(1, at, at + length);
    at += length;
  });
  const scale = Math.min(1, side / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const holds = (row, column) => row >= 0 && column >= 0 && row < height && column < width && flat[column * height + row];
  const reach = Math.max(1, Math.round(1.5 / scale));
  for (let y = 0; y < canvas.height; y++) {
    const row = Math.min(height - 1, Math.floor((y + 0.5) / canvas.height * height));
    for (let x = 0; x < canvas.width; x++) {
      const column = Math.min(width - 1, Math.floor((x + 0.5) / canvas.width * width));
      if (!holds(row, column)) continue;
      const inside = holds(row - reach, column) && holds(row + reach, column) && holds(row, column - reach) && holds(row, column + reach);
      image.data.set([red, green, blue, inside ? alpha : 255], 4 * (y * canvas.width + x));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}
