// Draws a picture, its mask and its maps on one canvas: views under a common zoom, classes on and off, the class under
// the pointer. Everything happens here; the server only hears of settings that belong into the page's address.

const VIEWS = [
  ["overlay", "Overlay"], ["compare", "Compare"], ["grid", "Side by side"],
  ["image", "Original"], ["mask", "Mask"], ["uncertainty", "Uncertainty"],
];
const TITLES = Object.fromEntries(VIEWS);
const MAX_ZOOM = 40;
const GAP = 6;
const REPORT_AFTER = 400; // milliseconds without a change
// Dark to light and readable without colour: inferno, in five steps.
const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

export default function (component) {
  const { parentElement, data, setStateValue } = component;
  // Kept at the element: a rerun of the page calls this function again, and zoom and settings must outlive that.
  const viewer = (parentElement.tiramisuViewer ??= new Viewer(parentElement));
  viewer.report = (settings) => setStateValue("settings", settings);
  viewer.show(data);
  return () => {
    viewer.close();
    delete parentElement.tiramisuViewer;
  };
}

class Viewer {
  constructor(root) {
    const find = (selector) => root.querySelector(selector);
    this.canvas = find("canvas");
    this.context = this.canvas.getContext("2d");
    this.tip = find(".tip");
    this.status = find(".status");
    this.classes = find(".classes");
    this.views = find(".views");
    this.opacityInput = find(".opacity input");
    this.opacityOutput = find(".opacity output");
    this.opacityLabel = find(".opacity");
    this.scale = find(".scale");
    this.splitLabel = find(".split");
    this.splitInput = find(".split input");
    this.settings = null;
    this.center = [0.5, 0.5]; // of the picture, from 0 to 1, so that the next picture keeps it
    this.zoom = 1;
    this.split = 0.5;
    this.probe = null; // the pixel that is pointed at
    this.pointers = new Map();
    this.buildViews();
    this.listen(find);
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.canvas.parentElement);
  }

  close() {
    this.observer.disconnect();
    clearTimeout(this.timer);
  }

  // ---- data

  async show(data) {
    if (!data || data.picture === this.shown?.picture && data.mask === this.shown?.mask
        && data.uncertainty === this.shown?.uncertainty && JSON.stringify(data.classes) === JSON.stringify(this.shown?.classes)) return;
    this.shown = data;
    const names = data.classes.map(({ name }) => name).join("\n");
    this.settings ??= { ...data.settings };
    if (names !== this.names) this.settings.hidden = new Set(data.settings.hidden); // those of another model mean others
    this.names = names;
    const kinds = ["picture", "mask", "confidence", "uncertainty"].filter((kind) => data[kind]);
    const loaded = await Promise.all(kinds.map((kind) => loadPicture(data[kind])));
    if (this.shown !== data) return; // another one came meanwhile
    const pictures = Object.fromEntries(kinds.map((kind, index) => [kind, loaded[index]]));
    this.data = data;
    this.width = pictures.picture.width;
    this.height = pictures.picture.height;
    this.layers = { image: pictures.picture };
    this.mask = firstChannel(pictures.mask);
    this.confidence = firstChannel(pictures.confidence);
    this.uncertainty = pictures.uncertainty ? firstChannel(pictures.uncertainty) : null;
    this.layers.uncertainty = this.uncertainty ? this.paint((index) => heat(this.uncertainty[index])) : null;
    this.canvas.setAttribute("aria-label", `${data.alt}. Arrow keys move the pointer, plus and minus zoom, 0 resets.`);
    this.probe = null;
    this.buildLegend();
    this.paintMask();
    this.update();
  }

  paint(color) {
    const canvas = new OffscreenCanvas(this.width, this.height);
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(this.width, this.height);
    const words = new Uint32Array(pixels.data.buffer);
    for (let index = 0; index < words.length; index++) words[index] = color(index);
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  paintMask() {
    const table = new Uint32Array(256); // what is no class stays transparent
    for (const { index, color } of this.data.classes) {
      if (!this.settings.hidden.has(index)) table[index] = word(color);
    }
    this.layers.mask = this.paint((index) => table[this.mask[index]]);
  }

  // ---- controls

  buildViews() {
    for (const [name, title] of VIEWS) {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: title });
      button.dataset.view = name;
      button.setAttribute("role", "radio");
      button.addEventListener("click", () => this.change({ view: name }));
      button.addEventListener("keydown", (event) => this.moveChoice(event));
      this.views.append(button);
    }
  }

  moveChoice(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...this.views.children].filter((button) => !button.disabled);
    const next = buttons[(buttons.indexOf(event.target) + step + buttons.length) % buttons.length];
    next.click();
    next.focus();
  }

  buildLegend() {
    const buttons = this.data.classes.map(({ index, name, color, share }) => {
      const button = document.createElement("button");
      const swatch = document.createElement("i");
      const small = document.createElement("small");
      button.type = "button";
      button.dataset.index = index;
      swatch.style.background = `rgb(${color.join(",")})`;
      small.textContent = share ? `${percent(share)} %` : "–";
      button.append(swatch, name, small);
      button.addEventListener("click", () => {
        const hidden = new Set(this.settings.hidden);
        if (!hidden.delete(index)) hidden.add(index);
        this.change({ hidden });
      });
      return button;
    });
    this.classes.replaceChildren(...buttons);
  }

  listen(find) {
    this.opacityInput.addEventListener("input", () => this.change({ opacity: this.opacityInput.value / 100 }));
    this.splitInput.addEventListener("input", () => {
      this.split = this.splitInput.value / 100;
      this.draw();
    });
    find(".zooms").addEventListener("click", (event) => {
      const factor = event.target.dataset.zoom;
      if (factor !== undefined) this.zoomBy(Number(factor));
    });
    find(".all").addEventListener("click", (event) => {
      const all = event.target.dataset.all;
      if (all) this.change({ hidden: new Set(all === "on" ? [] : this.data.classes.map(({ index }) => index)) });
    });
    this.canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== this.canvas && this.canvas.getRootNode().activeElement !== this.canvas
          && !event.ctrlKey) return; // the page scrolls until the picture was clicked
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY / 300), this.at(event));
    }, { passive: false });
    this.canvas.addEventListener("pointerdown", (event) => this.press(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const kind of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(kind, (event) => {
        this.pointers.delete(event.pointerId);
        this.dragsSplit = false;
      });
    }
    this.canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this.point(null); // a finger that was lifted still wants to know
    });
    this.canvas.addEventListener("dblclick", (event) => this.zoomBy(2, this.at(event)));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  change(settings) {
    Object.assign(this.settings, settings);
    if (!this.data) return;
    if (settings.hidden) this.paintMask();
    this.update();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const { opacity, view, hidden } = this.settings;
      this.report({ opacity, view, hidden: [...hidden].sort((a, b) => a - b) });
    }, REPORT_AFTER);
  }

  update() {
    const { opacity, hidden } = this.settings;
    const view = this.view();
    for (const button of this.views.children) {
      button.setAttribute("aria-checked", String(button.dataset.view === view));
      button.tabIndex = button.dataset.view === view ? 0 : -1;
      if (button.dataset.view === "uncertainty") {
        button.disabled = !this.uncertainty;
        button.title = this.uncertainty ? "" : "Choose an uncertainty in the settings first";
      }
    }
    this.opacityInput.value = Math.round(100 * opacity);
    this.opacityOutput.textContent = `${Math.round(100 * opacity)} %`;
    this.splitLabel.style.display = view === "compare" ? "" : "none";
    this.opacityLabel.style.display = ["overlay", "compare", "grid"].includes(view) ? "" : "none";
    this.scale.style.display = this.uncertainty && ["uncertainty", "grid"].includes(view) ? "" : "none";
    for (const button of this.classes.children) {
      button.setAttribute("aria-pressed", String(!hidden.has(Number(button.dataset.index))));
    }
    this.draw();
  }

  view() {
    return this.settings.view === "uncertainty" && !this.uncertainty ? "overlay" : this.settings.view;
  }

  // ---- geometry: panels are rectangles of the canvas in CSS pixels, all of them with the same zoom and centre

  panels() {
    const width = this.canvas.parentElement.clientWidth;
    const aspect = this.height / this.width;
    if (this.view() !== "grid") {
      return [{ kind: this.view(), x: 0, y: 0, width, height: Math.min(width * aspect, Math.max(320, innerHeight * 0.7)) }];
    }
    const kinds = ["image", "mask", "overlay", ...(this.uncertainty ? ["uncertainty"] : [])];
    const columns = width < 500 ? 1 : kinds.length === 4 ? 2 : 3;
    const panelWidth = (width - GAP * (columns - 1)) / columns;
    const panelHeight = panelWidth * aspect;
    return kinds.map((kind, index) => ({
      kind,
      x: (index % columns) * (panelWidth + GAP),
      y: Math.floor(index / columns) * (panelHeight + GAP),
      width: panelWidth,
      height: panelHeight,
    }));
  }

  place(panel) {
    const scale = Math.min(panel.width / this.width, panel.height / this.height) * this.zoom;
    return {
      scale,
      left: panel.x + panel.width / 2 - this.center[0] * this.width * scale,
      top: panel.y + panel.height / 2 - this.center[1] * this.height * scale,
    };
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  panelAt([x, y]) {
    return this.panels().find((panel) => x >= panel.x && x < panel.x + panel.width && y >= panel.y && y < panel.y + panel.height);
  }

  pixelAt(position) {
    const panel = this.data && this.panelAt(position);
    if (!panel) return null;
    const { scale, left, top } = this.place(panel);
    const x = Math.floor((position[0] - left) / scale);
    const y = Math.floor((position[1] - top) / scale);
    return x >= 0 && y >= 0 && x < this.width && y < this.height ? [x, y] : null;
  }

  clamp() {
    const half = 0.5 / this.zoom;
    this.center = this.center.map((value) => Math.min(Math.max(value, half), 1 - half));
  }

  zoomBy(factor, position = null) {
    if (!this.data) return;
    const panel = (position && this.panelAt(position)) || this.panels()[0];
    const [x, y] = position ?? [panel.x + panel.width / 2, panel.y + panel.height / 2];
    const before = this.place(panel);
    this.zoom = factor ? Math.min(Math.max(this.zoom * factor, 1), MAX_ZOOM) : 1;
    const ratio = this.place(panel).scale / before.scale;
    this.center[0] += (x - panel.x - panel.width / 2) / (before.scale * this.width) * (1 - 1 / ratio);
    this.center[1] += (y - panel.y - panel.height / 2) / (before.scale * this.height) * (1 - 1 / ratio);
    this.clamp();
    this.draw();
  }

  // ---- pointing

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    const position = this.at(event);
    this.pointers.set(event.pointerId, position);
    this.point(this.pixelAt(position), position);
    const panel = this.data && this.panels()[0];
    this.dragsSplit = this.data && this.view() === "compare" && Math.abs(position[0] - panel.x - panel.width * this.split) < 16;
  }

  move(event) {
    if (!this.data) return;
    const position = this.at(event);
    const last = this.pointers.get(event.pointerId);
    if (last && this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const spread = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
      this.zoomBy(spread(position) / Math.max(spread(last), 1), other);
    } else if (last && this.dragsSplit) {
      const panel = this.panels()[0];
      this.split = Math.min(Math.max((position[0] - panel.x) / panel.width, 0), 1);
      this.splitInput.value = Math.round(100 * this.split);
    } else if (last) {
      const { scale } = this.place(this.panelAt(last) ?? this.panels()[0]);
      this.center[0] -= (position[0] - last[0]) / (scale * this.width);
      this.center[1] -= (position[1] - last[1]) / (scale * this.height);
      this.clamp();
    }
    if (last) this.pointers.set(event.pointerId, position);
    this.point(this.pixelAt(position), position);
    if (last) this.draw();
  }

  point(pixel, position = null) {
    const had = this.probe;
    this.probe = position ? null : pixel; // the keyboard's pointer is drawn, the mouse has its own
    const found = pixel && this.describe(pixel);
    this.tip.hidden = !found || !position;
    for (const button of this.classes.children) {
      button.classList.toggle("pointed", Boolean(found) && Number(button.dataset.index) === found.index);
    }
    if (found && position) {
      this.tip.textContent = found.text;
      this.tip.style.setProperty("--swatch", found.color);
      const place = (at, size, room) => (at + 14 + size <= room ? at + 14 : Math.max(0, at - 14 - size));
      this.tip.style.left = `${place(position[0], this.tip.offsetWidth, this.canvas.clientWidth)}px`;
      this.tip.style.top = `${place(position[1], this.tip.offsetHeight, this.canvas.clientHeight)}px`;
    }
    if (!position) this.status.textContent = found ? found.text : "";
    if (had || this.probe) this.draw();
  }

  describe([x, y]) {
    const index = this.mask[y * this.width + x];
    const known = this.data.classes[index];
    const share = Math.round(this.confidence[y * this.width + x] / 2.55);
    let text = known ? `${known.name} ${share} %` : "void";
    if (this.uncertainty) text += ` · uncertainty ${Math.round(this.uncertainty[y * this.width + x] / 2.55)} %`;
    return { index, text, color: known ? `rgb(${known.color.join(",")})` : "transparent" };
  }

  key(event) {
    if (!this.data || event.metaKey || event.altKey || event.ctrlKey) return;
    const step = event.shiftKey ? 1 : Math.max(1, Math.round(this.width / 40 / this.zoom));
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (moves[event.key]) {
      const from = this.probe ?? this.center.map((value, axis) => Math.floor(value * [this.width, this.height][axis]));
      const limit = [this.width - 1, this.height - 1];
      const to = from.map((value, axis) => Math.min(Math.max(value + step * moves[event.key][axis], 0), limit[axis]));
      const reach = 0.45 / this.zoom; // the picture follows a pointer that leaves it
      this.center = this.center.map((value, axis) => {
        const target = to[axis] / [this.width, this.height][axis];
        return Math.min(Math.max(value, target - reach), target + reach);
      });
      this.clamp();
      this.point(to);
    } else if (event.key === "+" || event.key === "=") this.zoomBy(1.5);
    else if (event.key === "-") this.zoomBy(1 / 1.5);
    else if (event.key === "0") this.zoomBy(0);
    else return;
    event.preventDefault();
  }

  // ---- drawing

  draw() {
    if (!this.data) return;
    const panels = this.panels();
    const height = Math.max(...panels.map((panel) => panel.y + panel.height));
    const ratio = window.devicePixelRatio || 1;
    const width = this.canvas.parentElement.clientWidth;
    const size = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== size[0] || this.canvas.height !== size[1]) {
      [this.canvas.width, this.canvas.height] = size;
      this.canvas.style.height = `${height}px`;
    }
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, width, height);
    this.canvas.style.touchAction = this.zoom > 1 ? "none" : "pan-y"; // a finger scrolls the page past a whole picture
    for (const panel of panels) this.drawPanel(panel, panels.length > 1);
  }

  drawPanel(panel, titled) {
    const { context } = this;
    const { scale, left, top } = this.place(panel);
    context.save();
    context.beginPath();
    context.rect(panel.x, panel.y, panel.width, panel.height);
    context.clip();
    const lay = (layer, opacity = 1, smooth = false) => {
      context.globalAlpha = opacity;
      context.imageSmoothingEnabled = smooth && scale < 3;
      context.drawImage(layer, left, top, this.width * scale, this.height * scale);
      context.globalAlpha = 1;
    };
    if (panel.kind === "mask") lay(this.layers.mask);
    else if (panel.kind === "uncertainty") lay(this.layers.uncertainty);
    else {
      lay(this.layers.image, 1, true);
      if (panel.kind === "compare") this.drawAfter(panel, lay);
      else if (panel.kind === "overlay") lay(this.layers.mask, this.settings.opacity);
    }
    if (this.probe) this.drawProbe(left + (this.probe[0] + 0.5) * scale, top + (this.probe[1] + 0.5) * scale);
    if (titled) {
      context.font = "13px sans-serif";
      const title = TITLES[panel.kind];
      context.fillStyle = "rgba(15, 17, 22, 0.75)";
      context.fillRect(panel.x, panel.y, context.measureText(title).width + 16, 24);
      context.fillStyle = "white";
      context.fillText(title, panel.x + 8, panel.y + 17);
    }
    context.restore();
  }

  drawAfter(panel, lay) {
    const { context } = this;
    const edge = panel.x + panel.width * this.split;
    context.save();
    context.beginPath();
    context.rect(edge, panel.y, panel.x + panel.width - edge, panel.height);
    context.clip();
    lay(this.layers.mask, this.settings.opacity);
    context.restore();
    context.fillStyle = "white";
    context.fillRect(edge - 1.5, panel.y, 3, panel.height);
    context.beginPath();
    context.arc(edge, panel.y + panel.height / 2, 13, 0, 2 * Math.PI);
    context.fill();
    context.fillStyle = "#222";
    context.font = "bold 14px sans-serif";
    context.fillText("↔", edge - 8, panel.y + panel.height / 2 + 5);
  }

  drawProbe(x, y) {
    const { context } = this;
    for (const [width, color] of [[4, "black"], [2, "white"]]) {
      context.lineWidth = width;
      context.strokeStyle = color;
      context.beginPath();
      context.arc(x, y, 8, 0, 2 * Math.PI);
      context.moveTo(x - 14, y);
      context.lineTo(x + 14, y);
      context.moveTo(x, y - 14);
      context.lineTo(x, y + 14);
      context.stroke();
    }
  }
}

async function loadPicture(url) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  return picture;
}

function firstChannel(picture) {
  const context = new OffscreenCanvas(picture.width, picture.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, picture.width, picture.height);
  const values = new Uint8Array(data.length / 4);
  for (let index = 0; index < values.length; index++) values[index] = data[4 * index];
  return values;
}

function word([red, green, blue]) {
  return (255 << 24 | blue << 16 | green << 8 | red) >>> 0; // the order of bytes in memory on every machine of today
}

function heat(value) {
  const position = value / 255 * (HEAT.length - 1);
  const index = Math.min(Math.floor(position), HEAT.length - 2);
  const mix = (channel) => HEAT[index][channel] + (HEAT[index + 1][channel] - HEAT[index][channel]) * (position - index);
  return word([0, 1, 2].map((channel) => Math.round(mix(channel))));
}

function percent(share) {
  return share >= 0.0995 ? Math.round(100 * share) : (100 * share).toFixed(1);
}
