"use strict";
(() => {
  // The theme: the system's unless the button was pressed; a page opened from a file may not store it, and then it is
  // not remembered.
  const root = document.documentElement;
  const remember = (value) => { try { if (value) localStorage.setItem("vpeft-theme", value); return localStorage.getItem("vpeft-theme"); } catch { return value; } };
  const stored = remember();
  if (stored) root.dataset.theme = stored;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    remember(root.dataset.theme);
  });

  // Tables: a click on a heading sorts by it, numbers by their data-value, the best first at the first click.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => head.addEventListener("click", () => {
      const isText = head.classList.contains("text");
      const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : !isText;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => isText ? row.cells[column].textContent.trim() : Number(row.cells[column].dataset.value);
      const order = (a, b) => isText ? value(a).localeCompare(value(b)) : value(a) - value(b);
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
    }));
  }

  // The picture: each point tells its figures.
  const tips = JSON.parse(document.getElementById("tips").textContent);
  const tip = document.getElementById("tip");
  const show = (name, x, y) => {
    tip.replaceChildren();
    const title = document.createElement("b");
    title.textContent = tips[name].title;
    tip.append(title);
    for (const [word, figure] of tips[name].lines) {
      const line = document.createElement("div"), left = document.createElement("span"), right = document.createElement("span");
      left.textContent = word;
      right.textContent = figure;
      line.append(left, right);
      tip.append(line);
    }
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${y + 14 + box.height > innerHeight ? Math.max(8, y - box.height - 14) : y + 14}px`;
  };
  for (const name of Object.keys(tips)) {
    const point = document.getElementById(name);
    if (!point) continue;
    point.setAttribute("tabindex", "0");
    point.setAttribute("aria-label", tips[name].title);
    point.addEventListener("pointermove", (event) => show(name, event.clientX, event.clientY));
    point.addEventListener("pointerleave", () => { tip.hidden = true; });
    point.addEventListener("focus", () => { const box = point.getBoundingClientRect(); show(name, box.right, box.top); });
    point.addEventListener("blur", () => { tip.hidden = true; });
  }
})();
