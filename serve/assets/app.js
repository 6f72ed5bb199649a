// The page: what all panes share, and which panes there are.

import { get } from "./api.js";
import { element } from "./form.js";
import { Pane, choicesOf } from "./pane.js";
import { Training } from "./training.js";

const at = (id) => document.getElementById(id);
/** Classes that are chosen at first: more rows would not fit on a screen. */
const FIRST_CLASSES = 10;

let runs = [];
const panes = [];
let training = null;
let conditionsOf = null;

/** The conditions, the noise and the size of the grid. */
function shared(run) {
  const request = { count: Math.max(1, Number(at("count").value) || 1), seed: Math.max(0, Math.trunc(Number(at("seed").value)) || 0) };
  if (run.captions) {
    request.captions = (at("captions")?.value ?? "").split("\n").map((line) => line.trim()).filter(Boolean);
  } else {
    const chosen = [...document.querySelectorAll("#chips input:checked")].map((box) => Number(box.value));
    request.classes = run.num_classes ? chosen.filter((name) => name < run.num_classes) : [];
  }
  return request;
}

function drawAll() { panes.forEach((pane) => pane.draw()); }

/** Builds the controls of the conditions that the first pane's run reads. */
async function buildConditions() {
  const run = panes[0].run;
  const key = `${run.num_classes} ${run.captions}`;
  if (conditionsOf === key) return;
  conditionsOf = key;
  const holder = at("chips");
  at("conditions").hidden = !run.num_classes && !run.captions;
  at("conditions").firstElementChild.textContent = run.captions ? "Captions, one per line" : "Classes";
  if (run.captions) {
    const box = element("textarea", { id: "captions", rows: 4, "aria-label": "Captions, one per line", oninput: drawAll });
    holder.replaceChildren(box);
    // Without captions of the dataset, the user writes the first one.
    const { captions } = await choicesOf(run).catch(() => ({ captions: [] }));
    if (!box.value) box.value = captions.join("\n");
    drawAll();
  } else if (run.num_classes && run.num_classes <= 40) {
    holder.replaceChildren(...Array.from({ length: run.num_classes }, (_, name) => {
      const box = element("input", { type: "checkbox", value: name, checked: name < FIRST_CLASSES, onchange: drawAll });
      return element("label", { class: "pick" }, box, element("span", { text: name }));
    }));
  } else if (run.num_classes) {
    // Too many for one box each.
    const list = element("input", { type: "text", value: "0, 1, 2, 3", "aria-label": `Classes 0 to ${run.num_classes - 1}, separated by commas` });
    const boxes = element("div", { hidden: true });
    const fill = () => {
      const names = [...new Set(list.value.split(",").map((word) => word.trim()).filter((word) => /^\d+$/.test(word)))];
      boxes.replaceChildren(...names.map((value) => element("input", { type: "checkbox", value, checked: true })));
    };
    list.addEventListener("input", () => { fill(); drawAll(); });
    fill();
    holder.replaceChildren(list, boxes);
  }
}

function addPane(letter, id) {
  const pane = new Pane(letter, runs, id, shared, () => {
    if (panes.length) buildConditions();
    training?.look();
  });
  panes.push(pane);
  at("panes").append(pane.root);
  at("panes").dataset.count = panes.length;
  return pane;
}

function compare() {
  const isOn = panes.length === 1;
  at("compare").setAttribute("aria-pressed", isOn);
  if (isOn) {
    const [a] = panes;
    const other = runs.find((run) => run.id !== a.run.id && run.num_classes === a.run.num_classes && run.captions === a.run.captions);
    addPane("B", (other ?? a.run).id);
  } else {
    panes.pop().close();
    at("panes").dataset.count = panes.length;
  }
  training?.look();
}

function themes() {
  const names = ["auto", "light", "dark"];
  const words = { auto: "as the system", light: "light", dark: "dark" };
  let name = "auto";
  try { name = localStorage.getItem("theme") ?? "auto"; } catch { /* Storage may be switched off. */ }
  const apply = () => {
    if (!names.includes(name)) name = "auto";
    document.documentElement.dataset.theme = name;
    at("theme").textContent = `Colours: ${name}`;
    at("theme").setAttribute("aria-label", `Colours: ${words[name]}`);
  };
  at("theme").addEventListener("click", () => {
    name = names[(names.indexOf(name) + 1) % names.length];
    try { localStorage.setItem("theme", name); } catch { /* Storage may be switched off. */ }
    apply();
  });
  apply();
}

async function begin() {
  themes();
  try {
    runs = await get("/api/runs");
  } catch (error) {
    at("panes").replaceChildren(element("pre", { class: "card problem", role: "alert", text: error.problems ? error.message : "The server does not answer" }));
    return;
  }
  const first = addPane("A", runs.find((run) => !run.unavailable)?.id ?? runs[0].id);
  const rows = Math.min(first.run.num_classes ?? 4, FIRST_CLASSES) || 1;
  const [, height] = first.run.image;
  if (height > 64) at("count").value = Math.max(1, Math.min(4, Math.floor(16 / rows)));
  if (height <= 16) at("count").value = 8;
  await buildConditions();
  at("shared").addEventListener("submit", (event) => {
    event.preventDefault();
    if (at("lock").getAttribute("aria-pressed") === "false") at("seed").value = Math.floor(Math.random() * 1e6);
    drawAll();
  });
  for (const name of ["count", "seed"]) at(name).addEventListener("input", drawAll);
  at("lock").addEventListener("click", () => {
    const isLocked = at("lock").getAttribute("aria-pressed") !== "true";
    at("lock").setAttribute("aria-pressed", isLocked);
    at("lock").textContent = isLocked ? "Locked" : "New each time";
  });
  at("compare").addEventListener("click", compare);
  const states = new Map();
  const newest = new Map();
  training = new Training(() => [...new Set(panes.map((pane) => pane.run.id))], async (id, progress, words) => {
    states.set(id, words);
    at("state").textContent = states.get(panes[0].run.id) ?? "";
    at("state").dataset.state = progress?.state ?? "gone";
    if (progress?.state !== "training" && newest.get(id) === progress?.step) return;
    // A training saves checkpoints: list them, and start panes that waited for the first one.
    newest.set(id, progress?.step);
    if (!progress) return;
    try {
      runs = await get("/api/runs");
    } catch {
      return;
    }
    for (const pane of panes) {
      for (const run of runs) {
        const waited = pane.run.unavailable;
        pane.refresh(run);
        if (run.id === pane.run.id && waited && !run.unavailable) pane.choose(run.id);
      }
    }
  });
}

begin();
