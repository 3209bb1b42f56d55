// The viewer: its state, its controls, and the values under the cursor.

const DATA = JSON.parse(document.getElementById("data").textContent);
const AXES = ["x", "y", "z"];
const SPOKEN_AFTER_MS = 400; // A screen reader would otherwise read every slice on the way.
const byId = (id) => document.getElementById(id);

const minus = (text) => text.replace("-", "\u2212");
const inMm = (value) => minus(String(Math.round(value * 10) / 10));
const sideOf = (x) => (Math.abs(x) < 0.05 ? "midline" : x < 0 ? "left" : "right");
const textOf = (map, value) => minus(value.toFixed(map.decimals));

class Viewer {
  constructor(background, lesion, maps) {
    Object.assign(this, { background, lesion, maps, home: DATA.start });
    const boxes = [background, maps.values().next().value].map(boxOf);
    // One more mm: the centres of pixels of 2 mm are then those of the template's voxels.
    this.low = AXES.map((_, d) => Math.min(...boxes.map((box) => box[0][d])) - MARGIN_MM - 1);
    this.high = AXES.map((_, d) => Math.max(...boxes.map((box) => box[1][d])) + MARGIN_MM + 1);
    this.planes = ["sagittal", "coronal", "axial"].map((id, axis) => new Plane(id, axis, this.low, this.high));
    const widths = this.planes.map(({ width }) => `minmax(0, ${width}fr)`);
    byId("planes").style.setProperty("--wide", widths.join(" "));
    byId("planes").style.setProperty("--narrow", widths.slice(0, 2).join(" "));
    for (const { stat } of maps.values()) {
      const radio = document.createElement("input");
      Object.assign(radio, { type: "radio", name: "map", value: stat, id: `${stat}-map` });
      const label = Object.assign(document.createElement("label"), { htmlFor: radio.id, textContent: radio.id });
      byId("maps").append(radio, label);
    }
    if (lesion) return;
    byId("outline").parentElement.remove();
    document.querySelectorAll(".of-lesion, #centre").forEach((each) => each.remove());
  }

  get options() {
    const checked = (id) => byId(id)?.checked;
    return { opacity: byId("opacity").value / 100, outline: checked("outline"), cross: checked("cross") };
  }

  listen() {
    this.planes.forEach((plane) => plane.listen(this));
    byId("maps").addEventListener("change", ({ target }) => this.show(target.value));
    byId("centre")?.addEventListener("click", () => this.moveTo(this.home));
    byId("highest").addEventListener("click", () => this.moveTo(this.extreme(1)));
    byId("lowest").addEventListener("click", () => this.moveTo(this.extreme(-1)));
    byId("reset").addEventListener("click", () => this.reset());
    AXES.forEach((name, d) => byId(name).addEventListener("change", ({ target }) => {
      this.moveTo(this.mm.map((mm, each) => (each === d && target.value !== "" ? Number(target.value) : mm)));
    }));
    for (const id of ["threshold", "limit"]) {
      for (const input of [byId(id), byId(`${id}-exactly`)]) {
        input.addEventListener("input", () => {
          if (input.value === "") return;
          this.map[id] = Math.max(0, Number(input.value));
          this.rescale(input);
        });
      }
      byId(`${id}-exactly`).addEventListener("change", () => this.rescale());
    }
    for (const id of ["opacity", "positive", "negative", "outline", "cross"]) {
      byId(id)?.addEventListener("input", () => this.redraw());
    }
    addEventListener("hashchange", () => this.follow(location.hash));
    addEventListener("message", ({ source, data }) => {
      if (source === parent && Array.isArray(data?.mm)) this.moveTo(data.mm.map(Number));
    });
  }

  reset() {
    for (const { stat, threshold, limit } of DATA.maps) Object.assign(this.maps.get(stat), { threshold, limit });
    for (const id of ["positive", "negative", "outline", "cross"]) if (byId(id)) byId(id).checked = true;
    byId("opacity").value = byId("opacity").defaultValue;
    this.mm = this.home;
    this.show(DATA.maps[0].stat);
    this.moveTo(this.home);
  }

  follow(hash) {
    const found = /^#mm=([-\d.]+),([-\d.]+),([-\d.]+)$/.exec(hash.replace(/%2C/gi, ","));
    if (found) this.moveTo(found.slice(1).map(Number));
  }

  moveTo(mm) {
    if (mm?.length !== 3 || !mm.every(Number.isFinite)) return;
    this.mm = mm.map((value, d) => Math.max(this.low[d] + 1, Math.min(this.high[d] - 1, value)));
    this.redraw();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { byId("spoken").textContent = this.describe(); }, SPOKEN_AFTER_MS);
  }

  show(stat) {
    this.map = this.maps.get(stat);
    byId("maps").querySelector(`[value="${stat}"]`).checked = true;
    byId("name").textContent = this.map.name;
    byId("absolute").textContent = `|${stat}|`;
    const { threshold, limit } = DATA.maps.find((each) => each.stat === stat);
    const step = 10 ** -this.map.decimals;
    for (const id of ["threshold", "limit"]) {
      Object.assign(byId(id), { step, max: (2 * Math.max(limit, threshold)).toFixed(this.map.decimals) });
      byId(`${id}-exactly`).step = step;
    }
    this.rescale();
  }

  // As in the pictures: colours need room above the threshold.
  get limit() {
    return Math.max(this.map.limit, 1.25 * this.map.threshold, 10 ** -this.map.decimals);
  }

  // Show the threshold and the limit, except where the user is typing.
  rescale(typing) {
    for (const [id, value] of [["threshold", this.map.threshold], ["limit", this.limit]]) {
      for (const input of [byId(id), byId(`${id}-exactly`)]) {
        if (input !== typing) input.value = value.toFixed(this.map.decimals);
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
      this.planes.forEach((plane) => plane.draw(this, colourOf));
      this.drawBar();
      this.write();
    });
  }

  // A function from a voxel's stored value to its pixel; 0 is transparent.
  colouring() {
    const [{ threshold, decimals }, { limit }] = [this.map, this];
    const unit = 10 ** decimals;
    const [cold, hot] = ["negative", "positive"].map((id) => byId(id).checked && DATA.colours[id].map(pixelOf));
    return (value) => {
      const [size, ramp] = [Math.abs(value) / unit, value > 0 ? hot : cold];
      if (!ramp || !(size > threshold + 1e-9)) return 0;
      return ramp[Math.round(Math.min(1, (size - threshold) / (limit - threshold)) * (ramp.length - 1))];
    };
  }

  // Hidden values always take the middle fifth of the bar, so that its numbers never overlap.
  drawBar() {
    const [{ threshold, name }, { limit }] = [this.map, this];
    const place = (value) => {
      const [size, sign] = [Math.abs(value), Math.sign(value)];
      if (size <= threshold) return 50 + sign * 10 * (size / threshold);
      return 50 + sign * (10 + 40 * Math.min(1, (size - threshold) / (limit - threshold)));
    };
    const ramp = (id, sign) => DATA.colours[id].map((colour, number, all) => (
      `${byId(id).checked ? colour : "var(--hidden)"} ${50 + sign * (10 + 40 * number / (all.length - 1))}%`
    ));
    const hidden = ["var(--hidden) 40%", "var(--hidden) 60%"];
    const stops = [...ramp("negative", -1).reverse(), ...hidden, ...ramp("positive", 1)];
    byId("bar").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    const numbers = [-limit, -threshold, threshold, limit].map((value) => textOf(this.map, value));
    byId("ticks").replaceChildren(...[0, 40, 60, 100].map((percent, at) => {
      const textContent = `${["≤ ", "", "", "≥ "][at]}${numbers[at]}`;
      const tick = Object.assign(document.createElement("span"), { textContent });
      tick.style.left = `${percent}%`;
      return tick;
    }));
    const [lowest, below, above, highest] = numbers;
    const words = `Colours of ${name}: blue from ${lowest} to ${below}, red from ${above} to ${highest}`;
    byId("bar").setAttribute("aria-label", words);
    const value = valueAt(this.map, this.mm);
    byId("mark").hidden = value === UNDEFINED;
    byId("mark").style.left = `${place(value / 10 ** this.map.decimals)}%`;
  }

  write() {
    AXES.forEach((name, d) => {
      if (document.activeElement !== byId(name)) byId(name).value = Math.round(this.mm[d] * 10) / 10;
    });
    byId("hemisphere").textContent = sideOf(this.mm[0]);
    for (const { axis, input, output } of this.planes) {
      input.value = this.mm[axis];
      input.setAttribute("aria-valuetext", `${inMm(this.mm[axis])} mm`);
      output.textContent = inMm(this.mm[axis]);
    }
    byId("percent").textContent = `${byId("opacity").value} %`;
    byId("values").replaceChildren(...this.readings().flatMap(([name, text, className]) => (
      [["dt", name], ["dd", text]].map(([tag, textContent]) => (
        Object.assign(document.createElement(tag), { textContent, className })
      ))
    )));
  }

  readings() {
    const maps = [...this.maps.values()];
    const rows = maps.map((map) => {
      const value = valueAt(map, this.mm);
      const text = value === UNDEFINED ? "undefined" : textOf(map, value / 10 ** map.decimals);
      return [map.stat, text, map === this.map ? "map shown" : "map"];
    });
    rows.push(["Side", sideOf(this.mm[0]), ""]);
    if (this.lesion) rows.push([DATA.kind[0].toUpperCase() + DATA.kind.slice(1), valueAt(this.lesion, this.mm) === UNDEFINED ? "outside" : "inside", ""]);
    rows.push(["Voxel", voxelAt(maps[0], this.mm).join(", "), ""]);
    return rows;
  }

  describe() {
    const place = AXES.map((name, d) => `${name} ${inMm(this.mm[d])}`).join(", ");
    return `${place} mm: ${this.readings().map(([name, text]) => `${name} ${text}`).join(", ")}`;
  }

  count() {
    const { values, threshold, decimals, n, stat } = this.map;
    const edge = (threshold + 1e-9) * 10 ** decimals;
    let [above, below] = [0, 0];
    for (const value of values) {
      if (value > edge) above++;
      else if (value < -edge && value !== UNDEFINED) below++;
    }
    const [upper, lower] = [threshold, -threshold].map((value) => textOf(this.map, value));
    const [more, less] = [above, below].map((number) => `${(100 * number / n).toFixed(1)} %`);
    return `${more} of the voxels have ${stat} > ${upper}, ${less} have ${stat} < ${lower}.`;
  }
}

async function start() {
  const background = { white: DATA.template.white, ...await decode(DATA.template) };
  const lesion = DATA.lesion && await decode(DATA.lesion);
  if (lesion) lesion.box = boxOf(lesion).map((corner, end) => corner.map((mm) => mm + [-MARGIN_MM, MARGIN_MM][end]));
  const maps = new Map();
  for (const { defined, steps, shape, affine, ...rest } of DATA.maps) {
    const map = { ...rest, ...await decode({ shape, affine, defined, steps }) };
    if (map.fromR) addPrediction(map, maps.get("r"), DATA.largestR);
    maps.set(map.stat, map);
  }
  const viewer = new Viewer(background, lesion, maps);
  byId("trouble").hidden = true;
  byId("viewer").hidden = false;
  viewer.listen();
  viewer.reset();
  viewer.follow(location.hash);
  // A page on disk cannot look into its frames: it has to be told their height.
  const tell = () => parent.postMessage({ viewerHeight: document.body.offsetHeight }, "*");
  if (parent === window) viewer.planes[2].canvas.focus({ focusVisible: false });
  else new ResizeObserver(tell).observe(document.body);
}

if (parent !== window) document.documentElement.classList.add("embedded");
start().catch((error) => {
  byId("trouble").hidden = false;
  byId("trouble").textContent += ` The reason: ${error.message}.`;
});
