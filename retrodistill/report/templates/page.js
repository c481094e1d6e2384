// Sorting, searching, and opening queries for print. Without this script the page still reads whole.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const measuredOrder = [...body.rows];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const isNumber = head.classList.contains("number");
    const [first, second] = isNumber ? ["descending", "ascending"] : ["ascending", "descending"];
    const before = head.getAttribute("aria-sort");
    const order = before === "none" ? first : before === first ? second : "none";
    heads.forEach(other => other.setAttribute("aria-sort", other === head ? order : "none"));
    const sign = order === "ascending" ? 1 : -1;
    const key = row => isNumber ? row.cells[column].dataset.value : row.cells[column].textContent.trim();
    const compare = (left, right) => {
      const a = key(left), b = key(right);
      if (a === "" || b === "") return (a === "") - (b === "");  // missing values are last in both directions
      return sign * (isNumber ? a - b : a.localeCompare(b));
    };
    body.append(...(order === "none" ? measuredOrder : [...measuredOrder].sort(compare)));
  }));
}
for (const box of document.querySelectorAll("input[type=search]")) {
  const area = document.getElementById(box.getAttribute("aria-controls"));
  const counter = document.getElementById(box.dataset.counter);
  const items = [...area.querySelectorAll("[data-item]")];
  const texts = items.map(item => item.textContent.toLowerCase());
  const groups = [...area.querySelectorAll(".group")], none = area.querySelector(".none");
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    items.forEach((item, at) => { item.hidden = !words.every(word => texts[at].includes(word)); });
    groups.forEach(group => { group.hidden = !group.querySelector("[data-item]:not([hidden])"); });
    const shown = items.filter(item => !item.hidden).length;
    if (none) none.hidden = shown > 0;
    counter.textContent = `${shown} of ${items.length} ${counter.dataset.what}`;
  });
  box.parentElement.hidden = false;
}
for (const tools of document.querySelectorAll(".tools")) {
  tools.addEventListener("click", event => {
    const { open, close } = event.target.dataset, area = document.getElementById(open || close);
    if (area) for (const query of area.querySelectorAll("details.example:not([hidden])")) query.open = Boolean(open);
  });
  tools.hidden = false;
}
// Paper shows what the reader opened, or else the first two queries of each group.
let opened = [];
addEventListener("beforeprint", () => {
  if (document.querySelector("details.example[open]")) return;
  for (const group of document.querySelectorAll(".group"))
    opened.push(...[...group.querySelectorAll("details.example:not([hidden])")].slice(0, 2));
  for (const query of opened) query.open = true;
});
addEventListener("afterprint", () => { for (const query of opened.splice(0)) query.open = false; });
