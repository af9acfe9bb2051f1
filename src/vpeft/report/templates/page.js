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

  // Pages: the part of the address after # names the one that is shown.
  const views = [...document.querySelectorAll(".view")];
  const selects = ["go-method", "go-task"].map((id) => document.getElementById(id)).filter(Boolean);
  const route = () => {
    const asked = location.hash.slice(1);
    const name = views.some((view) => view.id === asked) ? asked : "overview";
    for (const view of views) view.classList.toggle("open", view.id === name);
    for (const select of selects) select.value = [...select.options].some((one) => one.value === name) ? name : "overview";
    scrollTo(0, 0);
  };
  document.body.classList.add("routed");
  for (const select of selects) select.addEventListener("change", () => { location.hash = select.value; });
  addEventListener("hashchange", route);
  route();

  // Filters: methods whose name has one of the words, and those with all of their runs.
  const filter = document.getElementById("filter"), whole = document.getElementById("whole");
  if (filter) {
    const rows = [...document.querySelectorAll("tr[data-method]")];
    const all = new Set(rows.map((row) => row.dataset.method));
    const apply = () => {
      const words = filter.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
      const holes = new Set(rows.filter((row) => "holes" in row.dataset).map((row) => row.dataset.method));
      const keeps = (name) => (!words.length || words.some((word) => name.toLowerCase().includes(word))) && !(whole.checked && holes.has(name));
      for (const row of rows) row.hidden = !keeps(row.dataset.method) || (whole.checked && "holes" in row.dataset);
      const left = [...all].filter(keeps).length;
      document.getElementById("shown").textContent = left === all.size ? "" : `${left} of ${all.size}`;
    };
    filter.addEventListener("input", apply);
    whole.addEventListener("change", apply);
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
