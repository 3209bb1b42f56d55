// A plane of the viewer: its canvas, its slider, and what they do.

const STEP_MM = 2;
const LONG_STEP_MM = 10;
const MARGIN_MM = 4;
const PIXELS_PER_MM = 2; // Finer than any map's voxels, whose edges thus stay straight.
const WHEEL_PER_SLICE = 40; // Less than a notch of any mouse; trackpads send many small movements.
const OUTLINE_COLOUR = "#00ff00";
const DARKEST_GREY = 38;
const BRIGHTEST_GREY = 229;

class Plane {
  constructor(id, axis, low, high) {
    const [across, up] = [0, 1, 2].filter((other) => other !== axis);
    Object.assign(this, { axis, across, up, low, high, element: document.getElementById(id) });
    for (const tag of ["canvas", "input", "output", "button"]) this[tag] = this.element.querySelector(tag);
    this.width = high[across] - low[across];
    this.height = high[up] - low[up];
    this.element.style.setProperty("--ratio", this.width / this.height);
    Object.assign(this.input, { min: low[axis] + 1, max: high[axis] - 1, step: STEP_MM });
  }

  listen(viewer) {
    const { canvas, axis } = this;
    const follow = (event) => viewer.moveTo(this.pointAt(event, viewer.mm));
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      follow(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) follow(event);
    });
    let turned = 0;
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey) return;
      event.preventDefault();
      turned += event.deltaY * (event.deltaMode ? WHEEL_PER_SLICE : 1);
      if (Math.abs(turned) < WHEEL_PER_SLICE) return;
      viewer.moveTo(this.stepped(viewer.mm, axis, turned < 0 ? STEP_MM : -STEP_MM));
      turned = 0;
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.obey(event, viewer));
    this.input.addEventListener("input", () => {
      viewer.moveTo(viewer.mm.map((mm, d) => (d === axis ? Number(this.input.value) : mm)));
    });
    this.button.addEventListener("click", () => {
      this.button.setAttribute("aria-pressed", this.element.classList.toggle("large"));
    });
    new ResizeObserver(() => viewer.redraw()).observe(canvas);
  }

  obey(event, viewer) {
    const { axis, across, up } = this;
    const keys = {
      ArrowRight: [across, 1], ArrowLeft: [across, -1], ArrowUp: [up, 1], ArrowDown: [up, -1],
      PageUp: [axis, 1], PageDown: [axis, -1], ".": [axis, 1], ",": [axis, -1],
    };
    if (event.ctrlKey || event.altKey || event.metaKey || !(event.key === "Home" || event.key in keys)) return;
    event.preventDefault();
    if (event.key === "Home") return viewer.moveTo(viewer.home);
    const [d, sign] = keys[event.key];
    viewer.moveTo(this.stepped(viewer.mm, d, sign * (event.shiftKey ? LONG_STEP_MM : STEP_MM)));
  }

  // Positions that a pointer or a key sets are those of the template's voxels.
  snapped(mm, d) {
    const first = this.low[d] + 1;
    return first + STEP_MM * Math.round((mm - first) / STEP_MM);
  }

  stepped(mm, d, by) {
    return mm.map((value, each) => (each === d ? this.snapped(value + by, d) : value));
  }

  pointAt({ offsetX, offsetY }, mm) {
    const { across, up, low, high, canvas } = this;
    const point = [...mm];
    point[across] = this.snapped(low[across] + (offsetX / canvas.clientWidth) * this.width, across);
    point[up] = this.snapped(high[up] - (offsetY / canvas.clientHeight) * this.height, up);
    return point;
  }

  draw({ background, map, lesion, mm, options }, colourOf) {
    const { canvas } = this;
    const inPixels = (size) => Math.round(size * devicePixelRatio) || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map(inPixels);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = true;
    context.drawImage(picture(slice(background, this, mm, 1 / STEP_MM), this.greys(background)), 0, 0, width, height);
    context.imageSmoothingEnabled = false;
    context.globalAlpha = options.opacity;
    context.drawImage(picture(slice(map, this, mm, PIXELS_PER_MM), colourOf), 0, 0, width, height);
    context.globalAlpha = 1;
    if (lesion && options.outline) this.drawOutline(context, lesion, mm);
    if (options.cross) this.drawCross(context, mm);
  }

  greys({ white }) {
    return (shade) => {
      const grey = Math.round(DARKEST_GREY + (BRIGHTEST_GREY - DARKEST_GREY) * (shade / white));
      return (0xff000000 | (grey << 16) | (grey << 8) | grey) >>> 0;
    };
  }

  drawOutline(context, lesion, mm) {
    const { across, up } = this;
    const [low, high] = lesion.box;
    const { columns, rows, values } = slice(lesion, { ...this, low, high }, mm, PIXELS_PER_MM);
    const inside = (row, column) => (
      row >= 0 && row < rows && column >= 0 && column < columns && values[row * columns + column] !== UNDEFINED
    );
    const perMm = context.canvas.width / this.width;
    const x = (column) => (column / PIXELS_PER_MM + low[across] - this.low[across]) * perMm;
    const y = (row) => (row / PIXELS_PER_MM + this.high[up] - high[up]) * perMm;
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
    this.stroke(context, path, [[3.5, "#000000b0"], [1.75, OUTLINE_COLOUR]]);
  }

  // White within black is visible on red, on blue and on both backgrounds. Its middle leaves the voxel free.
  drawCross(context, mm) {
    const { across, up, low, high } = this;
    const { width, height } = context.canvas;
    const whole = (place) => Math.round(place - 0.5) + 0.5;
    const x = whole(((mm[across] - low[across]) / this.width) * width);
    const y = whole(((high[up] - mm[up]) / this.height) * height);
    const gap = 5 * devicePixelRatio;
    const path = new Path2D(
      `M0 ${y}H${x - gap}M${x + gap} ${y}H${width}M${x} 0V${y - gap}M${x} ${y + gap}V${height}`,
    );
    this.stroke(context, path, [[3, "#000"], [1, "#fff"]]);
  }

  stroke(context, path, lines) {
    for (const [width, strokeStyle] of lines) {
      Object.assign(context, { lineWidth: width * devicePixelRatio, strokeStyle, lineCap: "round" });
      context.stroke(path);
    }
  }
}
