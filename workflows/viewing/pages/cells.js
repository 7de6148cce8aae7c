// Features of cells as a map over the picture. A click on a cell shows which others are like it.
"use strict";

const RAMP = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
]; // viridis
const MAPS = [
  ["norm", "Length of each feature"],
  ["pca", "Principal components"],
  ["similar", "Likeness to a cell"],
];

function ramp(part) {
  const place = Math.min(Math.max(part, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[low].map((from, at) => Math.round(from + (RAMP[low + 1][at] - from) * (place - low)));
}

// Draw one map: a pixel of the canvas for each cell.
function paint(canvas, facts) {
  const context = canvas.getContext("2d");
  const picture = context.createImageData(canvas.width, canvas.height);
  const span = facts.high - facts.low || 1;
  for (let cell = 0; cell < canvas.width * canvas.height; cell++) {
    const value = facts.colours ? facts.colours[cell] : facts.values[cell];
    const colours = facts.colours ? value : ramp((value - facts.low) / span);
    picture.data.set([...colours, value === null ? 0 : 255], 4 * cell);
  }
  context.putImageData(picture, 0, 0);
}

const shares = (facts) => facts.shares.map((share) => `${Math.round(100 * share)} %`).join(", ");

// `getMap(kind, row, column)` gives a promise of a map's facts; `kinds` are those that it has.
function cellPanel(record, frame, getMap, { kinds = MAPS.map(([kind]) => kind), cell = null } = {}) {
  const [rows, columns] = record.cells;
  const state = {
    kind: cell ? "similar" : "norm",
    row: cell ? cell[0] : Math.floor(rows / 2),
    column: cell ? cell[1] : Math.floor(columns / 2),
    facts: null,
  };
  const canvas = placed(record.frame, record, { class: "cells" }).appendChild(
    make("canvas", { width: columns, height: rows, tabindex: 0, role: "img" }),
  );
  const layer = canvas.parentElement;
  const cursor = make("div", { class: "cursor", "aria-hidden": "true" });
  layer.append(cursor);
  frame.append(layer);
  const told = make("p", { class: "told", role: "status" });
  const legend = make("div", { class: "legend" });
  const mark = (row, column) => {
    Object.assign(cursor.style, {
      left: `${(100 * column) / columns}%`,
      top: `${(100 * row) / rows}%`,
      width: `${100 / columns}%`,
      height: `${100 / rows}%`,
    });
    const value = state.facts?.values ? state.facts.values[row * columns + column] : null;
    told.textContent = `row ${row}, column ${column}${value === null ? "" : `: ${value}`}`;
  };
  let asked = 0;
  const load = async () => {
    const mine = ++asked;
    try {
      const facts = await getMap(state.kind, state.row, state.column);
      if (mine !== asked) return;
      state.facts = facts;
      paint(canvas, facts);
      const what = MAPS.find(([kind]) => kind === state.kind)[1];
      canvas.setAttribute("aria-label", `${what}, ${rows} by ${columns} cells; arrow keys move, Enter shows likeness`);
      legend.replaceChildren(
        ...(facts.colours
          ? [
              make("span", {
                text: `red, green and blue are the first three components: ${shares(facts)} of the variance`,
              }),
            ]
          : [
              make("span", { text: `${facts.low}` }),
              make("span", { class: "ramp" }),
              make("span", { text: `${facts.high}` }),
            ]),
      );
      mark(state.row, state.column);
    } catch (error) {
      told.textContent = error.message;
    }
  };
  const place = (event) => {
    const area = canvas.getBoundingClientRect();
    const part = (at, from, size, cells) => Math.min(cells - 1, Math.max(0, Math.floor(((at - from) / size) * cells)));
    return [part(event.clientY, area.top, area.height, rows), part(event.clientX, area.left, area.width, columns)];
  };
  const select = choice(
    "Map",
    MAPS.filter(([kind]) => kinds.includes(kind)),
    state.kind,
    (kind) => {
      state.kind = kind;
      load();
    },
  );
  const liken = (row, column) => {
    Object.assign(state, { row, column });
    if (kinds.includes("similar")) {
      state.kind = "similar";
      select.querySelector("select").value = "similar";
      load();
    } else mark(row, column);
  };
  canvas.addEventListener("pointermove", (event) => mark(...place(event)));
  canvas.addEventListener("pointerleave", () => mark(state.row, state.column));
  canvas.addEventListener("click", (event) => liken(...place(event)));
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  canvas.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (move) {
      state.row = Math.min(rows - 1, Math.max(0, state.row + move[0]));
      state.column = Math.min(columns - 1, Math.max(0, state.column + move[1]));
      mark(state.row, state.column);
    } else if (event.key === "Enter") liken(state.row, state.column);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  layer.style.opacity = 0.75;
  load();
  return make(
    "div",
    { class: "side" },
    make(
      "div",
      { class: "controls" },
      select,
      slider(
        "Strength",
        { min: 0, max: 100, step: 5, value: 75 },
        (value) => `${value} %`,
        (value) => {
          layer.style.opacity = value / 100;
        },
      ),
    ),
    legend,
    told,
    kinds.includes("similar")
      ? make("p", {
          class: "soft",
          text: "Click a cell, or go to it by arrow keys and press Enter, to see which cells are like it (cosine).",
        })
      : make("p", {
          class: "soft",
          text: "This image has too many cells to keep their likeness in one file; `triptych view` shows it.",
        }),
  );
}
