// What scrolls sideways can be reached by keyboard: wide equations and outputs. The theme sees to
// programs and its own tables.
{
  const mark = () => {
    for (const node of document.querySelectorAll("mjx-container[display], .cell_output .text_html")) {
      if (node.scrollWidth > node.clientWidth) node.tabIndex = 0;
    }
  };
  window.addEventListener("load", () => {
    mark();
    window.MathJax?.startup?.promise?.then(mark);
    window.addEventListener("resize", mark);
    document.addEventListener("toggle", mark, true); // what was folded has a width now
  });
}
