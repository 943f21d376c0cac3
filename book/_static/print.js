// The button that prints the page; the theme's own would need an event handler in the page.
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-print]")) window.print();
});

// On paper everything is open and the page is light, whatever the reader has chosen on the screen.
{
  const page = document.documentElement;
  const before = {};
  window.addEventListener("beforeprint", () => {
    before.theme = page.dataset.theme;
    before.folds = [...document.querySelectorAll("article details:not([open])")];
    page.dataset.theme = "light";
    for (const fold of before.folds) fold.open = true;
  });
  window.addEventListener("afterprint", () => {
    page.dataset.theme = before.theme;
    for (const fold of before.folds) fold.open = false;
  });
}
