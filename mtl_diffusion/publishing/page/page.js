// A model in the browser: the page, and the worker that the model runs in. Nothing is sent anywhere.
//
// model.json says which tasks there are and what each takes; a tab is made of that, so a new task
// needs no code here. Images are Float32Array of (C, H, W) in [0, 1].

const ORT = new URL("ort/", import.meta.url).href;
const WEIGHTS = "weights.bin";
const PURPOSES = { noise: 1, condition_noise: 2, class: 3 }; // of random numbers

// --- random numbers, which depend on a seed and a purpose -----------------------------------------

/** Uniform numbers in [0, 1), by mulberry32. */
export function uniform(seed, purpose) {
  let state = Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(purpose, 0x85ebca6b);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Standard normal numbers, by Box and Muller. */
export function normal(seed, count, purpose = "noise") {
  const next = uniform(seed, PURPOSES[purpose]);
  return Float32Array.from({ length: count }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - next()));
    return radius * Math.cos(2 * Math.PI * next());
  });
}

/** The place of a class, as often as the training data has it; -1 for the null class. */
export function drawClass(seed, facts) {
  let left = uniform(seed, PURPOSES.class)();
  return facts.class_names.findIndex((name) => (left -= facts.class_frequencies[name] ?? 0) < 0);
}

// --- the worker -----------------------------------------------------------------------------------

function work() {
  const sessions = {};
  let ort, providers, weights;
  let before = Promise.resolve(); // one request after another

  async function load({ bytes, only }) {
    const adapter = only === "wasm" ? null : await navigator.gpu?.requestAdapter().catch(() => null);
    const gpu = adapter && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
    ort = await import(`${ORT}ort.${gpu ? "webgpu" : "wasm"}.min.mjs`);
    ort.env.wasm.wasmPaths = ORT;
    if (!self.crossOriginIsolated) ort.env.wasm.numThreads = 1; // the server sent no headers for more
    providers = gpu ? ["webgpu", "wasm"] : ["wasm"];
    weights = await download(WEIGHTS, bytes);
    return { runs: gpu ? "WebGPU" : "WebAssembly" };
  }

  async function download(name, bytes) {
    const answer = await fetch(name);
    if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
    const all = new Uint8Array(bytes);
    let done = 0;
    for (const reader = answer.body.getReader(); ; ) {
      const { value } = await reader.read();
      if (!value) return all;
      all.set(value, done);
      done += value.length;
      self.postMessage({ progress: done / bytes });
    }
  }

  function open(task) {
    const externalData = [{ path: WEIGHTS, data: weights }];
    const options = { executionProviders: providers, externalData, logSeverityLevel: 3 };
    return ort.InferenceSession.create(`${task}.onnx`, options);
  }

  async function run({ task, inputs }) {
    const session = (sessions[task] ??= await open(task));
    const start = performance.now();
    const feeds = {};
    for (const [name, [type, data, shape]] of Object.entries(inputs)) {
      feeds[name] = new ort.Tensor(type, data, shape);
    }
    const { images } = await session.run(feeds);
    return { pixels: await images.getData(), seconds: (performance.now() - start) / 1000 };
  }

  self.onmessage = ({ data }) => {
    before = before
      .then(() => (data.task ? run(data) : load(data)))
      .then((answer) => self.postMessage({ id: data.id, answer }))
      .catch((error) => self.postMessage({ id: data.id, error: String(error?.message ?? error) }));
  };
}

/** Starts the worker; returns the function that asks it. */
function hire(onProgress) {
  const worker = new Worker(import.meta.url, { type: "module" });
  const waiting = new Map();
  worker.onmessage = ({ data }) => {
    if ("progress" in data) return onProgress(data.progress);
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    data.error ? reject(new Error(data.error)) : resolve(data.answer);
  };
  let last = 0;
  return (request) =>
    new Promise((resolve, reject) => {
      waiting.set(++last, { resolve, reject });
      worker.onerror = (event) => reject(new Error(event.message ?? "the worker does not start"));
      worker.postMessage({ id: last, ...request });
    });
}

// --- pictures -------------------------------------------------------------------------------------

/** Pixels of a canvas as (C, H, W); of one channel: their luminance. */
export function readPixels(canvas, channels) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const count = canvas.width * canvas.height;
  const pixels = new Float32Array(channels * count);
  for (let i = 0; i < count; i++) {
    const [r, g, b, a] = data.subarray(4 * i, 4 * i + 4);
    const values = channels === 1 ? [Math.round(0.299 * r + 0.587 * g + 0.114 * b)] : [r, g, b, a];
    for (let c = 0; c < channels; c++) pixels[c * count + i] = values[c] / 255;
  }
  return pixels;
}

export function showPixels(canvas, pixels, [channels, height, width]) {
  Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  const count = width * height;
  for (let i = 0; i < count; i++) {
    for (let c = 0; c < 3; c++) {
      image.data[4 * i + c] = Math.round(255 * pixels[(channels < 3 ? 0 : c) * count + i]);
    }
    image.data[4 * i + 3] = channels === 4 ? Math.round(255 * pixels[3 * count + i]) : 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The square in the middle of a picture file, at the model's size. */
async function readFile(file, canvas, size) {
  const picture = await createImageBitmap(file);
  const side = Math.min(picture.width, picture.height);
  const [left, top] = [(picture.width - side) / 2, (picture.height - side) / 2];
  Object.assign(canvas, { width: size, height: size });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, left, top, side, side, 0, 0, size, size);
}

async function save(canvas, name) {
  const blob = await new Promise((done) => canvas.toBlob(done));
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- the page -------------------------------------------------------------------------------------

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    name in made ? (made[name] = value) : made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const title = (task) => task[0].toUpperCase() + task.slice(1);

/** Where is painted: a canvas over the source, for mouse, finger and keys. */
class Brush {
  constructor(size, onStroke) {
    Object.assign(this, { size, onStroke, radius: size / 8, cursor: [size / 2, size / 2] });
    this.mask = new Float32Array(size * size);
    const label = "Mask: paint with the pointer, or move with the arrow keys and paint with Space";
    this.canvas = element("canvas", { className: "brush", tabIndex: 0, width: size, height: size });
    this.canvas.setAttribute("aria-label", label);
    this.canvas.setAttribute("role", "application");
    this.canvas.onpointerdown = (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.paint(this.place(event));
    };
    this.canvas.onpointermove = (event) => {
      if (event.buttons) this.paint(this.place(event));
    };
    this.canvas.onpointerup = () => this.onStroke();
    this.canvas.onkeydown = (event) => this.key(event);
    this.canvas.onfocus = this.canvas.onblur = () => this.show(); // its cursor
  }

  get empty() {
    return !this.mask.some(Boolean);
  }

  place({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.size / box.width;
    return [(clientX - box.left) * scale, (clientY - box.top) * scale];
  }

  paint([x, y]) {
    this.cursor = [x, y];
    for (let i = 0; i < this.mask.length; i++) {
      const [column, row] = [i % this.size, Math.floor(i / this.size)];
      if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= this.radius) this.mask[i] = 1;
    }
    this.show();
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (move) this.cursor = this.cursor.map((at, i) => Math.min(Math.max(at + move[i], 0), this.size));
    else if (event.key === " ") (this.paint(this.cursor), this.onStroke());
    else return;
    event.preventDefault();
    this.show();
  }

  /** Shows the mask, filled with a value before if one is given. */
  show(value) {
    if (value !== undefined) this.mask.fill(value);
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.size, this.size);
    context.fillStyle = "#ff3d81";
    this.mask.forEach((on, i) => {
      if (on) context.fillRect(i % this.size, Math.floor(i / this.size), 1, 1);
    });
    if (!this.canvas.matches(":focus-visible")) return;
    context.fillStyle = "#ffffff";
    context.fillRect(...this.cursor.map((at) => Math.round(at) - 1), 2, 2);
  }
}

/** The tab of a task. */
class Panel {
  constructor(app, task) {
    Object.assign(this, { app, task, spec: app.facts.tasks[task], run: 0, chosen: 0 });
    this.takes = (name) => name in this.spec.inputs;
    this.needs = (name) => this.spec.required.includes(name);
    this.count = this.takes("strength") ? 1 : this.takes("image") ? 4 : 8;
    this.said = element("p", { className: "said", role: "status" });
    this.pictures = element("div", { className: `pictures of${this.count}` });
    this.actions = element("div", { className: "row actions", hidden: true });
    const right = element("div", {}, this.pictures, this.actions, this.said);
    this.section = element("section", { id: task, role: "tabpanel" }, this.controls(), right);
    this.section.setAttribute("aria-labelledby", `tab-${task}`);
    this.offer("Download", (canvas) => save(canvas, `${task}-${this.seed.value}.png`));
  }

  offer(text, act) {
    const onclick = () => act(this.pictures.children[this.chosen].firstChild);
    this.actions.append(element("button", { textContent: text, onclick }));
  }

  controls() {
    const { facts } = this.app;
    const again = () => this.draw();
    const box = element("div", { className: "controls" });
    if (this.takes("image")) box.append(...this.sourceControls());
    if (this.takes("class") && facts.class_names.length) {
      const names = [...facts.class_names.entries()];
      if (!this.needs("class")) names.unshift([-1, this.spec.draws_class ? "any" : "none"]);
      const options = names.map(([value, textContent]) => element("option", { value, textContent }));
      this.label = element("select", { onchange: again }, ...options);
      box.append(element("label", {}, this.needs("class") ? "Turn it into" : "Class", this.label));
    }
    if (this.takes("strength")) {
      const shown = element("span");
      const oninput = () => (this.tellStrength(), this.draw());
      this.strength = element("input", { type: "range", min: 0, max: 1, step: 0.01, oninput });
      this.strength.value = this.spec.strength;
      this.tellStrength = () => (shown.textContent = `How much may change: ${this.strength.value}`);
      this.tellStrength();
      box.append(element("label", {}, shown, this.strength));
    }
    const next = () => {
      this.seed.value = Number(this.seed.value) + this.count;
      this.draw();
    };
    this.seed = element("input", { type: "number", min: 0, max: 2 ** 31 - 1, value: 0, onchange: again });
    const other = element("button", { textContent: "New seed", onclick: next });
    box.append(element("div", { className: "row" }, element("label", {}, "Seed", this.seed), other));
    box.append(element("button", { className: "main", textContent: "Draw", onclick: again }));
    return box;
  }

  sourceControls() {
    const { size, tasks } = this.app;
    this.source = element("canvas", { width: size, height: size, hidden: true });
    this.empty = element("p", { textContent: "Drop a picture here" });
    const frame = element("div", { className: "source" }, this.empty, this.source);
    const file = element("input", { type: "file", accept: "image/*", hidden: true });
    file.onchange = () => file.files[0] && this.openFile(file.files[0]);
    frame.ondragover = (event) => (event.preventDefault(), frame.classList.add("over"));
    frame.ondragleave = () => frame.classList.remove("over");
    frame.ondrop = (event) => {
      event.preventDefault();
      frame.classList.remove("over");
      if (event.dataTransfer.files[0]) this.openFile(event.dataTransfer.files[0]);
    };
    const open = element("button", { textContent: "Open a picture", onclick: () => file.click() });
    const buttons = element("div", { className: "row" }, open, file);
    if (tasks.includes("generate")) {
      const onclick = () => this.takeSample();
      buttons.append(element("button", { textContent: "Take a sample", onclick }));
    }
    if (!this.takes("mask")) return [frame, buttons];
    this.brush = new Brush(size, () => this.draw());
    this.brush.canvas.hidden = true;
    frame.append(this.brush.canvas);
    const oninput = () => (this.brush.radius = Number(width.value));
    const width = element("input", { type: "range", min: 0.5, max: size / 3, step: 0.5, oninput });
    width.value = this.brush.radius;
    const clear = element("button", { textContent: "Clear", onclick: () => this.brush.show(0) });
    const row = element("div", { className: "row" }, element("label", {}, "Brush", width), clear);
    const what = this.needs("mask") ? "what is to be replaced" : "a region, or nothing to edit all of it";
    return [frame, element("p", { className: "hint", textContent: `Paint over ${what}.` }), buttons, row];
  }

  async openFile(file) {
    try {
      await readFile(file, this.source, this.app.size);
      this.sourceChanged();
    } catch {
      this.said.textContent = `${file.name} can't be read as a picture; take a PNG or a JPEG.`;
    }
  }

  async takeSample() {
    const panel = this.app.panels.generate;
    const seed = Math.floor(Math.random() * 2 ** 31);
    const { pixels } = await this.app.ask({ task: "generate", inputs: panel.inputs(seed) });
    this.take(pixels);
  }

  take(pixels) {
    showPixels(this.source, pixels, this.app.facts.shape);
    this.sourceChanged();
  }

  sourceChanged() {
    this.empty.hidden = true;
    this.source.hidden = false;
    if (this.brush) this.brush.canvas.hidden = false;
    this.draw();
  }

  /** What is missing before it can draw; "" for nothing. */
  missing() {
    if (this.source?.hidden) return "Open a picture, or take a sample, first.";
    if (this.needs("mask") && this.brush.empty) return "Paint over what is to be replaced.";
    return "";
  }

  inputs(seed) {
    const { facts, size } = this.app;
    const shape = [1, ...facts.shape];
    const count = facts.shape.reduce((a, b) => a * b);
    const label = () => {
      const asked = Number(this.label?.value ?? -1);
      return asked < 0 && this.spec.draws_class ? drawClass(seed, facts) : asked;
    };
    const makers = {
      noise: () => ["float32", normal(seed, count), shape],
      condition_noise: () => ["float32", normal(seed, count, "condition_noise"), shape],
      image: () => ["float32", readPixels(this.source, facts.shape[0]), shape],
      mask: () => {
        const mask = this.brush.empty ? new Float32Array(size * size).fill(1) : this.brush.mask;
        return ["float32", mask.slice(), [1, 1, size, size]];
      },
      class: () => ["int64", BigInt64Array.of(BigInt(label())), [1]],
      strength: () => ["float32", Float32Array.of(Number(this.strength.value)), [1]],
    };
    return Object.fromEntries(Object.keys(this.spec.inputs).map((name) => [name, makers[name]()]));
  }

  /** Draws what is asked for now; a call while it draws replaces what that one draws. */
  async draw() {
    this.run += 1;
    if (this.drawing) return;
    this.drawing = true;
    try {
      for (let run = 0; run !== this.run; ) {
        run = this.run;
        await this.drawAll(() => run === this.run);
      }
    } catch (error) {
      this.said.textContent = `The model does not run here: ${error.message}`;
    }
    this.drawing = false;
  }

  async drawAll(isWanted) {
    this.said.textContent = this.missing();
    if (this.said.textContent) return;
    let all = 0;
    for (let i = 0; i < this.count && isWanted(); i++) {
      if (!this.pictures.children[i]) this.said.textContent = "Drawing";
      const inputs = this.inputs(Number(this.seed.value) + i);
      const { pixels, seconds } = await this.app.ask({ task: this.task, inputs });
      this.show(i, pixels);
      all += seconds;
      const each = `${(all / (i + 1)).toFixed(2)} s for a picture`;
      this.said.textContent = i + 1 === this.count ? each : `${i + 1} of ${this.count}`;
    }
  }

  show(i, pixels) {
    const pick = () => {
      this.chosen = i;
      [...this.pictures.children].forEach((one, j) => one.setAttribute("aria-pressed", i === j));
    };
    if (!this.pictures.children[i]) {
      const button = element("button", { onclick: pick }, element("canvas"));
      button.setAttribute("aria-label", `Picture ${i + 1}`);
      this.pictures.append(button);
      if (i === this.chosen) pick();
    }
    showPixels(this.pictures.children[i].firstChild, pixels, this.app.facts.shape);
    this.pictures.children[i].pixels = pixels;
    this.actions.hidden = false;
  }
}

/** One tab is open; the arrow keys go from one to the next. */
function makeTabs(panels) {
  const list = element("div", { role: "tablist" });
  const open = (task) => {
    for (const [i, panel] of Object.values(panels).entries()) {
      const isOpen = panel.task === task;
      panel.section.hidden = !isOpen;
      list.children[i].setAttribute("aria-selected", isOpen);
      list.children[i].tabIndex = isOpen ? 0 : -1;
    }
  };
  const names = Object.keys(panels);
  for (const task of names) {
    const properties = { id: `tab-${task}`, role: "tab", onclick: () => open(task) };
    const tab = element("button", { ...properties, textContent: title(task), "aria-controls": task });
    tab.onkeydown = ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (!step) return;
      const next = names[(names.indexOf(task) + step + names.length) % names.length];
      open(next);
      document.getElementById(`tab-${next}`).focus();
    };
    list.append(tab);
  }
  open(names[0]);
  return { list, open };
}

async function start() {
  const find = (id) => document.getElementById(id);
  const say = (text) => (find("state").textContent = text);
  try {
    if (typeof WebAssembly !== "object") throw new Error("this browser has no WebAssembly");
    const facts = await (await fetch("model.json")).json();
    const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
    document.title = facts.name;
    document.querySelector("h1").textContent = facts.name;
    find("about").textContent =
      `${megabytes(facts.parameters)} million parameters. ` +
      "The model runs in this page, and nothing is sent anywhere.";
    const ask = hire((share) => {
      find("progress").value = share;
      say(`Loading the model: ${megabytes(share * facts.bytes)} of ${megabytes(facts.bytes)} MB`);
    });
    const only = new URLSearchParams(location.search).has("wasm") ? "wasm" : null;
    const { runs } = await ask({ bytes: facts.weights_bytes, only });
    const tasks = Object.keys(facts.tasks);
    const app = { facts, tasks, ask, size: facts.shape[2], panels: {} };
    for (const task of tasks) app.panels[task] = new Panel(app, task);
    const tabs = makeTabs(app.panels);
    for (const panel of Object.values(app.panels)) {
      for (const other of Object.values(app.panels).filter((one) => one.source)) {
        panel.offer(`${title(other.task)} this`, () => {
          const { pixels } = panel.pictures.children[panel.chosen];
          tabs.open(other.task);
          other.take(pixels);
        });
      }
    }
    find("main").append(tabs.list, ...Object.values(app.panels).map((panel) => panel.section));
    find("progress").hidden = true;
    say(`${megabytes(facts.bytes)} MB, runs by ${runs}`);
    if (!app.panels[tasks[0]].missing()) app.panels[tasks[0]].draw();
  } catch (error) {
    find("progress").hidden = true;
    say(`The model does not run here: ${error.message}. It needs a browser with WebGPU or WebAssembly.`);
  }
}

typeof document === "undefined" ? work() : start();
