// Builds the visible faces of voxels: those whose neighbour is not drawn or is outside of the grid.

const HIDDEN = 255;
// Per direction the steps (x, y, z) of the normal and of two edges with edge 1 x edge 2 = normal.
const SIDES = [
  [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[-1, 0, 0], [0, 0, 1], [0, 1, 0]],
  [[0, 1, 0], [0, 0, 1], [1, 0, 0]], [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
  [[0, 0, 1], [1, 0, 0], [0, 1, 0]], [[0, 0, -1], [0, 1, 0], [1, 0, 0]],
];
const LONG_IS_FIRST = [0, 1, 1, 0, 0, 1]; // for each side: 1 where runs go along its first edge, 0 along its second
const FACE_BYTES = 12; // x, y, z: uint16; side and openness: uint16; colour: 3 uint8; length of the run less 1: uint8
const MARK_BIT = 11;

// Whether bit i of packed bits is set.
const isMarked = (bits, i) => (bits[i >> 3] >> (7 - (i & 7))) & 1;

// labels: class of each voxel, (x * Y + y) * Z + z, HIDDEN where nothing is drawn; colours: [r, g, b] by class;
// marks: null, or a bit for each voxel, whose faces are then hatched: the bit after those of the openness.
// Ambient occlusion: a corner beside drawn voxels is darker; its openness (0 to 3) is two bits, after the three of the
// side. Adjacent unoccluded faces of one colour are merged, upright ones along z, the others along y. ends[side]: the
// number of faces up to and with that side.
function buildFaces(labels, [X, Y, Z], colours, marks) {
  const stepY = Z + 2, stepX = stepY * (Y + 2), full = new Uint8Array(stepX * (X + 2));
  for (let x = 0, i = 0; x < X; x++)
    for (let y = 0; y < Y; y++)
      for (let z = 0, at = (x + 1) * stepX + (y + 1) * stepY + 1; z < Z; z++, i++, at++)
        if (labels[i] !== HIDDEN) full[at] = 1;
  const offset = ([x, y, z]) => x * stepX + y * stepY + z, chunks = [], ends = [];
  let count = 0, total = 0;
  for (let side = 0; side < 6; side++) {
    const [n, u, v] = SIDES[side].map(offset), level = side > 3;
    const runs = new Int32Array(level ? Z : 1).fill(-1); // index of the face that the next may be merged into
    let room = 1 << 12, words = new Uint16Array(room * 6);
    count = 0;
    for (let x = 0, i = 0; x < X; x++) {
      runs.fill(-1);
      for (let y = 0; y < Y; y++) {
        if (!level) runs[0] = -1;
        for (let z = 0, at = (x + 1) * stepX + (y + 1) * stepY + 1; z < Z; z++, i++, at++) {
          const run = level ? z : 0, before = at + n;
          if (labels[i] === HIDDEN || full[before]) { runs[run] = -1; continue; }
          const around = full[before + u] | full[before - u] | full[before + v] | full[before - v] |
            full[before + u + v] | full[before + u - v] | full[before - u + v] | full[before - u - v];
          let open = 255;
          if (around) {
            open = 0;
            for (let corner = 0; corner < 4; corner++) {
              const du = corner & 1 ? u : -u, dv = corner & 2 ? v : -v, a = full[before + du], b = full[before + dv];
              open |= (a && b ? 0 : 3 - a - b - full[before + du + dv]) << (2 * corner);
            }
          }
          const [r, g, b] = colours[labels[i]], mark = marks ? isMarked(marks, i) : 0, last = runs[run] * 6;
          if (!around && last >= 0 && words[last + 3] >> MARK_BIT === mark && words[last + 4] === (r | (g << 8)) && (words[last + 5] & 255) === b && words[last + 5] >> 8 < 255) {
            words[last + 5] += 256;
            continue;
          }
          if (count === room) { const larger = new Uint16Array((room *= 2) * 6); larger.set(words); words = larger; }
          words.set([x, y, z, side | (open << 3) | (mark << MARK_BIT), r | (g << 8), b], count * 6);
          runs[run] = around ? -1 : count;
          count++;
        }
      }
    }
    chunks.push(words.subarray(0, count * 6));
    ends.push((total += count));
  }
  const faces = new Uint16Array(total * 6);
  chunks.forEach((chunk, side) => faces.set(chunk, side ? ends[side - 1] * 6 : 0));
  return { faces, ends };
}

// Draws the highest drawn voxel of each column, forward up, and boxes, for browsers without WebGL. lines: of boxLines;
// marks: as for buildFaces, whose voxels are darker.
function drawTopView(canvas, labels, [X, Y, Z], colours, forwardIsX, range, lines, marks) {
  const width = forwardIsX ? Y : X, height = forwardIsX ? X : Y;
  const image = new ImageData(width, height);
  for (let x = 0; x < X; x++)
    for (let y = 0; y < Y; y++) {
      let z = Z - 1;
      while (z >= 0 && labels[(x * Y + y) * Z + z] === HIDDEN) z--;
      const [column, row] = forwardIsX ? [Y - 1 - y, X - 1 - x] : [x, Y - 1 - y];
      const i = (x * Y + y) * Z + z, dark = z >= 0 && marks && isMarked(marks, i) ? 0.6 : 1;
      const colour = z < 0 ? [40, 44, 50] : colours[labels[i]].map((part) => part * dark);
      image.data.set([...colour, 255], 4 * (row * width + column));
    }
  const small = document.createElement("canvas"), pen = canvas.getContext("2d");
  small.width = width; small.height = height; small.getContext("2d").putImageData(image, 0, 0);
  const enlarged = Math.max(1, Math.round(1000 / Math.max(width, height))); // lines are thinner than voxels
  canvas.width = width * enlarged; canvas.height = height * enlarged;
  pen.imageSmoothingEnabled = false; pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  const part = (v, axis) => (v - range[axis]) / (range[axis + 3] - range[axis]);
  const place = (x, y) => (forwardIsX ? [1 - part(y, 1), 1 - part(x, 0)] : [part(x, 0), 1 - part(y, 1)]);
  pen.lineWidth = 3;
  for (let i = 0; i < lines.count; i++) {
    const at = lines.places, [u, v] = place(at[6 * i], at[6 * i + 1]), [s, t] = place(at[6 * i + 3], at[6 * i + 4]);
    pen.strokeStyle = `rgb(${lines.colours.slice(4 * i, 4 * i + 3)})`;
    pen.beginPath(); pen.moveTo(u * canvas.width, v * canvas.height); pen.lineTo(s * canvas.width, t * canvas.height); pen.stroke();
  }
}
