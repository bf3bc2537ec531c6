// The files of a folder as one zip file, stored as they are: pictures do not get smaller.

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

/** [path, file] of each -> a Blob. Files are read once, for their checksums. */
export async function zipped(files) {
  const [bodies, index] = [[], []];
  let at = 0;
  for (const [path, file] of files) {
    const name = new TextEncoder().encode(path);
    const about = [[2, 20, 0x800, 0, 0, 33], [4, checksum(new Uint8Array(await file.arrayBuffer())), file.size, file.size], [2, name.length, 0]];
    const head = packed([4, 0x04034b50], ...about);
    bodies.push(head, name, file);
    index.push(packed([4, 0x02014b50], [2, 20], ...about, [2, 0, 0, 0], [4, 0, at]), name);
    at += head.byteLength + name.length + file.size;
  }
  const size = index.reduce((sum, part) => sum + part.byteLength, 0);
  return new Blob([...bodies, ...index, packed([4, 0x06054b50], [2, 0, 0, files.length, files.length], [4, size, at], [2, 0])]);
}

function checksum(bytes) {
  let sum = -1;
  for (const byte of bytes) sum = TABLE[(sum ^ byte) & 255] ^ (sum >>> 8);
  return ~sum >>> 0;
}

/** [width in bytes, number, ...] of each -> the numbers, the lowest byte first. */
function packed(...fields) {
  const numbers = fields.flatMap(([width, ...values]) => values.map((value) => [width, value]));
  const view = new DataView(new ArrayBuffer(numbers.reduce((sum, [width]) => sum + width, 0)));
  let at = 0;
  for (const [width, value] of numbers) {
    view[width === 2 ? "setUint16" : "setUint32"](at, value, true);
    at += width;
  }
  return view;
}
