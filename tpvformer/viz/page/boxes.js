// Boxes as lines: edges, a mark of the heading, and an arrow to where the object is one second later.

const ROW = 28; // numbers of a box: corners k = 0 to 7 (x, y, z), where bit 0 of k is the front, bit 1 the left, bit 2
// the top; velocity x, y in m/s; score; label

// rows: Float32Array of ROW a box; kept(i): whether box i is drawn; colourOf(label): [r, g, b]; edges: pairs of corners;
// slow: m/s, below which there is no arrow. Returns { places: 6 numbers a line, colours: r, g, b, a, count }.
function boxLines(rows, kept, colourOf, edges, slow) {
  const places = [], colours = [];
  for (let i = 0; i < rows.length / ROW; i++) {
    if (!kept(i)) continue;
    const at = (k) => [0, 1, 2].map((axis) => rows[ROW * i + 3 * k + axis]), middle = (...all) => [0, 1, 2].map((axis) => all.reduce((sum, k) => sum + at(k)[axis], 0) / all.length);
    const colour = colourOf(rows[ROW * i + 27]), line = (a, b) => { places.push(...a, ...b); colours.push(...colour, 255); };
    for (const [a, b] of edges) line(at(a), at(b));
    line(middle(4, 5, 6, 7), middle(5, 7));
    const vx = rows[ROW * i + 24], vy = rows[ROW * i + 25], speed = Math.hypot(vx, vy);
    if (speed <= slow) continue;
    const start = middle(0, 1, 2, 3, 4, 5, 6, 7), end = [start[0] + vx, start[1] + vy, start[2]];
    const tip = Math.min(Math.max(0.3 * speed, 0.3), 1.5) / speed;
    line(start, end);
    for (const side of [0.5, -0.5]) line(end, [end[0] - tip * (vx - side * vy), end[1] - tip * (vy + side * vx), end[2]]);
  }
  return { places: new Float32Array(places), colours: new Uint8Array(colours), count: places.length / 6 };
}

function joinedLines(a, b) {
  const places = new Float32Array(a.places.length + b.places.length), colours = new Uint8Array(a.colours.length + b.colours.length);
  places.set(a.places); places.set(b.places, a.places.length);
  colours.set(a.colours); colours.set(b.colours, a.colours.length);
  return { places, colours, count: a.count + b.count };
}

// Projects a line [x, y, z, x, y, z] by a matrix (16, by rows); cuts off what is nearer than 0.1 m or outside of the
// image. Returns [u, v, u, v] in pixels, or null where nothing is seen.
function projected(line, m, width, height) {
  const row = (r, at) => m[4 * r] * line[at] + m[4 * r + 1] * line[at + 1] + m[4 * r + 2] * line[at + 2] + m[4 * r + 3];
  const a = [0, 1, 2].map((r) => row(r, 0)), b = [0, 1, 2].map((r) => row(r, 3));
  const sides = (p) => [p[2] - 0.1, p[0], width * p[2] - p[0], p[1], height * p[2] - p[1]], first = sides(a), last = sides(b);
  let start = 0, stop = 1;
  for (let k = 0; k < 5; k++) {
    if (first[k] < 0 && last[k] < 0) return null;
    const crossing = first[k] / (first[k] - last[k]);
    if (first[k] < 0) start = Math.max(start, crossing);
    else if (last[k] < 0) stop = Math.min(stop, crossing);
  }
  if (start >= stop) return null;
  const cut = (t) => { const p = a.map((value, r) => value + t * (b[r] - value)); return [p[0] / p[2], p[1] / p[2]]; };
  return [...cut(start), ...cut(stop)];
}
