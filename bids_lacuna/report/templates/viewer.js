"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const UNDEFINED = -(2 ** 31);
const AXES = ["x", "y", "z"];
const STEP_MM = 2;
const LONG_STEP_MM = 10;
const MARGIN_MM = 4;
const PIXELS_PER_MM = 2; // Finer than any map's voxels, whose edges thus stay straight.
const WHEEL_PER_SLICE = 40; // Less than a notch of any mouse; trackpads send many small movements.
const OUTLINE_COLOUR = "#00ff00";
const byId = (id) => document.getElementById(id);

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

function addPrediction(z, r) {
  const [rUnit, zUnit] = [10 ** r.decimals, 10 ** z.decimals];
  for (let i = 0; i < z.values.length; i++) {
    if (z.values[i] === UNDEFINED) continue;
    const value = Math.max(-DATA.largestR, Math.min(DATA.largestR, r.values[i] / rUnit));
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

// Numbers as text.

const minus = (text) => text.replace("-", "\u2212");
const inMm = (value) => minus(String(Math.round(value * 10) / 10));
const decimalsOf = (map, value) => minus(value.toFixed(map.decimals));
const valueText = (map, value) => value === UNDEFINED ? "undefined" : decimalsOf(map, value / 10 ** map.decimals + 0);

async function start() {
  const background = await decode(DATA.template);
  const lesion = DATA.lesion && await decode(DATA.lesion);
  const maps = new Map();
  for (const { defined, steps, shape, affine, ...rest } of DATA.maps) {
    const map = { ...rest, ...await decode({ shape, affine, defined, steps }) };
    if (map.fromR) addPrediction(map, maps.get("r"));
    maps.set(map.stat, map);
  }
  const boxes = [background, maps.values().next().value].map(boxOf);
  // Pixels of 2 mm then have the template's voxels as their centres.
  const low = AXES.map((_, d) => Math.min(...boxes.map((box) => box[0][d])) - MARGIN_MM - 1);
  const high = AXES.map((_, d) => Math.max(...boxes.map((box) => box[1][d])) + MARGIN_MM + 1);
  const viewer = new Viewer(background, lesion, maps, low, high);
  byId("viewer").hidden = false;
  viewer.listen();
  viewer.reset();
  viewer.follow(location.hash);
  if (parent === window) viewer.planes[2].canvas.focus({ focusVisible: false });
  // A page on disk cannot look into its frames: it has to be told the height.
  else new ResizeObserver(() => parent.postMessage({ viewerHeight: document.body.offsetHeight }, "*")).observe(document.body);
}

class Viewer {
  constructor(background, lesion, maps, low, high) {
    Object.assign(this, { background, lesion, maps, low, high });
    this.lesionBox = lesion && boxOf(lesion).map((corner, end) => corner.map((mm) => mm + (end ? MARGIN_MM : -MARGIN_MM)));
    this.planes = ["sagittal", "coronal", "axial"].map((id, axis) => {
      const [across, up] = [0, 1, 2].filter((other) => other !== axis);
      const [canvas, slider, output, enlarge] = ["canvas", "input", "output", "button"].map((tag) => byId(id).querySelector(tag));
      const ratio = (high[across] - low[across]) / (high[up] - low[up]);
      byId(id).style.setProperty("--ratio", ratio);
      canvas.style.aspectRatio = ratio;
      Object.assign(slider, { min: low[axis] + 1, max: high[axis] - 1, step: STEP_MM });
      return { axis, across, up, low, high, canvas, slider, output, enlarge };
    });
    const widths = this.planes.map(({ across }) => `${high[across] - low[across]}fr`);
    byId("planes").style.setProperty("--wide", widths.map((width) => `minmax(0, ${width})`).join(" "));
    byId("planes").style.setProperty("--narrow", widths.slice(0, 2).map((width) => `minmax(0, ${width})`).join(" "));
    for (const map of maps.values()) {
      const label = document.createElement("label");
      const radio = Object.assign(document.createElement("input"), { type: "radio", name: "map", value: map.stat });
      label.append(radio, ` ${map.stat}-map`);
      byId("maps").append(label);
    }
    if (!lesion) {
      byId("centre").hidden = true;
      byId("outline").parentElement.hidden = true;
      document.querySelectorAll(".of-lesion").forEach((each) => each.remove());
    }
  }

  listen() {
    this.planes.forEach((plane) => this.listenToPlane(plane));
    byId("maps").addEventListener("change", (event) => this.show(event.target.value));
    byId("centre").addEventListener("click", () => this.moveTo(DATA.start));
    byId("highest").addEventListener("click", () => this.moveTo(this.extreme(1)));
    byId("lowest").addEventListener("click", () => this.moveTo(this.extreme(-1)));
    byId("reset").addEventListener("click", () => this.reset());
    AXES.forEach((name, d) => byId(name).addEventListener("change", ({ target }) => {
      const mm = [...this.mm];
      if (target.value !== "") mm[d] = Number(target.value);
      this.moveTo(mm);
    }));
    for (const id of ["threshold", "limit"]) {
      for (const input of [byId(id), byId(`${id}-exactly`)]) {
        input.addEventListener("input", () => { if (input.value !== "") this.scale(id, Number(input.value), input); });
      }
      byId(`${id}-exactly`).addEventListener("change", () => this.scale(id, this.map[id], null));
    }
    for (const id of ["opacity", "positive", "negative", "outline", "cross"]) {
      byId(id).addEventListener("input", () => this.redraw());
    }
    addEventListener("hashchange", () => this.follow(location.hash));
    addEventListener("message", ({ source, data }) => {
      if (source === parent && Array.isArray(data?.mm)) this.moveTo(data.mm.map(Number));
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    const sizes = new ResizeObserver(() => this.redraw());
    this.planes.forEach(({ canvas }) => sizes.observe(canvas));
  }

  listenToPlane({ axis, across, up, canvas, slider, enlarge }) {
    const point = ({ offsetX, offsetY }) => {
      const mm = [...this.mm];
      mm[across] = this.low[across] + (offsetX / canvas.clientWidth) * (this.high[across] - this.low[across]);
      mm[up] = this.high[up] - (offsetY / canvas.clientHeight) * (this.high[up] - this.low[up]);
      this.moveTo(this.snap(mm, [across, up]));
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      point(event);
    });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons & 1) point(event); });
    enlarge.addEventListener("click", () => {
      const large = canvas.closest(".plane").classList.toggle("large");
      enlarge.setAttribute("aria-pressed", large);
    });
    let turned = 0;
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey) return;
      event.preventDefault();
      turned += event.deltaY * (event.deltaMode ? WHEEL_PER_SLICE : 1);
      if (Math.abs(turned) < WHEEL_PER_SLICE) return;
      this.step(axis, turned < 0 ? STEP_MM : -STEP_MM);
      turned = 0;
    }, { passive: false });
    const keys = {
      ArrowRight: [across, 1], ArrowLeft: [across, -1], ArrowUp: [up, 1], ArrowDown: [up, -1],
      PageUp: [axis, 1], PageDown: [axis, -1], ".": [axis, 1], ",": [axis, -1],
    };
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.key === "Home") this.moveTo(DATA.start);
      else if (event.key in keys) {
        const [d, sign] = keys[event.key];
        this.step(d, sign * (event.shiftKey ? LONG_STEP_MM : STEP_MM));
      } else return;
      event.preventDefault();
    });
    slider.addEventListener("input", () => this.moveTo(this.mm.map((mm, d) => (d === axis ? Number(slider.value) : mm))));
  }

  reset() {
    this.mm = [...DATA.start];
    for (const { stat, threshold, limit } of DATA.maps) Object.assign(this.maps.get(stat), { threshold, limit });
    for (const id of ["positive", "negative", "outline", "cross"]) byId(id).checked = true;
    byId("opacity").value = byId("opacity").defaultValue;
    this.show(DATA.maps[0].stat);
    this.moveTo(DATA.start);
  }

  follow(hash) {
    const found = /^#mm=([-\d.]+),([-\d.]+),([-\d.]+)$/.exec(decodeURIComponent(hash));
    if (found) this.moveTo(found.slice(1).map(Number));
  }

  // Coordinates that a mouse or a key sets are the template's.
  snap(mm, axes) {
    return mm.map((value, d) => axes.includes(d) ? this.low[d] + 1 + STEP_MM * Math.round((value - this.low[d] - 1) / STEP_MM) : value);
  }

  step(d, by) {
    const mm = [...this.mm];
    mm[d] += by;
    this.moveTo(this.snap(mm, [d]));
  }

  moveTo(mm) {
    if (!mm || mm.length !== 3 || mm.some((value) => !Number.isFinite(value))) return;
    this.mm = mm.map((value, d) => Math.max(this.low[d] + 1, Math.min(this.high[d] - 1, value)));
    this.redraw();
    clearTimeout(this.timer);
    // A screen reader would read every slice on the way.
    this.timer = setTimeout(() => { byId("spoken").textContent = this.describe(); }, 400);
  }

  show(stat) {
    this.map = this.maps.get(stat);
    byId("maps").querySelectorAll("input").forEach((radio) => { radio.checked = radio.value === stat; });
    byId("name").textContent = this.map.name;
    const step = 10 ** -this.map.decimals;
    const { threshold, limit } = DATA.maps.find((each) => each.stat === stat);
    for (const id of ["threshold", "limit"]) {
      Object.assign(byId(id), { step, max: decimalsCeil(Math.max(2 * limit, 2 * threshold), this.map.decimals) });
      byId(`${id}-exactly`).step = step;
    }
    this.scale("threshold", this.map.threshold, null);
  }

  // Set the threshold or the limit; the input that set it keeps what the user typed.
  scale(id, value, input) {
    const { map } = this;
    map[id] = Math.max(0, value);
    // As in the pictures: colours need room above the threshold.
    if (id === "threshold") map.limit = Math.max(map.limit, 1.25 * map.threshold);
    else map.threshold = Math.min(map.threshold, map.limit / 1.25);
    for (const each of ["threshold", "limit"]) {
      for (const other of [byId(each), byId(`${each}-exactly`)]) {
        if (other !== input) other.value = map[each].toFixed(map.decimals);
      }
    }
    byId("counts").textContent = this.count();
    this.redraw();
  }

  // The position of the highest (sign 1) or lowest (-1) voxel outside the lesion.
  extreme(sign) {
    let [best, place] = [-Infinity, null];
    for (const [at, ...voxel] of definedVoxels(this.map)) {
      const value = sign * this.map.values[at];
      if (value <= best) continue;
      const mm = transform(this.map.affine, voxel);
      if (this.lesion && valueAt(this.lesion, mm) !== UNDEFINED) continue;
      [best, place] = [value, mm];
    }
    return place;
  }

  redraw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      const colourOf = this.colouring();
      this.planes.forEach((plane) => this.draw(plane, colourOf));
      this.drawBar();
      this.write();
    });
  }

  // A function from a voxel's stored value to its pixel; 0 is transparent.
  colouring() {
    const { threshold, limit, decimals } = this.map;
    const unit = 10 ** decimals;
    const colours = ["negative", "positive"].map((sign) => byId(sign).checked ? DATA.colours[sign].map(pixelOf) : null);
    return (value) => {
      const [size, ramp] = [Math.abs(value) / unit, colours[value > 0 ? 1 : 0]];
      if (!ramp || !(size > threshold + 1e-9)) return 0;
      const strength = Math.min(1, (size - threshold) / (limit - threshold));
      return ramp[Math.round(strength * (ramp.length - 1))];
    };
  }

  draw(plane, colourOf) {
    const { canvas } = plane;
    const ratio = devicePixelRatio;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((size) => Math.max(1, Math.round(size * ratio)));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    const grey = (value) => { const g = Math.round(38 + 191 * value / DATA.template.white); return (0xff000000 | g << 16 | g << 8 | g) >>> 0; };
    context.imageSmoothingEnabled = true;
    context.drawImage(picture(slice(this.background, plane, this.mm, 1 / STEP_MM), grey), 0, 0, width, height);
    context.imageSmoothingEnabled = false;
    context.globalAlpha = byId("opacity").value / 100;
    context.drawImage(picture(slice(this.map, plane, this.mm, PIXELS_PER_MM), colourOf), 0, 0, width, height);
    context.globalAlpha = 1;
    if (this.lesion && byId("outline").checked) this.drawOutline(plane, context, ratio);
    if (byId("cross").checked) this.drawCross(plane, context, ratio);
  }

  drawOutline(plane, context, ratio) {
    const { across, up } = plane;
    const [low, high] = this.lesionBox;
    const { columns, rows, values } = slice(this.lesion, { ...plane, low, high }, this.mm, PIXELS_PER_MM);
    const inside = (row, column) => row >= 0 && row < rows && column >= 0 && column < columns && values[row * columns + column] !== UNDEFINED;
    const perMm = context.canvas.width / (plane.high[across] - plane.low[across]);
    const x = (column) => (column / PIXELS_PER_MM + low[across] - plane.low[across]) * perMm;
    const y = (row) => (row / PIXELS_PER_MM + plane.high[up] - high[up]) * perMm;
    const path = new Path2D();
    const line = (column, row, toColumn, toRow) => {
      path.moveTo(x(column), y(row));
      path.lineTo(x(toColumn), y(toRow));
    };
    for (let row = 0; row <= rows; row++) {
      for (let column = 0; column <= columns; column++) {
        const here = inside(row, column);
        if (here !== inside(row, column - 1)) line(column, row, column, row + 1);
        if (here !== inside(row - 1, column)) line(column, row, column + 1, row);
      }
    }
    stroke(context, path, [[3.5, "#000000b0"], [1.75, OUTLINE_COLOUR]], ratio);
  }

  // Visible on red, on blue and on both backgrounds: white within black. Its middle leaves the voxel free.
  drawCross({ across, up }, context, ratio) {
    const { width, height } = context.canvas;
    const whole = (place) => Math.round(place - 0.5) + 0.5;
    const x = whole((this.mm[across] - this.low[across]) / (this.high[across] - this.low[across]) * width);
    const y = whole((this.high[up] - this.mm[up]) / (this.high[up] - this.low[up]) * height);
    const gap = 5 * ratio;
    const path = new Path2D(`M0 ${y}H${x - gap}M${x + gap} ${y}H${width}M${x} 0V${y - gap}M${x} ${y + gap}V${height}`);
    stroke(context, path, [[3, "#000"], [1, "#fff"]], ratio);
  }

  drawBar() {
    const { threshold, limit, name } = this.map;
    // The hidden values always have a fifth of the bar, so that its numbers never overlap.
    const place = (value) => {
      const size = Math.abs(value);
      const part = size > threshold ? 10 + 40 * Math.min(1, (size - threshold) / (limit - threshold)) : 10 * size / threshold;
      return 50 + Math.sign(value) * part;
    };
    const ramp = (sign) => DATA.colours[sign].map((colour, number, all) => {
      const percent = 10 + 40 * number / (all.length - 1);
      return `${byId(sign).checked ? colour : "var(--hidden)"} ${sign === "positive" ? 50 + percent : 50 - percent}%`;
    });
    const hidden = [40, 60].map((percent) => `var(--hidden) ${percent}%`);
    byId("bar").style.background = `linear-gradient(to right, ${[...ramp("negative").reverse(), ...hidden, ...ramp("positive")].join(", ")})`;
    const text = (value) => decimalsOf(this.map, value);
    const ticks = [[0, `≤ ${text(-limit)}`], [40, text(-threshold)], [60, text(threshold)], [100, `≥ ${text(limit)}`]];
    byId("ticks").replaceChildren(...ticks.map(([percent, textContent]) => {
      const tick = Object.assign(document.createElement("span"), { textContent });
      tick.style.left = `${percent}%`;
      return tick;
    }));
    byId("bar").setAttribute("aria-label", `Colour bar, ${name}: blue from ${text(-limit)} to ${text(-threshold)}, red from ${text(threshold)} to ${text(limit)}`);
    const value = valueAt(this.map, this.mm);
    byId("mark").hidden = value === UNDEFINED;
    byId("mark").style.left = `${place(value / 10 ** this.map.decimals)}%`;
  }

  write() {
    AXES.forEach((name, d) => { if (document.activeElement !== byId(name)) byId(name).value = Math.round(this.mm[d] * 10) / 10; });
    byId("hemisphere").textContent = sideOf(this.mm[0]);
    for (const { axis, slider, output } of this.planes) {
      slider.value = this.mm[axis];
      slider.setAttribute("aria-valuetext", `${inMm(this.mm[axis])} mm`);
      output.textContent = inMm(this.mm[axis]);
    }
    byId("opacity").parentElement.querySelector("output").textContent = byId("opacity").value;
    byId("values").replaceChildren(...this.readings().flatMap(([name, text, kind]) => {
      const parts = [["dt", name], ["dd", text]];
      return parts.map(([tag, textContent]) => Object.assign(document.createElement(tag), { textContent, className: kind ?? "" }));
    }));
  }

  readings() {
    const maps = [...this.maps.values()];
    const rows = maps.map((map) => [map.stat, valueText(map, valueAt(map, this.mm)), map === this.map ? "map shown" : "map"]);
    rows.push(["Side", sideOf(this.mm[0])]);
    if (this.lesion) rows.push(["Lesion", valueAt(this.lesion, this.mm) === UNDEFINED ? "outside" : "inside"]);
    rows.push(["Voxel", `${voxelAt(maps[0], this.mm).join(", ")}`]);
    return rows;
  }

  describe() {
    const place = AXES.map((name, d) => `${name} ${inMm(this.mm[d])}`).join(", ");
    return `${place} mm: ${this.readings().slice(0, -1).map(([name, text]) => `${name} ${text}`).join(", ")}`;
  }

  count() {
    const { values, threshold, decimals, n, stat } = this.map;
    const edge = (threshold + 1e-9) * 10 ** decimals;
    let [above, below] = [0, 0];
    for (const value of values) {
      if (value > edge) above++;
      else if (value < -edge && value !== UNDEFINED) below++;
    }
    const percent = (number) => `${(100 * number / n).toFixed(1)} %`;
    return `${percent(above)} of the voxels have ${stat} > ${threshold.toFixed(decimals)}, ${percent(below)} have ${stat} < \u2212${threshold.toFixed(decimals)}.`;
  }
}

function sideOf(x) {
  return Math.abs(x) < 0.05 ? "midline" : x < 0 ? "left" : "right";
}

function decimalsCeil(value, decimals) {
  return Math.ceil(value * 10 ** decimals) / 10 ** decimals;
}

function stroke(context, path, lines, ratio) {
  for (const [width, strokeStyle] of lines) {
    Object.assign(context, { lineWidth: width * ratio, strokeStyle, lineCap: "round" });
    context.stroke(path);
  }
}

if (parent !== window) document.documentElement.classList.add("embedded");
start().catch((error) => {
  const old = typeof DecompressionStream === "undefined" || typeof OffscreenCanvas === "undefined";
  byId("trouble").hidden = false;
  byId("trouble").textContent = old
    ? "This browser is too old for the viewer: open the page in Chrome 80, Edge 80, Firefox 113, Safari 16.4 or a later version."
    : `The viewer cannot show its data (${error.message}): write the page again with --reports-only.`;
});
