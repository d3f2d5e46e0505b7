// The page: its controls, its keys, and what they show.

const $ = (id) => document.getElementById(id);
const about = JSON.parse($("about").textContent);
const DRAWN = about.classes.map((one) => one.drawn);
const COLOURS = about.classes.map((one) => one.colour);
// How prediction and truth differ at a place that has a true label.
const RIGHT = 0, WRONG = 1, EXTRA = 2, MISSED = 3;
const KINDS = [["right", [120, 160, 130]], ["wrong class", [235, 60, 50]], ["predicted where free", [255, 165, 0]], ["missed", [70, 150, 255]]];
const MODES = { prediction: "Prediction", truth: "Truth", both: "Both", difference: "Difference" };

const state = { frame: 0, mode: "prediction", on: DRAWN.slice(), kinds: [true, true, true, true], scanned: false, confidence: 0, score: Math.round(100 * about.boxes.score), data: null };
const loaded = new Map(); // frame number: promise of its arrays; the last four are kept
let scene = null, cameras = null, flat = null;

function say(text) { $("notice").textContent = text; $("notice").hidden = !text; }

function bytesOf(id) {
  const text = atob($(id).textContent), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function inflated(id) {
  if (!$(id)) return null;
  const stream = new Blob([bytesOf(id)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function read(number) {
  const frame = about.frames[number], id = (name) => `f${number}-${name}`;
  const pictures = Promise.all(frame.cameras.map((_, i) => createImageBitmap(new Blob([bytesOf(id(`image${i}`))], { type: "image/jpeg" }))));
  const names = ["voxels", "confidence", "scanned", "remembered", "true-voxels", "places", "labels", "true-labels", "boxes", "true-boxes"];
  const [voxels, confidence, scanned, remembered, trueVoxels, places, labels, trueLabels, boxes, trueBoxes] = await Promise.all(names.map((name) => inflated(id(name))));
  const steps = places ? new Int16Array(places.buffer) : new Int16Array(0), points = new Float32Array(steps.length);
  for (let i = 0; i < steps.length; i++) points[i] = steps[i] * frame.step;
  return { frame, voxels, confidence, scanned, remembered, trueVoxels, points, labels: labels || new Uint8Array(0), trueLabels,
    boxes: boxes && new Float32Array(boxes.buffer), trueBoxes: trueBoxes && new Float32Array(trueBoxes.buffer), pictures: await pictures };
}

function load(number) {
  if (!loaded.has(number)) loaded.set(number, read(number));
  const promise = loaded.get(number);
  loaded.delete(number); loaded.set(number, promise);
  if (loaded.size > 4) {
    const [oldest, gone] = loaded.entries().next().value;
    loaded.delete(oldest);
    gone.then((data) => data.pictures.forEach((picture) => picture.close()), () => {});
  }
  return promise;
}

// Whether voxel i is predicted as occupied by a drawn class, under the chosen limits.
function believed(data, i) {
  if (!DRAWN[data.voxels[i]]) return false;
  if (state.scanned && data.scanned && !(data.scanned[i >> 3] & (128 >> (i & 7)))) return false;
  return !data.confidence || data.confidence[i] >= state.confidence * 2.55;
}

const real = (label) => label < DRAWN.length && DRAWN[label];
const known = (label) => real(label) || label === about.free; // a true label that a prediction can be compared with

// The kind of difference between two labels, HIDDEN where there is nothing to compare. there: a class is predicted.
function kindOf(predicted, there, truth) {
  if (!known(truth)) return HIDDEN;
  if (real(truth)) return !there ? (about.free < 0 ? HIDDEN : MISSED) : predicted === truth ? RIGHT : WRONG;
  return there ? EXTRA : HIDDEN;
}

// The labels that are drawn, by voxel; counts[label] is raised for each.
function voxelLabels(data, mode, counts) {
  const total = data.voxels.length, out = new Uint8Array(total).fill(HIDDEN);
  for (let i = 0; i < total; i++) {
    if (mode === "truth") {
      const label = data.trueVoxels[i];
      if (real(label)) { counts[label]++; if (state.on[label]) out[i] = label; }
      continue;
    }
    const there = believed(data, i), label = data.voxels[i];
    if (mode === "prediction") {
      if (there) { counts[label]++; if (state.on[label]) out[i] = label; }
      continue;
    }
    const kind = kindOf(label, there, data.trueVoxels[i]);
    if (kind === HIDDEN) continue;
    counts[kind]++;
    const filter = kind === EXTRA ? label : data.trueVoxels[i];
    if (state.kinds[kind] && state.on[filter]) out[i] = kind;
  }
  return out;
}

// The voxels, a bit each, that are marked as seen in past frames alone; null where none are.
const marked = (data, side) => (side === "prediction" && $("remembered").checked ? data.remembered : null);

// How many of the drawn voxels only past frames saw.
function countRemembered(data, labels) {
  let many = 0;
  if (data.remembered) for (let i = 0; i < labels.length; i++) if (labels[i] !== HIDDEN && isMarked(data.remembered, i)) many++;
  return many;
}

function pointColours(data, mode, counts) {
  const total = data.labels.length, out = new Uint8Array(4 * total);
  for (let i = 0; i < total; i++) {
    const label = mode === "truth" || mode === "difference" ? data.trueLabels[i] : data.labels[i];
    let colour = null;
    if (mode === "difference") {
      if (!real(label)) continue;
      const kind = data.labels[i] === label ? RIGHT : WRONG;
      counts[kind]++;
      if (state.kinds[kind] && state.on[label]) colour = KINDS[kind][1];
    } else if (real(label)) {
      counts[label]++;
      if (state.on[label]) colour = COLOURS[label];
    }
    if (colour) { out.set(colour, 4 * i); out[4 * i + 3] = 255; }
  }
  return out;
}

// Whether a class of boxes is switched on: by the class of voxels with its name, if there is one.
const boxOn = about.boxes.classes.map(({ name }) => about.classes.findIndex((one, i) => one.name === name && DRAWN[i]));
const boxShown = (label) => boxOn[label] === undefined || boxOn[label] < 0 || state.on[boxOn[label]];
const sure = (data, i) => data.boxes[ROW * i + 26] >= state.score / 100 - 1e-6;

// The lines of the boxes: the prediction's in the colours of their classes; the truth's too, but white in the difference.
function linesOf(data, mode, edges) {
  const byClass = (label) => about.boxes.classes[label].colour, none = new Float32Array(0);
  const lines = (rows, kept, colourOf) => boxLines(rows || none, (i) => kept(i) && boxShown(rows[ROW * i + 27]), colourOf, edges, about.boxes.slow);
  const found = () => lines(data.boxes, (i) => sure(data, i), byClass);
  if (!$("boxes").checked) return boxLines(none, null, null, edges, 0);
  if (mode === "prediction") return found();
  return mode === "truth" ? lines(data.trueBoxes, () => true, byClass) : joinedLines(lines(data.trueBoxes, () => true, () => [255, 255, 255]), found());
}

function countBoxes(data) {
  const all = data.boxes ? data.boxes.length / ROW : 0, parts = [];
  let many = 0;
  for (let i = 0; i < all; i++) if (sure(data, i)) many++;
  if (data.boxes) parts.push(`${many} of ${all} predicted`);
  if (data.trueBoxes) parts.push(`${data.trueBoxes.length / ROW} true${state.mode === "difference" ? ", white" : ""}`);
  $("many").textContent = parts.join("; ");
  $("least").textContent = `${state.score} %`;
  $("boxed").hidden = $("boxes-row").hidden = !parts.length;
  $("score").hidden = $("score-row").hidden = !data.boxes;
}

const zeros = (n) => new Array(n).fill(0);

function show() {
  const data = state.data, truth = Boolean(data.trueVoxels), pointTruth = Boolean(data.trueLabels);
  const boxTruth = Boolean(data.trueBoxes), anyTruth = truth || pointTruth || boxTruth;
  const usable = { prediction: true, truth: anyTruth, both: (truth || boxTruth) && scene, difference: anyTruth };
  const mode = usable[state.mode] ? state.mode : "prediction";
  const sides = mode === "both" ? ["prediction", "truth"] : [mode];
  const withVoxels = $("voxels").checked, withPoints = $("points").checked, byPoint = !withVoxels && withPoints;
  const layers = sides.map((side) => {
    const differ = side === "difference", counts = zeros(256), many = zeros(256);
    const labels = side === "prediction" || truth ? voxelLabels(data, side, counts) : null;
    const hasColour = side === "prediction" || pointTruth;
    const tones = hasColour ? pointColours(data, side, many) : new Uint8Array(4 * data.labels.length);
    const lines = linesOf(data, side, scene ? about.boxes.edges : about.boxes.lid);
    return { labels, lines, marks: marked(data, side), palette: differ ? KINDS.map((kind) => kind[1]) : COLOURS, tones, counts: byPoint ? many : counts };
  });
  if (scene) {
    scene.setLayers(layers.map(({ labels, lines, marks, palette, tones }) => ({
      lines,
      faces: withVoxels && labels ? buildFaces(labels, data.frame.grid, palette, marks) : null,
      points: withPoints ? data.points : new Float32Array(0), colours: withPoints ? tones : new Uint8Array(0),
    })));
  } else if (layers[0].labels) drawTopView(flat, layers[0].labels, data.frame.grid, layers[0].palette, about.forward === "x", data.frame.range, layers[0].lines, layers[0].marks);
  cameras.paint($("dots").checked ? data.points : new Float32Array(0), layers[0].tones, scene ? layers[0].lines : linesOf(data, sides[0], about.boxes.edges));
  countBoxes(data);
  $("remembered-row").hidden = !data.remembered;
  if (data.remembered) $("unseen").textContent = sides[0] === "prediction" ? `(${countRemembered(data, layers[0].labels).toLocaleString("en")})` : "";
  const kind = { prediction: "by predicted class", truth: "by true class", difference: "right or wrong" }[sides[0]];
  $("dots-row").hidden = !data.points.length;
  $("painted").textContent = !data.points.length || !$("dots").checked ? "" : sides[0] === "prediction" || pointTruth
    ? `coloured ${kind}` : "no points: these have no true labels";
  $("tag-left").textContent = sides.length > 1 || truth ? MODES[sides[0]] : "";
  $("tag-right").textContent = sides.length > 1 ? MODES[sides[1]] : "";
  const difference = mode === "difference";
  $("kinds").hidden = !difference;
  if (difference) count("kinds", layers[0].counts);
  let predicted = layers[0].counts, actual = layers[1] && layers[1].counts;
  if (mode === "truth" || difference || !actual) {
    predicted = zeros(256); actual = truth || pointTruth ? zeros(256) : null;
    if (byPoint) { pointColours(data, "prediction", predicted); if (pointTruth) pointColours(data, "truth", actual); }
    else { voxelLabels(data, "prediction", predicted); if (truth) voxelLabels(data, "truth", actual); }
  }
  $("classes").classList.toggle("single", !actual);
  $("counted").textContent = about.labels ? "voxels: labels" : `${byPoint ? "points" : "voxels"}: predicted${actual ? ", true" : ""}`;
  count("classes", predicted, actual);
  for (const button of $("modes").children) {
    button.setAttribute("aria-checked", String(button.value === mode));
    button.tabIndex = button.value === mode ? 0 : -1;
    button.disabled = !usable[button.value];
  }
}

function count(list, ...columns) {
  for (const row of $(list).children) {
    const numbers = columns.filter(Boolean).map((column) => column[row.dataset.label]);
    row.querySelectorAll("i").forEach((cell, k) => { cell.textContent = k < numbers.length ? numbers[k].toLocaleString("en") : ""; cell.hidden = k >= numbers.length; });
    row.classList.toggle("absent", numbers.every((n) => n === 0));
  }
}

async function go(number) {
  state.frame = Math.min(Math.max(number, 0), about.frames.length - 1);
  const wanted = state.frame, data = await load(wanted);
  if (wanted !== state.frame) return; // another frame was chosen meanwhile
  const first = !state.data, frame = data.frame;
  state.data = data;
  $("token").textContent = [frame.scene && (frame.scene.startsWith("scene") ? frame.scene : `scene ${frame.scene}`), frame.token].filter(Boolean).join(" · ");
  $("frame").value = state.frame;
  $("frame").setAttribute("aria-valuetext", `frame ${state.frame + 1} of ${about.frames.length}`);
  $("where").textContent = `${state.frame + 1} / ${about.frames.length}`;
  $("previous").disabled = state.frame === 0; $("next").disabled = state.frame === about.frames.length - 1;
  if (first) begin(data);
  $("scanned-row").hidden = !data.scanned;
  if (scene) scene.setGrid(frame.range, frame.grid, about.ground, first);
  cameras.show(frame.cameras, data.pictures);
  show();
}

// Sets what is shown at first, by what the frame has: truth, lidar, confidence.
function begin(data) {
  if ((data.trueVoxels || data.trueBoxes) && scene && innerWidth > 700) state.mode = "both";
  $("points").checked = false; $("points").disabled = !data.points.length;
  let text = "";
  if (about.labels) text = `Labels of ${about.labels}; no model predicted them. Free space is not drawn.`;
  else if (about.free < 0) {
    text = "This model was not taught free space: it predicts a class for every voxel, also in the air. ";
    if (data.scanned) { state.scanned = true; text += "So only voxels that hold lidar points are shown at first."; }
    else if (data.confidence) {
      const levels = zeros(256); let i = 255, sum = 0;
      data.confidence.forEach((value) => levels[value]++);
      while (i > 0 && (sum += levels[i]) < data.voxels.length / 10) i--;
      state.confidence = Math.ceil(i / 2.55);
      text += "There is no lidar here, so the tenth of the voxels with the highest confidence is shown.";
    }
  } else text = "Free space is one of this model's classes and is not drawn.";
  if (!data.trueVoxels && !about.labels) text += " No true labels are stored with this result.";
  $("caption").textContent = text;
  $("scanned").checked = state.scanned; $("confidence").value = state.confidence; $("percent").textContent = `${state.confidence} %`;
  $("confidence").disabled = !data.confidence; $("which").hidden = !data.confidence && !data.scanned && !data.remembered;
}

function toggles(list, names, on) {
  names.forEach(([label, name, colour]) => {
    const row = document.createElement("label"), box = document.createElement("input"), swatch = document.createElement("b"), text = document.createElement("em");
    box.type = "checkbox"; box.checked = on[label]; row.dataset.label = label; row.dataset.name = name;
    swatch.style.background = `rgb(${colour})`; text.textContent = name;
    row.append(box, swatch, text, document.createElement("i"), document.createElement("i"));
    box.addEventListener("change", () => { on[label] = box.checked; show(); });
    $(list).append(row);
  });
}

function choose(mode) { state.mode = mode; if (state.data) show(); }

function build() {
  $("title").textContent = about.title;
  toggles("classes", about.classes.map((one, i) => [i, one.name, one.colour]).filter(([i]) => DRAWN[i]), state.on);
  toggles("kinds", KINDS.map(([name, colour], i) => [i, name, colour]), state.kinds);
  $("kinds").classList.add("single");
  for (const [value, text] of Object.entries(MODES)) {
    const button = document.createElement("button");
    button.value = value; button.textContent = text; button.setAttribute("role", "radio");
    button.addEventListener("click", () => choose(value));
    $("modes").append(button);
  }
  $("modes").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const usable = [...$("modes").children].filter((button) => !button.disabled);
    const next = usable[(usable.findIndex((button) => button.tabIndex === 0) + step + usable.length) % usable.length];
    next.focus(); choose(next.value); event.preventDefault(); event.stopPropagation();
  });
  const all = (value) => { state.on = DRAWN.map((drawn) => drawn && value); $("classes").replaceChildren();
    toggles("classes", about.classes.map((one, i) => [i, one.name, one.colour]).filter(([i]) => DRAWN[i]), state.on); show(); };
  $("all").onclick = () => all(true); $("none").onclick = () => all(false);
  $("voxels").onchange = $("points").onchange = show;
  $("remembered").onchange = show;
  $("scanned").onchange = () => { state.scanned = $("scanned").checked; show(); };
  $("confidence").oninput = () => { state.confidence = Number($("confidence").value); $("percent").textContent = `${state.confidence} %`; show(); };
  $("boxes").onchange = $("dots").onchange = show;
  $("score").value = state.score;
  $("score").oninput = () => { state.score = Number($("score").value); show(); };
  $("modes").hidden = Boolean(about.labels);
  $("frame").max = about.frames.length - 1; $("frames").hidden = about.frames.length < 2;
  $("frame").oninput = () => go(Number($("frame").value));
  $("previous").onclick = () => go(state.frame - 1); $("next").onclick = () => go(state.frame + 1);
  $("play").onclick = play;
  $("home").onclick = () => scene && scene.home(); $("above").onclick = () => scene && scene.above();
  addEventListener("keydown", keys);
}

let playing = false;
async function play() {
  playing = !playing;
  $("play").setAttribute("aria-pressed", String(playing));
  while (playing) {
    await go((state.frame + 1) % about.frames.length);
    await new Promise((done) => setTimeout(done, 500));
  }
}

function keys(event) {
  const typing = event.target instanceof HTMLInputElement && event.target.type === "range", key = event.key;
  if (event.ctrlKey || event.altKey || event.metaKey || !state.data) return;
  const turns = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[key];
  let done = true;
  if (turns) {
    if (typing || !scene || (event.target !== document.body && event.target !== scene.canvas)) return;
    if (event.shiftKey) scene.pan(turns[0] * 0.06, turns[1] * 0.06); else scene.orbit(turns[0] * 0.08, turns[1] * 0.06);
  } else if (key === "[") go(state.frame - 1);
  else if (key === "]") go(state.frame + 1);
  else if (key === " " && (event.target === document.body || event.target === $("canvas"))) play();
  else if (key === "v") {
    const usable = [...$("modes").children].filter((button) => !button.disabled);
    choose(usable[(usable.findIndex((button) => button.tabIndex === 0) + 1) % usable.length].value);
  } else if (scene && (key === "+" || key === "=")) scene.zoom(0.88);
  else if (scene && key === "-") scene.zoom(1 / 0.88);
  else if (scene && (key === "0" || key === "Home") && !typing) scene.home();
  else if (scene && key === "t") scene.above();
  else done = false;
  if (done) event.preventDefault();
}

async function start() {
  if (typeof DecompressionStream === "undefined") { say("This browser is too old for this page; any of 2023 or later shows it."); return; }
  build();
  cameras = new Cameras($("cameras"));
  try {
    scene = new Scene($("canvas"), about.forward === "y");
    listen(scene);
    new ResizeObserver(() => scene.draw()).observe($("canvas"));
    scene.painted = () => {
      const gl = scene.gl;
      gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4)); // waits until it is drawn
      scene.painted = null;
      document.documentElement.dataset.firstPicture = Math.round(performance.now());
    };
  } catch (err) {
    scene = null;
    say(`This browser draws nothing in 3-D (${err.message}); here are the voxels from above and the cameras.`);
    flat = $("canvas").cloneNode(); $("canvas").replaceWith(flat); // a canvas that was used for WebGL has no 2-D context
    flat.classList.add("flat"); $("home").hidden = $("above").hidden = $("points").parentNode.hidden = true;
  }
  await go(0);
  document.documentElement.dataset.ready = "1";
}
start().catch((err) => { say(`This page cannot be shown: ${err.message}`); throw err; });
