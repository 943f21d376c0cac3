// What scrolls sideways can be reached by keyboard: wide equations, programs and outputs.
{
  const mark = () => {
    const wide = 'mjx-container[display="true"], article pre, .cell_output .text_html, div.math';
    for (const node of document.querySelectorAll(wide)) {
      if (node.scrollWidth > node.clientWidth) node.tabIndex = 0;
      else node.removeAttribute("tabindex");
    }
  };
  window.addEventListener("load", () => {
    mark();
    window.MathJax?.startup?.promise?.then(mark);
    window.addEventListener("resize", mark);
    document.addEventListener("toggle", mark, true); // what was folded has a width now
  });
}
