// Draws attention maps: every head small, one of them enlarged with its tokens. The data stands in the page as JSON.
"use strict";
(() => {
  const FULL = 65535; // a weight of 1 in the data
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  // The style sheet's colours of the weights 0 and 1, as red, green and blue.
  const ramp = () => {
    const style = getComputedStyle(document.documentElement);
    return ["--weight-0", "--weight-1"].map((name) =>
      [1, 3, 5].map((k) => parseInt(style.getPropertyValue(name).trim().slice(k, k + 2), 16)),
    );
  };

  const element = (name, className, text = "") => {
    const made = document.createElement(name);
    made.className = className;
    made.textContent = text;
    return made;
  };

  function decode(head, columns) {
    const bytes = Uint8Array.from(atob(head.weights), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const at = (row, column) => view.getUint16(2 * (row * columns + column), true) / FULL;
    return { caption: head.caption, at };
  }

  // One pixel a weight; the style sheet gives it its size.
  function paint(canvas, head, rows, columns) {
    const [ground, full] = ramp();
    const image = new ImageData(columns, rows);
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const share = Math.sqrt(head.at(row, column));
        const colour = ground.map((low, k) => low + share * (full[k] - low));
        image.data.set([...colour, 255], 4 * (row * columns + column));
      }
    }
    canvas.width = columns;
    canvas.height = rows;
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  function cellUnder(event, canvas, rows, columns) {
    const box = canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    return [Math.min(Math.max(row, 0), rows - 1), Math.min(Math.max(column, 0), columns - 1)];
  }

  for (const section of document.querySelectorAll("section.attention")) {
    const data = JSON.parse(section.querySelector(".maps").textContent);
    const [rows, columns] = [data.rows.length, data.columns.length];
    const layers = data.layers.map((heads) => heads.map((head) => decode(head, columns)));
    const pointed = section.querySelector(".pointed");
    const verb = section.dataset.kind === "cross" ? "predicting" : "at";
    const repaint = [];
    let chosen = layers[0][0];
    let chosenButton = null;

    const say = (head, row, column) => {
      const weight = head.at(row, column);
      const share = weight > 0 && weight < 0.001 ? "below 0.1" : (100 * weight).toFixed(1);
      pointed.textContent =
        `${head.caption.split(":")[0]}, ${verb} “${data.rows[row]}” (${row + 1}): ` +
        `${share}\u202f% on “${data.columns[column]}” (${column + 1})`;
    };
    const rest = () => (pointed.textContent = chosen.caption);
    const follow = (canvas, head, more = () => {}) => {
      canvas.addEventListener("pointermove", (event) => {
        const [row, column] = cellUnder(event, canvas, rows, columns);
        say(head(), row, column);
        more(row, column);
      });
      canvas.addEventListener("pointerleave", () => {
        rest();
        more(-1, -1);
      });
    };

    // The enlarged head: labels left and above, cells as large as the text allows.
    const enlarged = section.querySelector(".enlarged");
    enlarged.style.setProperty("--rows", rows);
    enlarged.style.setProperty("--columns", columns);
    enlarged.style.setProperty("--cell", `${Math.min(30, Math.max(13, Math.floor(640 / Math.max(rows, columns))))}px`);
    const above = enlarged.appendChild(element("div", "above"));
    const beside = enlarged.appendChild(element("div", "beside"));
    const large = enlarged.appendChild(element("canvas", "large"));
    large.setAttribute("role", "img");
    const tops = data.columns.map((text) => above.appendChild(element("span", "", text)));
    const sides = data.rows.map((text) => beside.appendChild(element("span", "", text)));
    [...tops, ...sides].forEach((label) => (label.title = label.textContent));
    follow(large, () => chosen, (row, column) => {
      tops.forEach((label, k) => label.classList.toggle("here", k === column));
      sides.forEach((label, k) => label.classList.toggle("here", k === row));
    });
    const enlarge = (head, button) => {
      chosen = head;
      chosenButton?.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", "true");
      chosenButton = button;
      large.setAttribute("aria-label", head.caption);
      paint(large, head, rows, columns);
      rest();
    };
    repaint.push(() => paint(large, chosen, rows, columns));

    const grid = section.querySelector(".heads");
    const most = Math.max(...layers.map((heads) => heads.length));
    grid.style.setProperty("--heads", most);
    grid.append(element("span", ""));
    for (let k = 0; k < most; k++) grid.append(element("span", "head", most > 1 && k === 0 ? "head 1" : `${k + 1}`));
    layers.forEach((heads, layer) => {
      grid.append(element("span", "layer", layer === 0 ? "layer 1" : `${layer + 1}`));
      for (const head of heads) {
        const button = grid.appendChild(element("button", "map"));
        button.type = "button";
        button.setAttribute("aria-label", head.caption);
        const canvas = button.appendChild(element("canvas", ""));
        paint(canvas, head, rows, columns);
        repaint.push(() => paint(canvas, head, rows, columns));
        follow(canvas, () => head);
        button.addEventListener("click", () => {
          enlarge(head, button);
          enlarged.scrollIntoView({ block: "nearest" });
        });
      }
      for (let k = heads.length; k < most; k++) grid.append(element("span", ""));
    });
    enlarge(chosen, grid.querySelector("button"));
    dark.addEventListener("change", () => repaint.forEach((draw) => draw()));
  }
})();
