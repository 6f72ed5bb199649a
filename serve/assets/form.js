// Form controls for the settings of a plugin, built from its JSON Schema.

let count = 0;

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "text") made.textContent = value;
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** `clip_x` as "Clip x". */
export function title(name) {
  const words = name.replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
}

function hint(text) {
  return text ? element("small", { text: text.split("\n\n")[0].replaceAll("`", "") }) : null;
}

/** A number as a slider and a box. The box accepts numbers beyond the slider, for which the server may have an answer. */
export function slider({ label, value, min, max, step, help, oninput }) {
  const id = `s${++count}`;
  const range = element("input", { type: "range", id, min, max, step });
  const box = element("input", { type: "number", step: "any", "aria-label": `${label}, as a number`, inputmode: "decimal" });
  const set = (to) => {
    range.value = to;
    box.value = Number(Number(to).toPrecision(4));
  };
  set(value);
  range.addEventListener("input", () => { set(range.value); oninput(Number(range.value)); });
  box.addEventListener("input", () => {
    if (box.value === "" || !Number.isFinite(Number(box.value))) return;
    range.value = box.value;
    oninput(Number(box.value));
  });
  const field = element("div", { class: "field slider" }, element("label", { for: id, text: label }), element("div", { class: "pair" }, range, box), hint(help));
  return { field, set, range, box };
}

export function select({ label, value, options, help, onchange }) {
  const id = `s${++count}`;
  const made = element("select", { id, onchange: () => onchange(made.value) });
  for (const option of options) {
    made.append(element("option", { value: option.value, text: option.label ?? option.value, selected: option.value === value }));
  }
  return { field: element("div", { class: "field" }, element("label", { for: id, text: label }), made, hint(help)), select: made };
}

/** Follows `$ref` and unwraps `null` alternatives. Returns the schema and whether null is allowed. */
function resolve(schema, root) {
  let optional = false;
  let description = schema.description;
  for (let depth = 0; depth < 8; depth++) {
    if (schema.$ref) {
      schema = root.$defs?.[schema.$ref.replace("#/$defs/", "")] ?? {};
    } else if (schema.anyOf?.some((one) => one.type === "null")) {
      optional = true;
      schema = schema.anyOf.find((one) => one.type !== "null") ?? {};
    } else if (Array.isArray(schema.type) && schema.type.includes("null")) {
      optional = true;
      schema = { ...schema, type: schema.type.find((type) => type !== "null") };
    } else {
      break;
    }
    description ??= schema.description;
  }
  return { ...schema, description, optional };
}

function constants(schema) {
  if (schema.enum) return schema.enum.map((value) => ({ value }));
  if (schema.oneOf?.every((one) => one.const !== undefined || one.enum)) {
    return schema.oneOf.flatMap((one) => (one.enum ?? [one.const]).map((value) => ({ value })));
  }
  return null;
}

/** The alternatives of an object that `type` tells apart, such as a schedule. */
function alternatives(schema) {
  const tagged = schema.oneOf?.filter((one) => one.properties?.type?.const);
  return tagged?.length && tagged.length === schema.oneOf.length ? tagged : null;
}

function start(schema, root) {
  const found = resolve(schema, root);
  if (found.default !== undefined) return found.default;
  const { minimum = 0, maximum = 1 } = found;
  return found.type === "integer" ? Math.max(1, minimum) : Math.min(maximum, Math.max(minimum, 0.5));
}

/** Returns the control of one setting. `set` receives its new value. */
export function control(name, schema, root, value, set) {
  const found = resolve(schema, root);
  const label = title(name);
  const help = found.description;
  const options = constants(found);
  const tagged = alternatives(found);
  const none = found.optional ? [{ value: "", label: "none" }] : [];
  if (options) {
    return select({ label, help, value: value ?? "", options: [...none, ...options], onchange: (to) => set(to === "" ? null : to) }).field;
  }
  if (tagged) {
    const holder = element("div");
    const inner = element("div", { class: "inner" });
    const fill = (current) => {
      inner.replaceChildren();
      const chosen = tagged.find((one) => one.properties.type.const === current?.type);
      for (const [key, field] of Object.entries(chosen?.properties ?? {})) {
        if (key === "type") continue;
        inner.append(control(key, field, root, current[key], (to) => { current = { ...current, [key]: to }; set(current); }));
      }
    };
    const pick = select({
      label,
      help,
      value: value?.type ?? "",
      options: [...none, ...tagged.map((one) => ({ value: one.properties.type.const, label: title(one.properties.type.const) }))],
      onchange: (to) => {
        const chosen = tagged.find((one) => one.properties.type.const === to);
        let next = null;
        if (chosen) {
          next = { type: to };
          for (const [key, field] of Object.entries(chosen.properties)) if (key !== "type") next[key] = start(field, root);
          if (to === "interval") Object.assign(next, { from: 0.2, to: 0.8 });
        }
        fill(next);
        set(next);
      },
    });
    fill(value);
    holder.append(pick.field, inner);
    return holder;
  }
  if (found.type === "boolean") {
    const id = `s${++count}`;
    const box = element("input", { type: "checkbox", id, checked: value === true, onchange: () => set(box.checked) });
    return element("div", { class: "field check" }, box, element("label", { for: id, text: label }), hint(help));
  }
  const { minimum: min, maximum: max } = found;
  const isNumber = found.type === "number" || found.type === "integer";
  if (isNumber && !found.optional && min !== undefined && max !== undefined && max - min <= 100) {
    return slider({ label, help, value: value ?? min, min, max, step: found.type === "integer" ? 1 : (max - min) / 100, oninput: set }).field;
  }
  const id = `s${++count}`;
  const text = value === null || value === undefined ? "" : isNumber ? String(value) : JSON.stringify(value);
  const box = element("input", { id, type: isNumber ? "number" : "text", step: "any", value: text, placeholder: found.optional ? "none" : "" });
  box.addEventListener("change", () => {
    if (box.value === "") return found.optional ? set(null) : undefined;
    if (isNumber) return set(Number(box.value));
    try {
      set(JSON.parse(box.value));
      box.setCustomValidity("");
    } catch {
      box.setCustomValidity("This setting is JSON, such as [1, 2]");
      box.reportValidity();
    }
  });
  return element("div", { class: "field" }, element("label", { for: id, text: label }), box, hint(help));
}
