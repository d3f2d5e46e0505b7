// The cameras' pictures with points on them; a click enlarges one.

class Cameras {
  constructor(place) { this.place = place; this.large = ""; this.tiles = []; }

  // cameras: [{ name, width, height, matrix }] of the frame, matrix (16, by rows) from metres in the grid's frame to
  // (u * depth, v * depth, depth) in pixels; pictures: an ImageBitmap each.
  show(cameras, pictures) {
    this.tiles = cameras.map((camera, i) => {
      const button = this.place.children[i] || document.createElement("button");
      if (!button.firstChild) {
        button.append(document.createElement("canvas"), document.createElement("span"));
        button.addEventListener("click", () => {
          this.large = button.getAttribute("aria-pressed") === "true" ? "" : button.dataset.name;
          this.mark();
        });
        this.place.append(button);
      }
      button.dataset.name = camera.name;
      button.title = "Make this camera large, or small again";
      button.lastChild.textContent = camera.name.replace("CAM_", "").replaceAll("_", " ").toLowerCase();
      return { camera, button, canvas: button.firstChild, picture: pictures[i] };
    });
    while (this.place.children.length > cameras.length) this.place.lastChild.remove();
    this.mark();
  }

  mark() { for (const { button } of this.tiles) button.setAttribute("aria-pressed", String(button.dataset.name === this.large)); }

  // points: Float32Array of x, y, z; colours: Uint8Array of r, g, b, a, where a = 0 leaves a point out. lines: of
  // boxLines.
  paint(points, colours, lines) {
    for (const { camera, canvas, picture } of this.tiles) {
      const enlarged = Math.max(1, Math.round(800 / picture.width)), wide = picture.width * enlarged, high = picture.height * enlarged;
      if (canvas.width !== wide || canvas.height !== high) { canvas.width = wide; canvas.height = high; }
      const pen = canvas.getContext("2d"), m = camera.matrix, scale = picture.width / camera.width, seen = [];
      pen.setTransform(enlarged, 0, 0, enlarged, 0, 0); // lines are thinner than the pixels of a small picture
      pen.drawImage(picture, 0, 0);
      for (let i = 0; i < points.length / 3; i++) {
        if (!colours[4 * i + 3]) continue;
        const x = points[3 * i], y = points[3 * i + 1], z = points[3 * i + 2];
        const depth = m[8] * x + m[9] * y + m[10] * z + m[11];
        if (depth < 1) continue;
        const u = (m[0] * x + m[1] * y + m[2] * z + m[3]) / depth, v = (m[4] * x + m[5] * y + m[6] * z + m[7]) / depth;
        if (u >= 0 && v >= 0 && u < camera.width && v < camera.height) seen.push([depth, u * scale, v * scale, i]);
      }
      seen.sort((a, b) => b[0] - a[0]); // near points cover far ones
      for (const [depth, u, v, i] of seen) {
        const side = Math.min(Math.max((26 / depth) * (picture.width / 800), 2), 6);
        pen.fillStyle = `rgb(${colours[4 * i]},${colours[4 * i + 1]},${colours[4 * i + 2]})`;
        pen.fillRect(u - side / 2, v - side / 2, side, side);
      }
      const seenLines = [];
      for (let i = 0; i < lines.count; i++) {
        const ends = projected(lines.places.subarray(6 * i, 6 * i + 6), m, camera.width, camera.height);
        if (ends) seenLines.push([ends.map((value) => value * scale), i]);
      }
      pen.lineCap = "round";
      for (const under of [true, false])
        for (const [[u, v, s, t], i] of seenLines) {
          pen.strokeStyle = under ? "#14181cb0" : `rgb(${lines.colours.slice(4 * i, 4 * i + 3)})`;
          pen.lineWidth = ((under ? 5 : 2.6) * picture.width) / 800;
          pen.beginPath(); pen.moveTo(u, v); pen.lineTo(s, t); pen.stroke();
        }
    }
  }
}
