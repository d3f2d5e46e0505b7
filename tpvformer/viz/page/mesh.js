// Voxels to the faces that can be seen: those whose neighbour is hidden or outside of the grid.

const HIDDEN = 255;
// Per direction the steps (x, y, z) of the normal and of two edges with edge 1 x edge 2 = normal.
const SIDES = [
  [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[-1, 0, 0], [0, 0, 1], [0, 1, 0]],
  [[0, 1, 0], [0, 0, 1], [1, 0, 0]], [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
  [[0, 0, 1], [1, 0, 0], [0, 1, 0]], [[0, 0, -1], [0, 1, 0], [1, 0, 0]],
];
const FACE_BYTES = 12; // x, y, z: uint16; side and openness: uint16; colour: 4 uint8

// labels: class of each voxel, (x * Y + y) * Z + z, HIDDEN where nothing is drawn; colours: [r, g, b] by class.
// A corner between neighbours is darker; its openness (0 to 3) takes two bits above the three of the side.
function buildFaces(labels, [X, Y, Z], colours) {
  const stepY = Z + 2, stepX = stepY * (Y + 2), full = new Uint8Array(stepX * (X + 2));
  for (let x = 0, i = 0; x < X; x++)
    for (let y = 0; y < Y; y++)
      for (let z = 0, at = (x + 1) * stepX + (y + 1) * stepY + 1; z < Z; z++, i++, at++)
        if (labels[i] !== HIDDEN) full[at] = 1;
  const offset = ([x, y, z]) => x * stepX + y * stepY + z;
  const sides = SIDES.map((side) => side.map(offset));
  let room = 1 << 14, bytes = new ArrayBuffer(room * FACE_BYTES), words = new Uint16Array(bytes), count = 0;
  let tones = new Uint8Array(bytes);
  for (let x = 0, i = 0; x < X; x++)
    for (let y = 0; y < Y; y++)
      for (let z = 0, at = (x + 1) * stepX + (y + 1) * stepY + 1; z < Z; z++, i++, at++) {
        if (labels[i] === HIDDEN) continue;
        for (let side = 0; side < 6; side++) {
          const [n, u, v] = sides[side], before = at + n;
          if (full[before]) continue;
          if (count === room) {
            room *= 2;
            const larger = new ArrayBuffer(room * FACE_BYTES);
            new Uint8Array(larger).set(tones);
            bytes = larger; words = new Uint16Array(bytes); tones = new Uint8Array(bytes);
          }
          let open = 0;
          for (let corner = 0; corner < 4; corner++) {
            const du = corner & 1 ? u : -u, dv = corner & 2 ? v : -v;
            const a = full[before + du], b = full[before + dv];
            open |= (a && b ? 0 : 3 - a - b - full[before + du + dv]) << (2 * corner);
          }
          const colour = colours[labels[i]], word = count * 6, tone = count * FACE_BYTES + 8;
          words[word] = x; words[word + 1] = y; words[word + 2] = z; words[word + 3] = side | (open << 3);
          tones[tone] = colour[0]; tones[tone + 1] = colour[1]; tones[tone + 2] = colour[2]; tones[tone + 3] = 255;
          count++;
        }
      }
  return { bytes: tones.subarray(0, count * FACE_BYTES), count };
}

// The highest drawn voxel of each column, forward up and right right, for where there is no WebGL.
function drawTopView(canvas, labels, [X, Y, Z], colours, forwardIsX) {
  const width = forwardIsX ? Y : X, height = forwardIsX ? X : Y;
  const image = new ImageData(width, height);
  for (let x = 0; x < X; x++)
    for (let y = 0; y < Y; y++) {
      let z = Z - 1;
      while (z >= 0 && labels[(x * Y + y) * Z + z] === HIDDEN) z--;
      const [column, row] = forwardIsX ? [Y - 1 - y, X - 1 - x] : [x, Y - 1 - y];
      const colour = z < 0 ? [40, 44, 50] : colours[labels[(x * Y + y) * Z + z]];
      image.data.set([...colour, 255], 4 * (row * width + column));
    }
  canvas.width = width; canvas.height = height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}
