// Tables: sorting by their headers, filtering by the controls above them.

/** Absent values last in either direction, equal ones as they stood. Only a column of numbers is compared as numbers:
 *  among ids there are some, such as 12e4, that look like one. */
function compareCells(a, b, sign, numeric) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (numeric) return sign * (Number(a) - Number(b));
  return a === b ? 0 : a < b ? -sign : sign;
}

function sortTable(table, at, direction) {
  const sign = direction === "ascending" ? 1 : -1;
  const body = table.tBodies[0];
  const numeric = table.tHead.rows[0].cells[at].classList.contains("num");
  const value = (row) => row.cells[at].getAttribute("data-v");
  const rows = Array.from(body.rows).sort((a, b) => compareCells(value(a), value(b), sign, numeric));
  body.append(...rows);
  Array.from(table.tHead.rows[0].cells).forEach((head, i) => {
    head.setAttribute("aria-sort", i === at ? direction : "none");
  });
}

function startSorting(table) {
  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const head = button.parentElement;
    const up = head.getAttribute("aria-sort") !== "ascending";
    sortTable(table, head.cellIndex, up ? "ascending" : "descending");
  });
}

function startFilters(box) {
  const table = document.getElementById(box.dataset.for);
  const inputs = Array.from(box.querySelectorAll("[data-filter]"));
  const rows = Array.from(table.tBodies[0].rows);
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const output = box.querySelector("output");
  const apply = () => {
    let left = 0;
    rows.forEach((row, i) => {
      const shown = inputs.every((input) => {
        const wanted = input.value;
        if (input.dataset.filter !== "text") return !wanted || row.getAttribute(`data-f-${input.dataset.filter}`) === wanted;
        return wanted.toLowerCase().split(/\s+/).every((word) => texts[i].includes(word));
      });
      row.hidden = !shown;
      left += shown;
    });
    output.textContent = left === rows.length ? `${rows.length} rows` : `${left} of ${rows.length} rows`;
  };
  box.addEventListener("input", apply);
  box.hidden = false;
  apply();
}
