// The viewer's volumes: decoding them, finding voxels by position, and cutting slices.

const UNDEFINED = -(2 ** 31);

// Decoding: see _encode in viewer.py.

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function decode({ shape, affine, defined, steps }) {
  const [mask, bytes] = await Promise.all([unpack(defined), unpack(steps)]);
  const values = new Int32Array(shape[0] * shape[1] * shape[2]).fill(UNDEFINED);
  let n = 0;
  for (let i = 0; i < values.length; i++) n += (mask[i >> 3] >> (i & 7)) & 1;
  const perValue = n ? bytes.length / n : 0;
  let value = 0;
  for (let i = 0, from = 0; i < values.length; i++) {
    if (!((mask[i >> 3] >> (i & 7)) & 1)) continue;
    let code = 0;
    for (let rank = 0; rank < perValue; rank++) code |= bytes[from + rank * n] << (8 * rank);
    value += (code >>> 1) ^ -(code & 1);
    values[i] = value;
    from++;
  }
  return { shape, values, n, affine, inverse: invert(affine) };
}

function invert([a, b, c, x, d, e, f, y, g, h, i, z]) {
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const rows = [
    [e * i - f * h, c * h - b * i, b * f - c * e],
    [f * g - d * i, a * i - c * g, c * d - a * f],
    [d * h - e * g, b * g - a * h, a * e - b * d],
  ];
  return rows.flatMap((row) => {
    const [p, q, r] = row.map((part) => part / det);
    return [p, q, r, -(p * x + q * y + r * z)];
  });
}

// Add arctanh of r to z, which is stored as its difference to it.
function addPrediction(z, r, largestR) {
  const [rUnit, zUnit] = [10 ** r.decimals, 10 ** z.decimals];
  for (let i = 0; i < z.values.length; i++) {
    if (z.values[i] === UNDEFINED) continue;
    const value = Math.max(-largestR, Math.min(largestR, r.values[i] / rUnit));
    z.values[i] += Math.round(zUnit * Math.atanh(value));
  }
}

// Volumes in millimetres.

function transform(m, [x, y, z]) {
  return [0, 4, 8].map((at) => m[at] * x + m[at + 1] * y + m[at + 2] * z + m[at + 3]);
}

function voxelAt({ inverse }, mm) {
  return transform(inverse, mm).map((place) => Math.floor(place + 0.5 + 1e-6));
}

function valueAt(volume, mm) {
  const [[i, j, k], [nx, ny, nz]] = [voxelAt(volume, mm), volume.shape];
  const inside = i >= 0 && i < nx && j >= 0 && j < ny && k >= 0 && k < nz;
  return inside ? volume.values[i + nx * (j + ny * k)] : UNDEFINED;
}

function* definedVoxels({ shape: [nx, ny], values }) {
  for (let at = 0; at < values.length; at++) {
    if (values[at] !== UNDEFINED) yield [at, at % nx, Math.floor(at / nx) % ny, Math.floor(at / (nx * ny))];
  }
}

// The smallest box, in multiples of 2 mm, that contains a volume's defined voxels.
function boxOf(volume) {
  const [low, high] = [[Infinity, Infinity, Infinity], [-Infinity, -Infinity, -Infinity]];
  const [first, last] = [[...low], [...high]];
  for (const [, ...voxel] of definedVoxels(volume)) {
    for (let d = 0; d < 3; d++) {
      if (voxel[d] < first[d]) first[d] = voxel[d];
      if (voxel[d] > last[d]) last[d] = voxel[d];
    }
  }
  for (let corner = 0; corner < 8; corner++) {
    transform(volume.affine, [0, 1, 2].map((d) => ((corner >> d) & 1 ? last : first)[d])).forEach((mm, d) => {
      low[d] = Math.min(low[d], mm);
      high[d] = Math.max(high[d], mm);
    });
  }
  return [low.map((mm) => 2 * Math.floor(mm / 2)), high.map((mm) => 2 * Math.ceil(mm / 2))];
}

// The values of a slice, from its upper left corner.
function slice(volume, plane, mm, perMm) {
  const { axis, across, up, low, high } = plane;
  const [columns, rows] = [(high[across] - low[across]) * perMm, (high[up] - low[up]) * perMm];
  const corner = [...mm];
  corner[across] = low[across] + 0.5 / perMm;
  corner[up] = high[up] - 0.5 / perMm;
  corner[axis] = mm[axis];
  const start = transform(volume.inverse, corner).map((place) => place + 0.5 + 1e-6);
  const [right, down] = [across, up].map((d) => [0, 4, 8].map((row) => volume.inverse[row + d] / perMm));
  const [nx, ny, nz] = volume.shape;
  const values = new Int32Array(columns * rows).fill(UNDEFINED);
  for (let row = 0, at = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, at++) {
      const i = Math.floor(start[0] + column * right[0] - row * down[0]);
      const j = Math.floor(start[1] + column * right[1] - row * down[1]);
      const k = Math.floor(start[2] + column * right[2] - row * down[2]);
      if (i >= 0 && i < nx && j >= 0 && j < ny && k >= 0 && k < nz) values[at] = volume.values[i + nx * (j + ny * k)];
    }
  }
  return { columns, rows, values };
}

function picture({ columns, rows, values }, colourOf) {
  const canvas = new OffscreenCanvas(columns, rows);
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let at = 0; at < values.length; at++) {
    if (values[at] !== UNDEFINED) pixels[at] = colourOf(values[at]);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Canvases store the bytes red, green, blue, alpha: the lowest byte is red.
function pixelOf(colour) {
  const number = parseInt(colour.slice(1), 16);
  return (0xff000000 | ((number & 0xff) << 16) | (number & 0xff00) | (number >> 16)) >>> 0;
}
