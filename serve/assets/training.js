// The training of the shown runs: state, time left, curves and sample grids.

import { get } from "./api.js";
import { element, title } from "./form.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [240, 88];

function svg(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** One curve over the steps. */
function chart(name, points) {
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const at = ([x, y]) => [
    4 + (WIDTH - 8) * (x1 > x0 ? (x - x0) / (x1 - x0) : 1),
    4 + (HEIGHT - 8) * (y1 > y0 ? 1 - (y - y0) / (y1 - y0) : 0.5),
  ];
  const drawn = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  const last = points.at(-1);
  drawn.setAttribute("aria-label", `${title(name)}: ${short(points[0][1])} at step ${points[0][0]}, ${short(last[1])} at step ${last[0]}`);
  drawn.append(svg("polyline", { points: points.map((point) => at(point).map((v) => v.toFixed(1)).join()).join(" "), "vector-effect": "non-scaling-stroke" }));
  const now = element("output", { text: short(last[1]) });
  const place = element("div", { class: "plot" }, drawn);
  place.addEventListener("pointermove", (event) => {
    const box = place.getBoundingClientRect();
    const x = x0 + (x1 - x0) * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const near = points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
    now.textContent = `step ${near[0]}: ${short(near[1])}`;
  });
  place.addEventListener("pointerleave", () => { now.textContent = short(last[1]); });
  return element("div", { class: "chart" },
    element("div", { class: "legend" }, element("span", { text: title(name) }), now),
    place,
    element("div", { class: "axis" }, element("span", { text: `step ${x0}` }), element("span", { text: `${short(y0)} to ${short(y1)}` }), element("span", { text: `${x1}` })));
}

/** The training of one run. */
class Followed {
  constructor(id) {
    this.id = id;
    this.state = element("p", { class: "facts" });
    this.charts = element("div", { class: "charts" });
    this.grid = element("img", { class: "saved", alt: "" });
    this.slider = element("input", { type: "range", min: 0, step: 1, "aria-label": `Saved sample grid of ${id}` });
    this.label = element("output");
    this.isLast = true;
    this.slider.addEventListener("input", () => {
      this.isLast = Number(this.slider.value) === this.samples.length - 1;
      this.showGrid();
    });
    this.history = element("div", { class: "history", hidden: true }, this.grid, element("div", { class: "pair" }, this.slider, this.label));
    this.bar = element("progress", { max: 1, value: 0, "aria-label": `Training of ${id}` });
    this.root = element("article", {}, element("h3", { text: id }), this.state, this.bar, element("div", { class: "follow" }, this.charts, this.history));
  }

  showGrid() {
    const step = this.samples[Number(this.slider.value)];
    this.label.textContent = `step ${step}`;
    this.slider.setAttribute("aria-valuetext", `step ${step}`);
    const source = `/api/runs/${encodeURIComponent(this.id)}/samples/${step}`;
    if (this.grid.getAttribute("src") !== source) {
      this.grid.src = source;
      this.grid.alt = `Samples that the training saved at step ${step}`;
    }
  }

  show(progress) {
    const { state, step, steps } = progress;
    const words = {
      training: `Step ${step} of ${steps}` + (progress.seconds_left === null ? "" : `, about ${duration(progress.seconds_left)} left`),
      done: `All ${steps} steps are done`,
      stopped: `Stopped at step ${step} of ${steps}` + (progress.seconds_since === null ? "" : `; last line ${duration(progress.seconds_since)} ago`),
      none: "Nothing was logged",
    };
    this.state.textContent = words[state];
    this.bar.max = steps || 1;
    this.bar.value = step;
    const names = new Set(progress.lines.flatMap((line) => Object.keys(line)));
    names.delete("step");
    const curves = [...names].map((name) => [name, progress.lines.filter((line) => Number.isFinite(line[name])).map((line) => [line.step, line[name]])]);
    const key = `${step} ${progress.lines.length}`;
    if (this.key !== key) {
      this.key = key;
      this.charts.replaceChildren(...curves.filter(([, points]) => points.length > 1).map(([name, points]) => chart(name, points)));
    }
    this.samples = progress.samples;
    this.history.hidden = !this.samples.length;
    if (this.samples.length) {
      this.slider.max = this.samples.length - 1;
      if (this.isLast) this.slider.value = this.samples.length - 1;
      this.showGrid();
    }
    return words[state];
  }
}

/** Follows the runs that `shown()` names, and calls `stepped(id, progress)` after each look. */
export class Training {
  constructor(shown, stepped) {
    this.shown = shown;
    this.stepped = stepped;
    this.known = new Map();
    this.look();
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.look(); });
  }

  async look() {
    clearTimeout(this.timer);
    let isTraining = false;
    const ids = this.shown();
    const visible = [];
    for (const id of document.hidden ? [] : ids) {
      if (!this.known.has(id)) this.known.set(id, new Followed(id));
      const followed = this.known.get(id);
      try {
        const progress = await get(`/api/runs/${encodeURIComponent(id)}/progress`);
        const words = followed.show(progress);
        isTraining ||= progress.state === "training";
        if (progress.state !== "none") visible.push(followed.root);
        this.stepped(id, progress, words);
      } catch {
        this.stepped(id, null, "The server does not answer");
        if (followed.root.isConnected) visible.push(followed.root);
      }
    }
    if (!document.hidden) {
      const holder = document.getElementById("runs");
      const same = holder.children.length === visible.length && visible.every((root, i) => holder.children[i] === root);
      if (!same) holder.replaceChildren(...visible);
      document.getElementById("training").hidden = !visible.length;
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), isTraining ? 2000 : 8000);
  }
}
