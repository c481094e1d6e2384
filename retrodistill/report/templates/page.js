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
for (const box of document.querySelectorAll("input[type=search]")) {
  const area = document.getElementById(box.getAttribute("aria-controls"));
  const found = document.getElementById(box.dataset.found);
  const items = [...area.querySelectorAll("[data-item]")];
  const texts = items.map(one => one.textContent.toLowerCase());
  const groups = [...area.querySelectorAll(".group")], none = area.querySelector(".none");
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    items.forEach((one, at) => { one.hidden = !words.every(word => texts[at].includes(word)); });
    groups.forEach(one => { one.hidden = !one.querySelector("[data-item]:not([hidden])"); });
    const shown = items.filter(one => !one.hidden).length;
    if (none) none.hidden = shown > 0;
    found.textContent = shown + " of " + items.length + " " + found.dataset.what;
  });
  box.parentElement.hidden = false;
}
for (const tools of document.querySelectorAll(".tools")) {
  tools.addEventListener("click", event => {
    const { open, close } = event.target.dataset, area = document.getElementById(open || close);
    if (area) for (const one of area.querySelectorAll("details.example:not([hidden])")) one.open = Boolean(open);
  });
  tools.hidden = false;
}
let opened = [];
addEventListener("beforeprint", () => {
  // Paper shows what the reader opened; where that is nothing, the first of each group stand for the rest.
  if (document.querySelector("details.example[open]")) return;
  for (const group of document.querySelectorAll(".group"))
    opened.push(...[...group.querySelectorAll("details.example:not([hidden])")].slice(0, 2));
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => { for (const one of opened.splice(0)) one.open = false; });
