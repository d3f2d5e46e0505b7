// Draws voxels and points by WebGL2, seen from a virtual camera, "eye". Metres in the grid's frame.

const FACE_SHADER = `#version 300 es
layout(location = 0) in uvec4 place; layout(location = 1) in vec4 colour;
uniform mat4 eye; uniform vec3 low, size; uniform ivec3 frame[18]; uniform int long_is_first[6];
out vec4 tone; out vec2 spot; out float open; flat out int mark;
const float LIGHT[6] = float[6](0.80, 0.72, 0.88, 0.66, 1.0, 0.5);
void main() {
  int side = int(place.w) & 7, corner = gl_VertexID;
  ivec3 n = frame[3 * side], u = frame[3 * side + 1], v = frame[3 * side + 2];
  float run = round(colour.a * 255.0) + 1.0;
  spot = vec2(corner & 1, corner >> 1) * (long_is_first[side] == 1 ? vec2(run, 1.0) : vec2(1.0, run));
  vec3 start = vec3(max(n, ivec3(0)));
  vec2 wider = spot + 0.02 * vec2(corner & 1, corner >> 1) - 0.01; // wider, because rounding leaves gaps between runs
  vec3 cell = vec3(place.xyz) + start + vec3(u) * wider.x + vec3(v) * wider.y;
  open = float((int(place.w) >> (3 + 2 * corner)) & 3) / 3.0;
  mark = (int(place.w) >> 11) & 1;
  tone = vec4(colour.rgb * LIGHT[side], 1.0);
  gl_Position = eye * vec4(low + cell * size, 1.0);
}`;
const FACE_PAINT = `#version 300 es
precision highp float; in vec4 tone; in vec2 spot; in float open; flat in int mark; out vec4 paint;
void main() {
  vec2 wide = fwidth(spot), part = fract(spot), rim = min(part, 1.0 - part) / max(wide, vec2(1e-5));
  float line = 1.0 - smoothstep(0.0, 1.0, min(rim.x, rim.y)), near = 1.0 - smoothstep(0.06, 0.25, max(wide.x, wide.y));
  float stripe = step(0.5, fract(2.0 * (spot.x + spot.y))), far = smoothstep(0.15, 0.4, max(wide.x, wide.y));
  float hatch = mark == 1 ? mix(1.0, 0.35, mix(stripe, 0.5, far)) : 1.0;
  paint = vec4(tone.rgb * mix(0.55, 1.0, open) * (1.0 - 0.35 * line * near) * hatch, 1.0);
}`;
const POINT_SHADER = `#version 300 es
layout(location = 0) in vec3 place; layout(location = 1) in vec4 colour;
uniform mat4 eye; uniform float dot_size, lift; out vec4 tone;
void main() { // a point lies inside its voxel and would be hidden: it is drawn one voxel nearer to the eye
  gl_Position = eye * vec4(place, 1.0); tone = colour;
  gl_Position.z -= lift;
  gl_PointSize = colour.a == 0.0 ? 0.0 : clamp(dot_size * 60.0 / gl_Position.w, dot_size, 4.0 * dot_size);
}`;
const POINT_PAINT = `#version 300 es
precision mediump float; in vec4 tone; out vec4 paint;
void main() { if (tone.a == 0.0) discard; paint = vec4(tone.rgb, 1.0); }`;
// A line is a strip of two triangles, as wide on the screen everywhere; what is behind the eye is cut off.
const LINE_SHADER = `#version 300 es
layout(location = 0) in vec3 start; layout(location = 1) in vec3 end; layout(location = 2) in vec4 colour;
uniform mat4 eye; uniform vec2 screen; uniform float wide; out vec4 tone;
void main() {
  vec4 a = eye * vec4(start, 1.0), b = eye * vec4(end, 1.0);
  float near_a = a.z + a.w, near_b = b.z + b.w;
  tone = colour;
  if (near_a <= 0.0 && near_b <= 0.0) { gl_Position = vec4(2.0, 2.0, 2.0, 1.0); return; }
  if (near_a < 0.0) a = mix(a, b, near_a / (near_a - near_b) + 1e-4);
  if (near_b < 0.0) b = mix(b, a, near_b / (near_b - near_a) + 1e-4);
  vec2 way = (b.xy / b.w - a.xy / a.w) * screen;
  way = length(way) > 1e-6 ? normalize(way) : vec2(1.0, 0.0);
  vec4 here = gl_VertexID < 2 ? a : b;
  vec2 aside = vec2(-way.y, way.x) * (gl_VertexID % 2 == 0 ? 1.0 : -1.0) + way * (gl_VertexID < 2 ? -1.0 : 1.0);
  gl_Position = here + vec4(aside * wide / screen * here.w, 0.0, 0.0);
}`;
const LINE_PAINT = `#version 300 es
precision mediump float; uniform float faint; in vec4 tone; out vec4 paint;
void main() { paint = vec4(tone.rgb, faint); }`;

class Scene {
  // Throws where the browser has no WebGL2. forward: the axis that points ahead, 0 or 1.
  constructor(canvas, forward) {
    const gl = canvas.getContext("webgl2", { antialias: true });
    if (!gl) throw new Error("no WebGL2");
    this.gl = gl; this.canvas = canvas; this.layers = [];
    this.ahead = forward ? [0, 1, 0] : [1, 0, 0];
    this.faces = this.program(FACE_SHADER, FACE_PAINT, ["eye", "low", "size", "frame", "long_is_first"]);
    this.dots = this.program(POINT_SHADER, POINT_PAINT, ["eye", "dot_size", "lift"]);
    this.lines = this.program(LINE_SHADER, LINE_PAINT, ["eye", "screen", "wide", "faint"]);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    gl.enable(gl.DEPTH_TEST); gl.enable(gl.CULL_FACE);
    gl.clearColor(24 / 255, 27 / 255, 31 / 255, 1);
    this.marks = this.vertices(new Float32Array(0), new Uint8Array(0));
  }

  program(vertex, fragment, names) {
    const gl = this.gl, id = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text); gl.compileShader(shader); gl.attachShader(id, shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    }
    gl.linkProgram(id);
    if (!gl.getProgramParameter(id, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(id));
    return { id, at: Object.fromEntries(names.map((name) => [name, gl.getUniformLocation(id, name)])) };
  }

  // Sets the grid's range and shape and the height of the ground; first: also resets the view.
  setGrid(range, dims, ground, first) {
    this.range = range; this.dims = dims; this.groundHeight = ground;
    this.size = [0, 1, 2].map((a) => (range[a + 3] - range[a]) / dims[a]);
    const lines = [], tones = [], up = this.groundHeight;
    const line = (a, b, tone) => { lines.push(...a, ...b); tones.push(...tone, 255, ...tone, 255); };
    const reach = Math.min(Math.max(...range.slice(3, 5), ...range.slice(0, 2).map(Math.abs)), 60);
    for (let r = 10; r <= reach; r += 10)
      for (let i = 0; i < 96; i++) {
        const at = (k) => [r * Math.cos((k * Math.PI) / 48), r * Math.sin((k * Math.PI) / 48), up];
        line(at(i), at(i + 1), [78, 86, 96]);
      }
    this.rings = this.vertices(new Float32Array(lines), new Uint8Array(tones), this.rings);
    const [fx, fy] = this.ahead, at = (f, r, z) => [f * fx + r * fy, f * fy - r * fx, up + z];
    const hull = [], paint = [];
    const tri = (a, b, c, tone) => { hull.push(...a, ...b, ...c); for (let i = 0; i < 3; i++) paint.push(...tone, 255); };
    const nose = at(2.6, 0, 0.3), left = at(-1.8, -1.1, 0.3), right = at(-1.8, 1.1, 0.3), top = at(-0.9, 0, 1.5);
    tri(nose, left, top, [245, 245, 245]); tri(nose, top, right, [205, 210, 216]); tri(left, right, top, [150, 156, 164]);
    this.vehicle = this.vertices(new Float32Array(hull), new Uint8Array(paint), this.vehicle);
    if (first) this.home();
  }

  vertices(places, colours, old) {
    const gl = this.gl, made = old || { array: gl.createVertexArray(), place: gl.createBuffer(), colour: gl.createBuffer() };
    gl.bindVertexArray(made.array);
    for (const [index, buffer, data, size, type] of [[0, made.place, places, 3, gl.FLOAT], [1, made.colour, colours, 4, gl.UNSIGNED_BYTE]]) {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer); gl.bufferData(gl.ARRAY_BUFFER, data, gl.DYNAMIC_DRAW);
      gl.enableVertexAttribArray(index); gl.vertexAttribPointer(index, size, type, index === 1, 0, 0);
    }
    made.count = places.length / 3;
    return made;
  }

  // Draws one view for each layer, side by side. A layer: { faces: of buildFaces or null, points: Float32Array,
  // colours: Uint8Array, lines: of boxLines }.
  setLayers(layers) {
    const gl = this.gl;
    layers.forEach((layer, i) => {
      const made = (this.layers[i] = this.layers[i] || { array: gl.createVertexArray(), buffer: gl.createBuffer() });
      gl.bindVertexArray(made.array); gl.bindBuffer(gl.ARRAY_BUFFER, made.buffer);
      gl.bufferData(gl.ARRAY_BUFFER, layer.faces ? layer.faces.faces : new Uint16Array(0), gl.DYNAMIC_DRAW);
      gl.enableVertexAttribArray(0); gl.enableVertexAttribArray(1);
      gl.vertexAttribDivisor(0, 1); gl.vertexAttribDivisor(1, 1);
      made.ends = layer.faces ? layer.faces.ends : [];
      made.dots = this.vertices(layer.points, layer.colours, made.dots);
      made.lines = this.segments(layer.lines, made.lines);
    });
    this.shown = layers.length;
    this.draw();
  }

  segments({ places, colours, count }, old) {
    const gl = this.gl, made = old || { array: gl.createVertexArray(), place: gl.createBuffer(), colour: gl.createBuffer() };
    gl.bindVertexArray(made.array);
    gl.bindBuffer(gl.ARRAY_BUFFER, made.place); gl.bufferData(gl.ARRAY_BUFFER, places, gl.DYNAMIC_DRAW);
    for (const index of [0, 1]) { gl.enableVertexAttribArray(index); gl.vertexAttribPointer(index, 3, gl.FLOAT, false, 24, 12 * index); gl.vertexAttribDivisor(index, 1); }
    gl.bindBuffer(gl.ARRAY_BUFFER, made.colour); gl.bufferData(gl.ARRAY_BUFFER, colours, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(2); gl.vertexAttribPointer(2, 4, gl.UNSIGNED_BYTE, true, 0, 0); gl.vertexAttribDivisor(2, 1);
    made.count = count;
    return made;
  }

  // Draws the lines of boxes: where voxels hide them faintly, elsewhere fully.
  drawLines({ array, count }, eye, width, height, ratio) {
    const gl = this.gl;
    if (!count) return;
    gl.useProgram(this.lines.id); gl.bindVertexArray(array);
    gl.uniformMatrix4fv(this.lines.at.eye, false, eye); gl.uniform2f(this.lines.at.screen, width, height);
    gl.uniform1f(this.lines.at.wide, 1.8 * ratio);
    gl.disable(gl.CULL_FACE); gl.depthMask(false);
    for (const hidden of [true, false]) {
      (hidden ? gl.enable : gl.disable).call(gl, gl.BLEND); gl.depthFunc(hidden ? gl.GREATER : gl.LEQUAL);
      gl.uniform1f(this.lines.at.faint, hidden ? 0.4 : 1);
      gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, count);
    }
    gl.disable(gl.BLEND); gl.depthFunc(gl.LESS); gl.depthMask(true); gl.enable(gl.CULL_FACE);
  }

  home() {
    const r = this.range, wide = Math.max(r[3] - r[0], r[4] - r[1]), middle = this.ahead.map((a, i) => (r[i] + r[i + 3]) / 2);
    // a grid in front of the vehicle is seen from the vehicle, a grid around it from behind the vehicle
    const lead = this.ahead.map((a, i) => a * (Math.abs(middle[i]) > 5 ? 0 : wide * -0.09));
    this.target = [middle[0] + lead[0], middle[1] + lead[1], this.groundHeight];
    this.turn = -0.35; this.tilt = 0.6; this.distance = wide * 0.64;
    this.draw();
  }

  above() { this.turn = 0; this.tilt = 1.57; this.distance = Math.max(this.range[3] - this.range[0], this.range[4] - this.range[1]) * 1.02;
    this.target = [(this.range[0] + this.range[3]) / 2, (this.range[1] + this.range[4]) / 2, this.groundHeight]; this.draw(); }

  orbit(turn, tilt) { this.turn += turn; this.tilt = Math.min(Math.max(this.tilt + tilt, -0.2), 1.57); this.draw(); }

  zoom(factor) { this.distance = Math.min(Math.max(this.distance * factor, 3), 400); this.draw(); }

  // Moves the target of the view to the right and up, in fractions of the picture's height.
  pan(right, up) {
    const step = this.distance * 0.9, [r, , f] = this.axes(), flat = Math.hypot(f[0], f[1]) || 1;
    const lift = this.tilt > 1.5 ? this.axes()[1] : [f[0] / flat, f[1] / flat, 0];
    for (let a = 0; a < 3; a++) this.target[a] += step * (r[a] * right + lift[a] * up);
    this.draw();
  }

  // Unit vectors to the right, up and forwards of the eye.
  axes() {
    const [ax, ay] = this.ahead, c = Math.cos(this.turn), s = Math.sin(this.turn), t = Math.min(this.tilt, 1.5699);
    const flat = [ax * c - ay * s, ax * s + ay * c], forward = [flat[0] * Math.cos(t), flat[1] * Math.cos(t), -Math.sin(t)];
    const right = [flat[1], -flat[0], 0];
    const up = [right[1] * forward[2], -right[0] * forward[2], right[0] * forward[1] - right[1] * forward[0]];
    return [right, up, forward];
  }

  matrix(aspect) {
    const [right, up, forward] = this.axes(), eye = this.target.map((v, a) => v - forward[a] * this.distance);
    const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2], near = Math.max(this.distance / 60, 0.3), far = 900;
    const fit = 1.9 * Math.min(1, Math.max(aspect, 0.45)), fx = fit / aspect, fy = fit;
    const k = (far + near) / (far - near), m = (2 * far * near) / (far - near);
    const rows = [right.map((v) => v * fx), up.map((v) => v * fy), forward.map((v) => v * k), forward];
    const ends = [-dot(right, eye) * fx, -dot(up, eye) * fy, -dot(forward, eye) * k - m, -dot(forward, eye)];
    const out = new Float32Array(16);
    for (let row = 0; row < 4; row++) { for (let c = 0; c < 3; c++) out[4 * c + row] = rows[row][c]; out[12 + row] = ends[row]; }
    return out;
  }

  // Draws the faces of each of the six directions, but not of those that face away from the eye everywhere in the grid.
  drawFaces({ array, buffer, ends }) {
    const gl = this.gl, [, , forward] = this.axes(), eye = this.target.map((v, a) => v - forward[a] * this.distance);
    gl.bindVertexArray(array); gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    ends.forEach((end, side) => {
      const axis = side >> 1, start = side ? ends[side - 1] : 0;
      const seen = side & 1 ? eye[axis] < this.range[axis + 3] : eye[axis] > this.range[axis];
      if (!seen || end === start) return;
      gl.vertexAttribIPointer(0, 4, gl.UNSIGNED_SHORT, FACE_BYTES, start * FACE_BYTES);
      gl.vertexAttribPointer(1, 4, gl.UNSIGNED_BYTE, true, FACE_BYTES, start * FACE_BYTES + 8);
      gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, end - start);
    });
  }

  draw() {
    if (!this.waiting && this.shown) this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.paint(); });
  }

  paint() {
    const gl = this.gl, ratio = Math.min(window.devicePixelRatio || 1, 2), canvas = this.canvas;
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    gl.disable(gl.SCISSOR_TEST); gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const part = Math.floor(width / this.shown), eye = this.matrix(part / height);
    for (let i = 0; i < this.shown; i++) {
      gl.viewport(i * part, 0, part, height);
      gl.useProgram(this.faces.id);
      gl.uniformMatrix4fv(this.faces.at.eye, false, eye);
      gl.uniform3fv(this.faces.at.low, this.range.slice(0, 3)); gl.uniform3fv(this.faces.at.size, this.size);
      gl.uniform3iv(this.faces.at.frame, SIDES.flat(2));
      gl.uniform1iv(this.faces.at.long_is_first, LONG_IS_FIRST);
      this.drawFaces(this.layers[i]);
      gl.useProgram(this.dots.id);
      gl.uniformMatrix4fv(this.dots.at.eye, false, eye); gl.uniform1f(this.dots.at.dot_size, 1.3 * ratio);
      for (const [kind, what] of [[gl.POINTS, this.layers[i].dots], [gl.LINES, this.rings], [gl.TRIANGLES, this.vehicle]]) {
        gl.bindVertexArray(what.array);
        if (kind === gl.TRIANGLES) gl.disable(gl.CULL_FACE);
        gl.uniform1f(this.dots.at.lift, kind === gl.POINTS ? 1.8 * Math.max(...this.size) : 0);
        if (what.count) gl.drawArrays(kind, 0, what.count);
        gl.enable(gl.CULL_FACE);
      }
      this.drawLines(this.layers[i].lines, eye, part, height, ratio);
      if (i) { gl.enable(gl.SCISSOR_TEST); gl.scissor(i * part, 0, Math.ceil(ratio), height);
        gl.clearColor(0.3, 0.33, 0.37, 1); gl.clear(gl.COLOR_BUFFER_BIT); gl.clearColor(24 / 255, 27 / 255, 31 / 255, 1); gl.disable(gl.SCISSOR_TEST); }
    }
    if (this.painted) this.painted();
  }
}

// Mouse, touch and pen on the canvas: dragging turns, the right button or two fingers move, the wheel or a pinch zooms.
function listen(scene) {
  const canvas = scene.canvas, held = new Map();
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); scene.zoom(Math.exp(event.deltaY * 0.0012)); }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); held.set(event.pointerId, [event.clientX, event.clientY]); });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => held.delete(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    const before = held.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY], dx = now[0] - before[0], dy = now[1] - before[1], high = canvas.clientHeight;
    if (held.size === 2) {
      const other = [...held].find(([id]) => id !== event.pointerId)[1];
      const gap = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]);
      scene.zoom(gap(before) / Math.max(gap(now), 1)); scene.pan(-dx / high / 2, dy / high / 2);
    } else if (event.buttons & 2 || event.shiftKey) scene.pan(-dx / high, dy / high);
    else scene.orbit(-dx * 0.006, dy * 0.006);
    held.set(event.pointerId, now);
  });
}
