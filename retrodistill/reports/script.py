"""The page's script: sorting and searching. Without it the page still reads whole."""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const first = [...body.rows];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const number = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const start = number ? "descending" : "ascending", other = number ? "ascending" : "descending";
    const order = before === "none" ? start : before === start ? other : "none";
    heads.forEach(one => one.setAttribute("aria-sort", one === head ? order : "none"));
    const sign = order === "ascending" ? 1 : -1;
    const key = row => number ? row.cells[column].dataset.value : row.cells[column].textContent.trim();
    const compare = (one, two) => {
      const a = key(one), b = key(two);
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (number ? a - b : a.localeCompare(b));
    };
    body.append(...(order === "none" ? first : [...first].sort(compare)));
  }));
}
const examples = [...document.querySelectorAll("details.example")];
const search = document.getElementById("search");
if (search) {
  const texts = examples.map(one => one.textContent.toLowerCase());
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
    examples.forEach((one, at) => { one.hidden = !words.every(word => texts[at].includes(word)); });
    const shown = examples.filter(one => !one.hidden).length;
    document.getElementById("found").textContent = shown + " of " + examples.length;
  });
}
"""
