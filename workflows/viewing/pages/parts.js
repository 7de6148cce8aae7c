// Pieces that every part of the page uses. What comes from a store is only ever set as text, never as markup.
"use strict";

// An element. `props`: attributes by name, and besides `text`, `on` (listeners by event) and `style` (by name).
function make(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
    else if (name === "style") for (const [key, each] of Object.entries(value)) made.style.setProperty(key, each);
    else if (name === "value") made.value = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(2).filter((each) => each !== null && each !== undefined && each !== false));
  return made;
}

const count = (number) => Number(number).toLocaleString("en");
const shown = (number, digits = 2) => (number === null || number === undefined ? "–" : number.toFixed(digits));
const plural = (number, one, more) => `${count(number)} ${number === 1 ? one : more}`;

function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; number >= 1024 && unit < units.length - 1; unit++) number /= 1024;
  return `${number.toFixed(unit ? 1 : 0)} ${units[unit]}`;
}

let controls = 0;

// A labelled control: a <label> above, and what it says of its value beside the name.
function labelled(name, control, output = null) {
  control.id = control.id || `control-${controls++}`;
  const head = make("span", { class: "name" }, make("label", { for: control.id, text: name }), output);
  return make("div", { class: "field" }, head, control);
}

// A slider; `tell` turns its value into what is shown beside its name.
function slider(name, { min, max, step, value }, tell, act) {
  const output = make("output", { text: tell(value) });
  const input = make("input", { type: "range", min, max, step, "aria-valuetext": tell(value) });
  input.value = value;
  input.addEventListener("input", () => {
    output.textContent = tell(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
    act(Number(input.value));
  });
  return labelled(name, input, output);
}

function choice(name, options, value, act) {
  const select = make(
    "select",
    {},
    options.map(([key, text]) => make("option", { value: key, text })),
  );
  select.value = value;
  select.addEventListener("change", () => act(select.value));
  return labelled(name, select);
}

// A ground in the shape of an image, for a picture and what is drawn over it. `height`: at most, in pixels.
function ground(item, height, source, onFail) {
  const frame = make("div", {
    class: "frame",
    style: {
      "aspect-ratio": `${item.width} / ${item.height}`,
      width: `min(100%, ${Math.round((height * item.width) / item.height)}px)`,
    },
  });
  if (source) {
    const image = make("img", { src: source, alt: "", loading: "lazy", draggable: "false" });
    image.addEventListener("error", () => {
      image.remove();
      if (onFail) onFail(source);
    });
    frame.append(image);
  }
  return frame;
}

// A box over a ground, placed by parts of it.
function placed(box, item, props) {
  const [x1, y1, x2, y2] = box.map((side) => side ?? 0);
  return make("div", {
    ...props,
    style: {
      left: `${(100 * x1) / item.width}%`,
      top: `${(100 * y1) / item.height}%`,
      width: `${(100 * Math.max(0, x2 - x1)) / item.width}%`,
      height: `${(100 * Math.max(0, y2 - y1)) / item.height}%`,
      ...(props.style || {}),
    },
  });
}

function progress(facts, what) {
  const text = `${what} ${count(facts.done)} of ${count(facts.of)} images …`;
  return make(
    "p",
    { class: "progress", role: "status" },
    make("progress", { max: facts.of || 1, value: facts.done, "aria-label": what }),
    ` ${text}`,
  );
}

// What went wrong, as one line.
const trouble = (error) => make("p", { class: "note", role: "alert", text: error.message || String(error) });

// Light or dark: as the system has it, until the button is pressed.
function themeButton() {
  const root = document.documentElement;
  const remembered = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null;
    }
  };
  const dark = () =>
    (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  if (remembered()) root.dataset.theme = remembered();
  const button = make("button", { type: "button", id: "theme" });
  const tell = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.title = `Switch to ${button.textContent.toLowerCase()} colours (t)`;
  };
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch {
      /* a file may have no storage */
    }
    tell();
  });
  tell();
  return button;
}
