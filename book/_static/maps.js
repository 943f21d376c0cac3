// Maps that the reader moves, from the data beside them. Without scripts a sentence stands there.
document.addEventListener("DOMContentLoaded", () => {
  const add = (parent, name, text) => {
    const node = parent.appendChild(document.createElement("div"));
    node.className = name;
    node.textContent = text;
    return node;
  };
  for (const figure of document.querySelectorAll(".maps")) {
    const data = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    const input = figure.querySelector("input");
    const row = figure.querySelector(".maps-row");
    const drawn = [];
    for (const [title, values] of Object.entries(data.maps)) {
      const one = add(row, "maps-one", "");
      add(one, "maps-title", title);
      const grid = add(one, "maps-grid", "");
      grid.style.gridTemplateColumns = "repeat(" + values[0][0].length + ", 1fr)";
      const cells = values[0].flat().map(() => add(grid, "maps-cell", ""));
      drawn.push([cells, values]);
    }
    const show = () => {
      const at = Number(input.value);
      figure.querySelector("output").textContent = data.steps[at];
      input.setAttribute("aria-valuetext", data.steps[at]);
      row.setAttribute("aria-label", data.said[at]);
      for (const [cells, values] of drawn) {
        values[Math.min(at, values.length - 1)].flat().forEach((value, i) => {
          const share = Math.min(1, Math.abs(value) / data.limit);
          const colour = value < 0 ? "0, 114, 178" : "230, 159, 0";
          cells[i].style.backgroundColor = "rgba(" + colour + ", " + share.toFixed(3) + ")";
        });
      }
    };
    input.addEventListener("input", show);
    figure.querySelector(".maps-still").hidden = true;
    figure.querySelector(".maps-moving").hidden = false;
    show();
  }
});
