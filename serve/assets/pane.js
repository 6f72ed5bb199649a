// One pane: a run with its settings, and the grid that it draws.

import { get, samples } from "./api.js";
import { control, element, select, slider } from "./form.js";

/** Least time between two requests while a slider moves, in milliseconds. */
const BETWEEN = 30;

const choices = new Map();

/** Returns what a run offers: samplers, rules and captions. */
export function choicesOf(run) {
  const key = `${run.id} ${run.checkpoints[0]?.name}`;
  if (!choices.has(key)) {
    const found = get(`/api/runs/${encodeURIComponent(run.id)}/choices`);
    found.catch(() => choices.delete(key));
    choices.set(key, found);
  }
  return choices.get(key);
}

export class Pane {
  /** `shared()` returns the part of a request that all panes share; `changed()` is called when the run changes. */
  constructor(letter, runs, first, shared, changed) {
    this.letter = letter;
    this.runs = runs;
    this.shared = shared;
    this.changed = changed;
    this.root = document.getElementById("pane").content.firstElementChild.cloneNode(true);
    this.root.dataset.letter = letter;
    this.root.setAttribute("aria-label", `Samples ${letter}`);
    this.part("letter").textContent = letter;
    for (const label of this.root.querySelectorAll("[data-for]")) {
      const id = `${label.dataset.for}-${letter}`;
      label.htmlFor = id;
      this.id(label.dataset.for).id = id;
    }
    this.id("command").addEventListener("click", () => this.copy());
    this.id("run").addEventListener("change", () => this.choose(this.id("run").value));
    this.id("checkpoint").addEventListener("change", () => this.draw());
    for (const run of runs) this.id("run").append(element("option", { value: run.id, text: run.id }));
    this.choose(first);
  }

  part(name) { return this.root.querySelector(`.${name}`); }
  id(name) { return this.root.querySelector(`[data-id="${name}"]`); }

  get run() { return this.runs.find((run) => run.id === this.id("run").value); }

  /** Removes the picture and the controls of another run. */
  clear() {
    this.abort?.abort();
    this.choices = null;
    for (const name of ["png", "document"]) this.id(name).removeAttribute("href");
    this.id("command").disabled = true;
    for (const name of ["guide", "sample"]) this.id(name).replaceChildren();
    this.part("grid").removeAttribute("src");
    this.part("grid").alt = "No samples yet";
    this.part("rows").replaceChildren();
    this.part("rows").dataset.shown = "";
    this.root.querySelector("progress").value = 0;
    this.note("");
  }

  /** Shows another run, with the settings of its document. */
  async choose(id) {
    this.id("run").value = id;
    const run = this.run;
    this.clear();
    this.sampler = structuredClone(run.sampler);
    this.guidance = structuredClone(run.guidance);
    this.number = null;
    this.refresh(run);
    this.changed();
    this.say(null);
    if (run.unavailable) {
      this.say(run.unavailable);
      return;
    }
    let choices = null;
    try {
      choices = await choicesOf(run);
    } catch (error) {
      this.say(error.problems ? error.message : "The server does not answer");
      return;
    }
    if (this.run.id !== id) return;
    this.choices = choices;
    this.build();
    this.draw();
  }

  /** Takes over new checkpoints of the run. */
  refresh(run) {
    const index = this.runs.findIndex((known) => known.id === run.id);
    this.runs[index] = run;
    if (this.id("run").value !== run.id) return;
    const menu = this.id("checkpoint");
    const chosen = menu.value || "newest";
    const names = ["newest", ...run.checkpoints.map((entry) => entry.name)];
    const label = (name) => name === "newest" ? "Newest" : name.replace(/^step-0*(?=\d)/, "Step ");
    menu.replaceChildren(...names.map((name) => element("option", { value: name, text: label(name) })));
    menu.value = names.includes(chosen) ? chosen : "newest";
  }

  /** Builds the controls of guidance and sampler. */
  build() {
    this.buildGuidance();
    this.buildSampler();
  }

  menu(label, list, current, onchange) {
    const usable = list.filter((choice) => !choice.refused);
    const other = list.filter((choice) => choice.refused);
    const made = select({ label, value: current, options: usable.map((choice) => ({ value: choice.name })), onchange });
    if (other.length) {
      const group = element("optgroup", { label: "Not with this run" });
      for (const choice of other) group.append(element("option", { value: choice.name, text: choice.name, selected: choice.name === current }));
      made.select.append(group);
    }
    return made.field;
  }

  /** The settings of an entry that have no control of their own, folded away. */
  more(name, choice, entry, skip, set) {
    const fields = Object.entries(choice.schema.properties ?? {}).filter(([key]) => !skip.includes(key) && key !== "weak");
    if (!fields.length) return null;
    const made = element("details", {}, element("summary", { text: `More settings of ${name}` }));
    for (const [key, schema] of fields) {
      made.append(control(key, schema, choice.schema, entry()[key], (to) => set(key, to)));
    }
    return made;
  }

  buildGuidance() {
    const { run, guidance } = this;
    const choice = this.choices.guidance.find((one) => one.name === guidance.type);
    const holder = this.id("guide");
    const parts = [this.menu("Guidance rule", this.choices.guidance, guidance.type, (name) => {
      const chosen = this.choices.guidance.find((one) => one.name === name);
      this.guidance = name === run.guidance.type ? structuredClone(run.guidance) : structuredClone(chosen.entry);
      this.number = null;
      this.buildGuidance();
      holder.querySelector("select").focus();
      this.draw();
    })];
    const set = (key, to) => { this.guidance = { ...this.guidance, [key]: to }; this.draw(); };
    this.scaleSlider = this.numberSlider = null;
    const reads = guidance.type === "none";
    if (typeof guidance.scale === "number") {
      const [low, high] = reads ? run.trained_scales : [0, 10];
      const min = low ?? 0;
      const max = Math.min(high ?? 10, 10);
      const help = !reads || run.trained_scales.length ? null : "This network reads no scale. Choose a rule such as cfg.";
      this.scaleSlider = slider({
        label: "Scale", value: guidance.scale, min: help ? 1 : min, max: help ? 1 : max, step: 0.05, help,
        oninput: (to) => { this.number = null; set("scale", to); },
      });
      parts.push(this.scaleSlider.field);
    }
    if (reads && run.guidance_numbers.length) {
      const ends = [Math.min(...run.guidance_numbers), Math.max(...run.guidance_numbers)];
      const span = ends[1] - ends[0];
      this.numberSlider = slider({
        label: "Guidance number of the network", value: ends[1], min: Number(ends[0].toPrecision(4)), max: Number(ends[1].toPrecision(4)), step: span > 0 ? span / 200 : 0.01,
        help: "What the network itself reads, in its objective's letter, such as beta.",
        oninput: (to) => { this.number = to; this.draw(); },
      });
      parts.push(this.numberSlider.field);
    }
    const schema = choice.schema.properties ?? {};
    if (schema.schedule) {
      parts.push(control("schedule", schema.schedule, choice.schema, guidance.schedule, (to) => set("schedule", to)));
    }
    parts.push(this.more(guidance.type, choice, () => this.guidance, ["scale", "schedule"], set));
    holder.replaceChildren(...parts.filter(Boolean));
  }

  buildSampler() {
    const { run, sampler } = this;
    const choice = this.choices.samplers.find((one) => one.name === sampler.type);
    const holder = this.id("sample");
    const parts = [this.menu("Sampler", this.choices.samplers, sampler.type, (name) => {
      const chosen = this.choices.samplers.find((one) => one.name === name);
      this.sampler = name === run.sampler.type ? structuredClone(run.sampler) : structuredClone(chosen.entry);
      this.buildSampler();
      holder.querySelector("select").focus();
      this.draw();
    })];
    const set = (key, to) => { this.sampler = { ...this.sampler, [key]: to }; this.draw(); };
    for (const key of ["steps", "iterations"]) {
      if (typeof sampler[key] !== "number") continue;
      const max = Math.max(100, sampler[key]);
      parts.push(slider({ label: key === "steps" ? "Steps" : "Iterations", value: sampler[key], min: 1, max, step: 1, oninput: (to) => set(key, to) }).field);
    }
    parts.push(this.more(sampler.type, choice, () => this.sampler, ["steps", "iterations"], set));
    holder.replaceChildren(...parts.filter(Boolean));
  }

  request() {
    const request = {
      run: this.run.id,
      checkpoint: this.id("checkpoint").value,
      sampler: this.sampler,
      guidance: this.guidance,
      ...this.shared(this.run),
    };
    if (this.number !== null) request.guidance_number = this.number;
    return request;
  }

  /** Draws with the current settings. A request that is still in progress is ended. */
  draw() {
    if (!this.choices || this.run.unavailable) return;
    this.root.classList.add("stale");
    if (this.timer) return;
    const wait = Math.max(0, BETWEEN - (performance.now() - (this.last ?? -BETWEEN)));
    this.timer = setTimeout(() => {
      this.timer = null;
      this.last = performance.now();
      this.send();
    }, wait);
  }

  async send() {
    this.abort?.abort();
    const abort = new AbortController();
    this.abort = abort;
    const asked = this.request();
    if (this.run.captions && !asked.captions.length) {
      this.note("Write a caption to draw");
      return;
    }
    const bar = this.root.querySelector("progress");
    bar.value = 0;
    const begun = performance.now();
    let queued = null;
    try {
      await samples(asked, abort.signal, {
        queued: (data) => {
          if (abort.signal.aborted) return;
          queued = data;
          this.say(null);
          if (data.before > 0) this.note(`Waiting for ${data.before} ${data.before === 1 ? "request" : "requests"}`);
          if (this.scaleSlider && data.scale !== null && this.number !== null) {
            this.guidance.scale = data.scale;
            this.scaleSlider.set(data.scale);
          }
          if (this.numberSlider && data.guidance_number !== null && this.number === null) this.numberSlider.set(data.guidance_number);
        },
        step: (data) => {
          if (abort.signal.aborted) return;
          bar.max = data.steps;
          bar.value = data.step;
          if (data.picture) this.show(data.picture, asked, queued, begun);
        },
        done: (data) => {
          if (abort.signal.aborted) return;
          bar.max = bar.value = 1;
          this.show(data.picture, asked, queued, begun);
          this.root.classList.remove("stale");
          this.note(`${data.nfe} network ${data.nfe === 1 ? "evaluation" : "evaluations"} per image, ${this.seconds(data.seconds)}`);
          this.offer(data.picture, queued);
        },
      });
    } catch (error) {
      if (abort.signal.aborted) return;
      bar.value = 0;
      this.say(error.problems ? error.message : "The server does not answer. Is it still running?");
    }
  }

  seconds(value) { return value < 0.995 ? `${Math.max(1, Math.round(value * 1000))} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`; }

  show(picture, asked, queued, begun) {
    const image = this.part("grid");
    image.src = `data:image/png;base64,${picture}`;
    const labels = asked.captions ?? (asked.classes.length ? asked.classes : null);
    const rows = Array.from({ length: queued.rows }, (_, i) => labels?.[i] ?? i);
    const scale = queued.scale === null ? "" : `, scale ${Number(queued.scale.toPrecision(4))}`;
    const what = this.run.num_classes ? `classes ${rows.join(", ")}` : asked.captions ? `captions: ${rows.join("; ")}` : `${queued.rows} rows`;
    image.alt = `Samples of ${this.run.id}: ${what}; ${queued.columns} per row, seed ${asked.seed}${scale}`;
    const names = this.part("rows");
    const shown = this.run.num_classes ? rows : asked.captions ? rows.map((_, i) => i + 1) : [];
    names.hidden = shown.length === 0;
    if (names.dataset.shown !== shown.join()) {
      names.dataset.shown = shown.join();
      names.replaceChildren(...shown.map((name) => element("span", { text: name })));
    }
    if (!this.root.dataset.first) this.root.dataset.first = performance.now() - begun;
  }

  /** Offers the grid, its document and its command. */
  offer(picture, queued) {
    const name = `${this.run.id}-${queued.checkpoint}`;
    const link = (id, href, file) => Object.assign(this.id(id), { href, download: file });
    link("png", `data:image/png;base64,${picture}`, `${name}.png`);
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(new Blob([JSON.stringify(queued.document, null, 2)], { type: "application/json" }));
    link("document", this.url, `${name}.json`);
    this.command = queued.command;
    this.id("command").disabled = false;
    this.id("command").title = queued.command;
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.command);
      this.note("Command copied");
    } catch {
      // Without a secure origin there is no clipboard: show the command instead.
      this.note(this.command);
    }
  }

  note(text) { this.root.querySelector("figcaption").textContent = text; }

  /** Shows why there are no samples, or removes the message. */
  say(text) {
    const place = this.part("problem");
    place.hidden = text === null;
    if (text !== null) {
      place.textContent = text;
      this.note("");
    }
  }

  close() {
    this.abort?.abort();
    clearTimeout(this.timer);
    this.root.remove();
  }
}
