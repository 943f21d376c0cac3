// The filter above the transfer table: hides rows, shows numbers. Without scripts all rows stand.
document.addEventListener("DOMContentLoaded", () => {
  for (const form of document.querySelectorAll(".transfer-filter")) {
    const table = form.nextElementSibling.querySelector("table");
    const rows = [...table.tBodies[0].rows];
    const apply = () => {
      const paper = form.elements.paper.value;
      const outcome = form.elements.outcome.value;
      let shown = 0;
      for (const row of rows) {
        const outcomes = row.dataset.outcomes.split(" ");
        const fits =
          (!paper || row.dataset.paper === paper) &&
          (!outcome || outcomes.includes(outcome)) &&
          (!form.elements.differ.checked || new Set(outcomes).size > 1);
        row.hidden = !fits;
        shown += fits;
      }
      table.classList.toggle("with-numbers", form.elements.numbers.checked);
      form.querySelector(".transfer-count").textContent = `${shown} of ${rows.length} claims`;
    };
    form.hidden = false;
    form.addEventListener("change", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }
});
