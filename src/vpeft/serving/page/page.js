"use strict";
const by = (id) => document.getElementById(id);
let chosen = null;
let asked = 0;

function headers() {
  const token = by("token").value;
  return token ? { authorization: `Bearer ${token}` } : {};
}

async function call(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...headers(), ...(options.headers || {}) } });
  const said = await answer.json();
  if (answer.status === 401) by("token-line").hidden = false;
  if (!answer.ok) throw new Error(said.error || answer.statusText);
  return said;
}

function say(text, wrong = false) {
  by("status").textContent = text;
  by("status").className = wrong ? "wrong" : "";
}

let adapters = [];
async function list() {
  try {
    adapters = (await call("adapters")).adapters;
  } catch (error) {
    say(error.message, true);
    return;
  }
  const select = by("adapter");
  const before = select.value;
  select.replaceChildren(...adapters.map((one) => new Option(one.name, one.name)));
  if (adapters.some((one) => one.name === before)) select.value = before;
  say(adapters.length ? "" : "The folder has no adapters yet.");
  facts();
}

function facts() {
  const one = adapters.find((found) => found.name === by("adapter").value);
  by("facts").textContent = one
    ? `${one.methods.join(" + ")}, ${one.task.replaceAll("_", " ")}, ${one.labels.length} labels, ${one.parameters.toLocaleString("en")} numbers`
    : "";
}

function clearMap() {
  const canvas = by("map");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  by("legend").hidden = true;
}

function cell(value) {
  const made = document.createElement("td");
  if (typeof value === "number") {
    made.className = "number";
    made.textContent = Number.isInteger(value) ? String(value) : value.toPrecision(4);
  } else {
    made.textContent = Array.isArray(value) ? value.map((one) => (typeof one === "number" ? one.toPrecision(4) : one)).join(", ") : String(value);
  }
  return made;
}

function show(said) {
  const rows = said.predictions[0].predictions;
  const table = by("answers");
  if (!rows.length) {
    say("It finds nothing in this image.");
    table.hidden = true;
    return;
  }
  const names = Object.keys(rows[0]);
  const share = names.find((name) => ["probability", "score", "share"].includes(name));
  const head = document.createElement("tr");
  for (const name of names) {
    const made = document.createElement("th");
    made.textContent = name;
    if (typeof rows[0][name] === "number") made.className = "number";
    head.append(made);
  }
  if (share) head.append(document.createElement("th"));
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(...rows.map((row) => {
    const made = document.createElement("tr");
    made.append(...names.map((name) => cell(row[name])));
    if (share) {
      const bar = document.createElement("td");
      bar.className = "bar";
      const progress = document.createElement("progress");
      progress.max = 1;
      progress.value = row[share];
      progress.title = String(row[share]);
      bar.append(progress);
      made.append(bar);
    }
    return made;
  }));
  table.hidden = false;
}

async function predict() {
  const adapter = by("adapter").value;
  if (!chosen || !adapter) return;
  const number = ++asked;
  clearMap();
  say("...");
  try {
    const said = await call(`predict?adapter=${encodeURIComponent(adapter)}`, { method: "POST", body: chosen, headers: { "content-type": "application/octet-stream" } });
    if (number !== asked) return;
    say("");
    show(said);
    by("explain").disabled = false;
  } catch (error) {
    if (number !== asked) return;
    by("answers").hidden = true;
    by("explain").disabled = true;
    say(error.message, true);
  }
}

async function explain() {
  const adapter = by("adapter").value;
  const number = asked;
  by("explain").disabled = true;
  say("Covering parts of the image ...");
  try {
    const said = await call(`explain?adapter=${encodeURIComponent(adapter)}`, { method: "POST", body: chosen, headers: { "content-type": "application/octet-stream" } });
    if (number !== asked) return;
    draw(said.falls);
    say(`Where "${Object.values(said.answer).join(" ")}" comes from`);
  } catch (error) {
    say(error.message, true);
  }
  by("explain").disabled = false;
}

function draw(falls) {
  const rows = falls.length, columns = falls[0].length;
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const most = Math.max(...falls.flat().map(Math.abs), 1e-9);
  const context = small.getContext("2d");
  falls.forEach((row, y) => row.forEach((value, x) => {
    const part = Math.min(1, Math.abs(value) / most);
    context.fillStyle = value > 0 ? `rgba(214, 39, 40, ${0.75 * part})` : `rgba(31, 90, 214, ${0.75 * part})`;
    context.fillRect(x, y, 1, 1);
  }));
  const canvas = by("map");
  canvas.width = by("picture").clientWidth;
  canvas.height = by("picture").clientHeight;
  const large = canvas.getContext("2d");
  large.imageSmoothingEnabled = true;
  large.drawImage(small, 0, 0, canvas.width, canvas.height);
  by("legend").hidden = false;
}

function take(file) {
  if (!file) return;
  chosen = file;
  URL.revokeObjectURL(by("picture").src);
  by("picture").src = URL.createObjectURL(file);
  by("frame").hidden = false;
  by("hint").hidden = true;
  predict();
}

by("file").addEventListener("change", (event) => take(event.target.files[0]));
by("adapter").addEventListener("change", () => { facts(); predict(); });
by("token").addEventListener("change", list);
by("explain").addEventListener("click", explain);
const drop = by("drop");
drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files[0]); });
drop.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); by("file").click(); } });
document.addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
list();
