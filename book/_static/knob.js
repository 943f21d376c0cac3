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
    const [low, high] = data.limits;
    const place = (value) => (100 * (Math.min(Math.max(value, low), high) - low)) / (high - low);
    const line = (track, name, value) => {
      add(track, "span", name, "").style.left = place(value) + "%";
    };
    const said = (value) => (data.percent ? Math.round(100 * value) + "%" : value.toFixed(2));
    const drawn = [];
    for (const question of data.questions) {
      add(bars, "p", "knob-question", question.text);
      question.answers.forEach(([name, values], kind) => {
        const row = add(bars, "div", "knob-row", "");
        const label = add(row, "span", "knob-name", "");
        const track = add(row, "span", "knob-track", "");
        // Patterns tell a few kinds of bars apart; a longer list is of one kind.
        const pattern = question.answers.length > 3 ? 0 : kind;
        const bar = add(track, "span", "knob-bar knob-kind-" + pattern, "");
        if (low < 0) line(track, "knob-zero", 0);
        if (data.mark !== null) line(track, "knob-mark", data.mark);
        drawn.push([label, name, bar, add(row, "span", "knob-value", ""), values]);
      });
    }
    const show = () => {
      const at = Number(input.value);
      knob.querySelector("output").textContent = data.steps[at];
      input.setAttribute("aria-valuetext", data.steps[at]);
      for (const [label, name, bar, value, values] of drawn) {
        label.textContent = Array.isArray(name) ? name[at] : name;
        const [from, to] = [place(Math.min(0, values[at])), place(Math.max(0, values[at]))];
        bar.style.width = to - from + "%";
        bar.style.left = from + "%";
        value.textContent = said(values[at]);
      }
    };
    input.addEventListener("input", show);
    knob.querySelector(".knob-still").hidden = true;
    knob.querySelector(".knob-moving").hidden = false;
    show();
  }
});
