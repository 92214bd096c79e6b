// What happens when the page is there: tables first; a plot is drawn when it is first about to be seen.

for (const table of document.querySelectorAll("table.grid")) startSorting(table);
for (const box of document.querySelectorAll(".controls[data-for]")) startFilters(box);
startDrawer();

const STARTS = { scatter: startScatter, curves: startCurves, layers: startLayers };
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    STARTS[entry.target.id](entry.target);
    entry.target.setAttribute("data-drawn", "");
  }
}, { rootMargin: "300px" });
for (const place of document.querySelectorAll(".plot")) seen.observe(place);

// A closed <details> is not printed; on paper its tables and texts belong to the page.
const closed = [];
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details.which:not([open])")) { part.open = true; closed.push(part); }
});
addEventListener("afterprint", () => { for (const part of closed.splice(0)) part.open = false; });
