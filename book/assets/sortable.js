// Tables of class "sortable": a click on a column's head orders the rows by it, a second one the
// other way round. Cells are compared by their first number where all have one, else as text;
// cells without a value stay at the end. Without this script the table is as it was written.
const NUMBER = /[-+−]?\d*\.?\d+/;
const EMPTY = ["", "-", "–", "not measured yet"];

const shown = (row, column) => row.cells[column].textContent.trim();

function valueOf(text) {
  const found = text.replaceAll(",", "").match(NUMBER);
  return found && Number(found[0].replace("−", "-"));
}

function comparison(rows, column) {
  const texts = rows.map((row) => shown(row, column)).filter((text) => !EMPTY.includes(text));
  const starts = texts.every((text) => /^[<[(]?\s*[-+−]?[\d.]/.test(text));
  if (starts && texts.length) return (a, b) => valueOf(a) - valueOf(b);
  return (a, b) => a.localeCompare(b, "en", { numeric: true });
}

function sort(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const [there, empty] = [false, true].map((wanted) =>
    rows.filter((row) => EMPTY.includes(shown(row, column)) === wanted));
  const compare = comparison(rows, column);
  const turn = descending ? -1 : 1;
  there.sort((a, b) => turn * compare(shown(a, column), shown(b, column)));
  body.append(...there, ...empty);
}

function prepare(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(table, column, descending);
    });
  });
}

document.addEventListener("DOMContentLoaded", () =>
  document.querySelectorAll("table.sortable").forEach(prepare));
