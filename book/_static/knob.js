// Figures that the reader moves, from the data beside them. Without scripts a sentence stands there.
document.addEventListener("DOMContentLoaded", () => {
  const add = (parent, tag, name, text) => {
    const node = parent.appendChild(document.createElement(tag));
    node.className = name;
    node.textContent = text;
    return node;
  };
  for (const knob of document.querySelectorAll(".knob")) {
    const data = JSON.parse(knob.querySelector('script[type="application/json"]').textContent);
    const input = knob.querySelector("input");
    const bars = knob.querySelector(".knob-bars");
    const drawn = [];
    for (const question of data.questions) {
      add(bars, "p", "knob-question", question.text);
      question.answers.forEach(([name, values], kind) => {
        const row = add(bars, "div", "knob-row", "");
        add(row, "span", "knob-name", name);
        const track = add(row, "span", "knob-track", "");
        const bar = add(track, "span", "knob-bar knob-kind-" + kind, "");
        drawn.push([bar, add(row, "span", "knob-value", ""), values]);
      });
    }
    const show = () => {
      const at = Number(input.value);
      knob.querySelector("output").textContent = data.steps[at];
      input.setAttribute("aria-valuetext", data.steps[at]);
      for (const [bar, value, values] of drawn) {
        bar.style.width = 100 * values[at] + "%";
        value.textContent = Math.round(100 * values[at]) + "%";
      }
    };
    input.addEventListener("input", show);
    knob.querySelector(".knob-still").hidden = true;
    knob.querySelector(".knob-moving").hidden = false;
    show();
  }
});
