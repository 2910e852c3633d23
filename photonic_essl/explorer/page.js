// The explorer's page: what is chosen goes to the server as a `ChosenCell`; what comes back is drawn.
"use strict";

const HIGHEST = 1.2;  // scaled frequency shown, in 2πc/a
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
const PANEL = {top: 24, bottom: 500, bands: [66, 386], dos: [404, 786]};
const latency = {};  // milliseconds from the last change to each curve on the screen

let catalogue, shown;  // what there is to choose from; the cell on the canvas
const state = {
  family: "", plane_group: null, cutoff: null, seed: 0, index: 0, resolution: 32, polarization: "tm",
  parameters: {}, painted: [],
};

const $ = (id) => document.getElementById(id);
const short = (value) => Number(value.toPrecision(3)).toString();

function element(tag, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

// ---- Asking the server ----------------------------------------------------------------------------------------------

async function ask(task, body) {
  const response = await fetch(task, {method: "POST", headers: {"Content-Type": "application/json"}, body});
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;  // null where a newer request took this one's place
}

let version = 0;  // counts changes of the cell
const newest = {};  // of each task: the version of the newest answer on the screen

async function refresh(task, show, asked, started) {
  const answer = await ask(task, JSON.stringify(state));
  if (answer === null || asked < (newest[task] || 0)) return;
  newest[task] = asked;
  show(answer, asked === version);
  if (asked !== version) return;
  requestAnimationFrame(() => {
    latency[task] = performance.now() - started;
    $("latency").textContent = `${catalogue.model ? "Predicted" : "Drawn"} after ${latency.draw.toFixed(0)} ms, ` +
      (task === "solve" ? `solved after ${latency.solve.toFixed(0)} ms.` : "solving …");
  });
}

async function changed() {
  const asked = ++version, started = performance.now();
  say("");
  $("save").disabled = true;
  for (const id of ["bands", "gaps", "solved"]) $(id).classList.add("stale");
  for (const id of ["reference", "bands-reference"]) $(id).setAttribute("d", "");
  try {
    await refresh("draw", showCell, asked, started);
    if (asked === version) await refresh("solve", showSolution, asked, started);
  } catch (error) {
    if (asked === version) say(error.message, true);
  }
}

function say(text, isError = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", isError);
}

async function compare() {
  const asked = version, started = performance.now();
  $("compare").disabled = true;
  say("MPB is solving …");
  try {
    const answer = await ask("compare", JSON.stringify(state));
    if (asked === version && answer) showReference(answer, (performance.now() - started) / 1000);
  } catch (error) {
    say(error.message, true);
  } finally {
    $("compare").disabled = false;
  }
}

async function save() {
  $("save").disabled = true;
  try {
    const answer = await ask("save", JSON.stringify(state));
    if (answer) say(`Saved as cell ${answer.samples - 1} of ${answer.out}.`);
  } catch (error) {
    say(error.message, true);
    $("save").disabled = false;
  }
}

// ---- The cell -------------------------------------------------------------------------------------------------------

function colour(epsilon) {
  const [low, high] = catalogue.epsilon_range;
  const at = Math.min(Math.max((epsilon - low) / (high - low), 0), 1) * (CIVIDIS.length - 1);
  const first = Math.min(Math.floor(at), CIVIDIS.length - 2);
  const part = (hex, k) => parseInt(hex.slice(1 + 2 * k, 3 + 2 * k), 16);
  return [0, 1, 2].map((k) => part(CIVIDIS[first], k) * (first + 1 - at) + part(CIVIDIS[first + 1], k) * (at - first));
}

// Return the transform from lattice coordinates, the framed cell in 0 … 1, to pixels of the canvas.
function transform(lattice, size) {
  const [[ax, ay], [bx, by]] = lattice;
  const scale = 0.62 * size / Math.max(Math.abs(ax) + Math.abs(bx), Math.abs(ay) + Math.abs(by));
  const linear = [scale * ax, -scale * ay, scale * bx, -scale * by];
  return [...linear, size / 2 - (linear[0] + linear[2]) / 2, size / 2 - (linear[1] + linear[3]) / 2];
}

function drawCell() {
  const canvas = $("cell"), size = canvas.clientWidth * devicePixelRatio, context = canvas.getContext("2d");
  canvas.width = canvas.height = size;
  const n = shown.epsilon.length, image = new ImageData(n, n);
  shown.epsilon.forEach((column, i) => column.forEach((epsilon, j) => {
    image.data.set([...colour(epsilon), 255], 4 * (j * n + i));
  }));
  const tile = new OffscreenCanvas(n, n);
  tile.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.setTransform(...transform(shown.lattice, size));
  context.globalAlpha = 0.35;
  for (let i = -2; i <= 2; i++) for (let j = -2; j <= 2; j++) if (i || j) context.drawImage(tile, i, j, 1, 1);
  context.globalAlpha = 1;
  context.drawImage(tile, 0, 0, 1, 1);
  context.beginPath();
  context.rect(0, 0, 1, 1);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.lineWidth = 1.5 * devicePixelRatio;
  context.strokeStyle = "#000";
  context.stroke();
}

function showCell(answer, isNewest) {
  shown = answer;
  drawCell();
  if (isNewest) {
    for (const [name, value] of Object.entries(answer.parameters)) {
      if (!(name in state.parameters)) $(`parameter-${name}`).value = value;
      $(`parameter-${name}-shown`).textContent = short(Number($(`parameter-${name}`).value));
    }
  }
  drawAxes(Math.sqrt(answer.mean));
  const [[ax, ay], [bx, by]] = answer.lattice, area = Math.abs(ax * by - ay * bx);
  drawDensity("empty", Array.from({length: 500}, (_, i) => 2 * Math.PI * area * HIGHEST * i / 499));
  drawDensity("predicted", answer.predicted);
  drawSpread();
  $("note").textContent = answer.note || "";
}

function pixelAt(event) {
  const canvas = $("cell"), [a, b, c, d, e, f] = transform(shown.lattice, canvas.clientWidth);
  const x = event.offsetX - e, y = event.offsetY - f, area = a * d - b * c, n = state.resolution;
  return [(d * x - c * y) / area, (a * y - b * x) / area].map((u) => Math.floor((u - Math.floor(u)) * n) % n);
}

function paint(event) {
  if (!(event.buttons & 1) || !shown) return;
  const n = state.resolution, [i, j] = pixelAt(event), reach = (Number($("width").value) - 1) / 2;
  if (!state.painted.length) state.painted = new Array(n * n).fill(0);
  for (let di = -reach; di <= reach; di++) {
    for (let dj = -reach; dj <= reach; dj++) {
      const at = [(i + di + n) % n, (j + dj + n) % n], epsilon = Number($("brush").value);
      state.painted[at[0] * n + at[1]] = epsilon;
      shown.epsilon[at[0]][at[1]] = epsilon;
    }
  }
  drawCell();
  changed();
}

// ---- The figure: bands on the left, density of states on the right, on one axis of frequency ------------------------

const height = (scaled) => PANEL.bottom - (PANEL.bottom - PANEL.top) * scaled / HIGHEST;
const across = ([left, right], value, most) => left + (right - left) * value / most;
const line = (at) => "M" + at.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
const densities = {};  // what is drawn, by the id of its curve
let most = 8;  // of the axis of the density of states
let index = 1;  // n = √(mean ε) of the cell on the canvas

function makeFigure() {
  const curves = {bands: ["bands", "bands-reference"], dos: ["empty", "spread", "solved", "reference", "predicted"]};
  $("figure").append(element("g", {id: "gaps"}), element("g", {id: "labels"}), element("g", {id: "axes"}));
  for (const [panel, ids] of Object.entries(curves)) {
    const [left, right] = PANEL[panel], clip = element("clipPath", {id: `inside-${panel}`});
    clip.append(element("rect", {x: left, y: PANEL.top, width: right - left, height: PANEL.bottom - PANEL.top}));
    const group = element("g", {"clip-path": `url(#inside-${panel})`});
    group.append(...ids.map((id) => element("path", {id})));
    $("figure").append(clip, group);
  }
}

function drawAxes(n) {
  index = n;
  const axes = element("g", {id: "axes"});
  const text = (x, y, words, anchor = "middle", turn = 0) =>
    axes.append(element("text", {x, y, "text-anchor": anchor, transform: `rotate(${turn} ${x} ${y})`}, words));
  const tick = (x1, y1, x2, y2, kind = "axis") => axes.append(element("path", {class: kind, d: `M${x1} ${y1}L${x2} ${y2}`}));
  for (const [left, right] of [PANEL.bands, PANEL.dos]) {
    axes.append(element("rect", {class: "axis", x: left, y: PANEL.top, width: right - left, height: PANEL.bottom - PANEL.top}));
  }
  const middle = (PANEL.top + PANEL.bottom) / 2;
  for (const value of ticks(HIGHEST / n)) {
    const y = height(value * n);
    tick(PANEL.bands[0] - 5, y, PANEL.bands[0], y);
    text(PANEL.bands[0] - 9, y + 4, short(value), "end");
  }
  text(18, middle, "frequency ωa/2πc", "middle", -90);
  for (const value of ticks(HIGHEST)) {
    tick(PANEL.dos[1], height(value), PANEL.dos[1] + 5, height(value));
    text(PANEL.dos[1] + 9, height(value) + 4, short(value), "start");
  }
  text(846, middle, "scaled frequency ωn (2πc/a)", "middle", -90);
  for (const value of ticks(most)) {
    const x = across(PANEL.dos, value, most);
    tick(x, PANEL.bottom, x, PANEL.bottom + 5);
    text(x, PANEL.bottom + 20, short(value));
  }
  text((PANEL.dos[0] + PANEL.dos[1]) / 2, PANEL.bottom + 44, "density of states D/n (a/2πc)");
  text((PANEL.bands[0] + PANEL.bands[1]) / 2, PANEL.bottom + 44, "wavevector");
  $("axes").replaceWith(axes);
}

// Return round values from 0 to the highest, four to eight of them.
function ticks(highest) {
  const power = 10 ** Math.floor(Math.log10(highest / 4));
  const step = [1, 2, 2.5, 5, 10].map((part) => part * power).find((value) => highest / value < 8);
  return Array.from({length: Math.floor(highest / step + 1e-9) + 1}, (_, i) => i * step);
}

const points = (dos) => dos.map((value, i) => [across(PANEL.dos, value, most), height(HIGHEST * i / 499)]);

function drawDensity(id, dos) {
  densities[id] = dos;
  const highest = Math.max(...Object.values(densities).filter(Boolean).flat());
  const wanted = [8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500].find((value) => value > highest) || highest;
  if (wanted !== most) {
    most = wanted;
    drawAxes(index);
    for (const [other, values] of Object.entries(densities)) if (other !== id) drawCurve(other, values);
    drawSpread();
  }
  drawCurve(id, dos);
}

function drawCurve(id, dos) {
  $(id).setAttribute("d", dos ? line(points(dos)) : "");
}

function drawSpread() {
  const {lowest, highest} = shown || {};
  $("spread").setAttribute("d", lowest ? line([...points(lowest), ...points(highest).reverse()]) + "Z" : "");
}

function marks(position, bands, mark) {
  const end = position.at(-1);
  return bands.map((band) => band.map((frequency, k) => [across(PANEL.bands, position[k], end), height(frequency * index)])
    .filter(([, y]) => y > PANEL.top - 5).map(mark).join("")).join("");
}

const circle = ([x, y]) => `M${(x - 2).toFixed(1)} ${y.toFixed(1)}a2 2 0 1 0 4 0a2 2 0 1 0 -4 0`;
const ring = ([x, y]) => `M${(x - 4).toFixed(1)} ${y.toFixed(1)}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0`;
let solution;

function showSolution(answer, isNewest) {
  solution = answer;
  index = answer.n;
  $("bands").setAttribute("class", state.polarization);
  $("bands").setAttribute("d", marks(answer.position, answer.bands, circle));
  showCorners(answer);
  showGaps(answer.gaps);
  drawDensity("solved", answer.dos);
  if (!isNewest) return;
  for (const id of ["bands", "gaps", "solved"]) $(id).classList.remove("stale");
  $("save").disabled = false;
  const gaps = answer.gaps.map((gap) => `${gap.lower.toFixed(4)} – ${gap.upper.toFixed(4)} (${(100 * gap.ratio).toFixed(1)} %)`);
  const lines = [
    `Gaps over 1 %, ωa/2πc (width over mid-gap): ${gaps.join(", ") || "none"} among the lowest ${answer.bands.length} bands.`,
    `Solved: D/n is within an estimated ${(100 * answer.error).toFixed(3)} % of the limit of infinitely many wavevectors.`,
  ];
  if (answer.off !== null) lines.push(`Relative error of the prediction, 0.24 < ωn < 0.96: ${(100 * answer.off).toFixed(2)} %.`);
  $("numbers").replaceChildren(...lines.map((words) => Object.assign(document.createElement("div"), {textContent: words})));
}

function showCorners({corners, position}) {
  const labels = element("g", {id: "labels"});
  for (const [at, name] of corners) {
    const x = across(PANEL.bands, at, position.at(-1));
    labels.append(element("path", {class: "grid", d: `M${x} ${PANEL.top}V${PANEL.bottom}`}));
    labels.append(element("text", {x, y: PANEL.bottom + 20, "text-anchor": "middle"}, name));
  }
  $("labels").replaceWith(labels);
}

function showGaps(gaps) {
  const group = element("g", {id: "gaps"});
  for (const gap of gaps) {
    const top = height(gap.upper * index), bottom = height(gap.lower * index);
    group.append(element("rect", {
      class: "gap", x: PANEL.bands[0], y: top, width: PANEL.dos[1] - PANEL.bands[0], height: bottom - top,
    }));
    const words = `${(100 * gap.ratio).toFixed(1)} %`;
    group.append(element("text", {x: PANEL.dos[1] - 6, y: (top + bottom) / 2 + 4, "text-anchor": "end"}, words));
  }
  $("gaps").replaceWith(group);
}

function showReference(answer, seconds) {
  drawDensity("reference", answer.dos);
  $("bands-reference").setAttribute("d", marks(solution.position, answer.bands, ring));
  let worst = 0;
  answer.bands.forEach((band, b) => band.forEach((frequency, k) => {
    if (frequency > 0.02) worst = Math.max(worst, Math.abs(solution.bands[b][k] / frequency - 1));
  }));
  say(`MPB took ${seconds.toFixed(1)} s; its bands are within ${worst.toExponential(1)} of the fast solver's.`);
}

// ---- Choosing -------------------------------------------------------------------------------------------------------

function chooseFamily() {
  const several = catalogue.plane_groups[$("family").value];
  Object.assign(state, {
    family: $("family").value, parameters: {}, painted: [],
    plane_group: several ? $("plane_group").value : null, cutoff: several ? Number($("cutoff").value) : null,
  });
  for (const label of document.querySelectorAll(".level-set")) label.hidden = !several;
  $("sliders").replaceChildren(...catalogue.families[state.family].map(makeSlider));
  changed();
}

function makeSlider({name, long_name, units, range}) {
  const label = document.createElement("label");
  label.className = "slider";
  const id = `parameter-${name}`;
  label.append(long_name + (units === "1" ? " " : ` (${units}) `));
  label.append(Object.assign(document.createElement("output"), {id: `${id}-shown`}));
  const input = Object.assign(document.createElement("input"), {id, type: "range", min: range[0], max: range[1], step: "any"});
  input.addEventListener("input", () => {
    state.parameters[name] = Number(input.value);
    changed();
  });
  label.append(input);
  return label;
}

function drawAgain() {
  for (const name of ["seed", "index"]) state[name] = Math.max(0, Math.floor(Number($(name).value)));
  Object.assign(state, {parameters: {}, painted: []});
  changed();
}

function unpaint() {
  state.painted = [];
  changed();
}

function fill() {
  state.painted = new Array(state.resolution ** 2).fill(Number($("brush").value));
  changed();
}

function showScale() {
  const [low, high] = catalogue.epsilon_range;
  $("scale").style.background = `linear-gradient(to right, ${CIVIDIS.join(", ")})`;
  for (const value of [low, ...ticks(high).filter((tick) => tick > low)]) {
    const label = Object.assign(document.createElement("span"), {textContent: short(value)});
    label.style.left = `${100 * (value - low) / (high - low)}%`;
    $("ticks").append(label);
  }
}

function showLegend() {
  const {model, reference_grid: grid} = catalogue;
  const items = [["solved", "solved"], ["empty", "empty lattice"], ["reference", `MPB, ${grid} × ${grid} wavevectors (its bands: rings)`]];
  if (model) items.unshift(["predicted", "predicted"]);
  if (model && model.interval) items.splice(1, 0, ["spread", "its 90 % interval"]);
  for (const [id, words] of items) {
    const sample = element("svg", {viewBox: "0 0 30 12"}), style = getComputedStyle($(id));
    const path = element("path", {d: id === "spread" ? "M0 2H30V10H0Z" : "M0 6H30"});
    for (const name of ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray"]) {
      path.style.setProperty(name, style.getPropertyValue(name));
    }
    sample.append(path);
    const item = document.createElement("span");
    item.append(sample, words);
    $("legend").append(item);
  }
  $("model").textContent = model
    ? `Model ${model.folders.join(" and ")}: ${model.polarizations.join(", ").toUpperCase()}${model.family ? `, trained on family ${model.family}` : ""}` +
      (model.interval ? "; 90 % of true values lie in its interval, for cells like those that it was validated on." : ".")
    : "No model was given, so there are no predictions.";
  $("out").textContent = `to ${catalogue.out}`;
}

async function start() {
  catalogue = await (await fetch("catalogue")).json();
  state.resolution = catalogue.resolution;
  const options = (names) => names.map((name) => new Option(name, name));
  $("family").append(...options(Object.keys(catalogue.families)));
  $("plane_group").append(...options(Object.values(catalogue.plane_groups)[0]));
  const [low, high] = catalogue.epsilon_range, {model} = catalogue;
  Object.assign($("brush"), {min: low, max: high, value: 12});
  $("brush-shown").textContent = $("brush").value;
  if (model) state.polarization = $("polarization").value = model.polarizations[0];
  if (model && model.family in catalogue.families) $("family").value = model.family;
  makeFigure();
  drawAxes(index);
  showScale();
  showLegend();
  for (const id of ["family", "plane_group", "cutoff"]) $(id).addEventListener("change", chooseFamily);
  for (const id of ["seed", "index"]) $(id).addEventListener("input", drawAgain);
  $("polarization").addEventListener("change", () => {
    state.polarization = $("polarization").value;
    changed();
  });
  $("brush").addEventListener("input", () => { $("brush-shown").textContent = $("brush").value; });
  $("cell").addEventListener("pointerdown", paint);
  $("cell").addEventListener("pointermove", paint);
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  for (const [id, action] of Object.entries({fill, unpaint, compare, save})) $(id).addEventListener("click", action);
  chooseFamily();
}

start().catch((error) => say(error.message, true));
