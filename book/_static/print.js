// The button that prints the page; the theme's own would need an event handler in the page.
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-print]")) window.print();
});
