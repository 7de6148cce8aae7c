// An image with its regions: boxes over the picture and rows of a table, which light up together.
"use strict";

const SHOWN = 36; // boxes that are shown at first

// A colour for each name in an image, far apart on the wheel; equal for images that show the same things.
function colours(boxes) {
  const names = [...new Set(boxes.map((box) => box.label))].sort();
  return new Map(names.map((name, at) => [name, `hsl(${Math.round(40 + at * 137.508) % 360} 90% 58%)`]));
}
const title = (box) => [box.attribute, box.label].filter(Boolean).join(" ") || "region";
const titled = (box) => `${title(box)}${box.score === null ? "" : ` ${shown(box.score)}`}`;

// Rows in the order of their scores; where there are none, as they are stored.
function ranked(boxes) {
  const rows = boxes.map((box, row) => ({ ...box, row }));
  return rows.sort((one, other) => (other.score ?? 0) - (one.score ?? 0) || one.row - other.row);
}

// `onChoose(row)` is told of the region that was clicked; `chosen` is the row of one that is from the beginning.
function boxPanel(record, frame, { onChoose, chosen = null } = {}) {
  const boxes = ranked(record.boxes);
  const colourOf = colours(boxes);
  const scored = boxes.some((box) => box.score !== null);
  const attributed = boxes.some((box) => box.attribute);
  const state = { least: 0, top: Math.min(SHOWN, boxes.length) };
  if (chosen !== null) state.top = Math.max(state.top, boxes.findIndex((box) => box.row === chosen) + 1);
  const parts = new Map();
  const light = (row, on) => parts.get(row)?.forEach((part) => part.classList.toggle("lit", on));
  const choose = (row) => {
    for (const [each, both] of parts) both.forEach((part) => part.classList.toggle("chosen", each === row));
    if (onChoose) onChoose(row);
  };
  const area = ({ box: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
  const layers = [...boxes].sort((one, other) => area(other) - area(one)).map((box) => box.row); // small ones on top
  for (const box of boxes) {
    const on = {
      pointerenter: () => light(box.row, true),
      pointerleave: () => light(box.row, false),
      click: () => choose(box.row),
      focusin: () => light(box.row, true),
      focusout: () => light(box.row, false),
    };
    const mark = placed(box.box, record, {
      class: "box",
      title: titled(box),
      on,
      "aria-hidden": "true",
      style: { "--colour": colourOf.get(box.label), "z-index": 1 + layers.indexOf(box.row) },
    });
    mark.append(make("span", { class: `tag${box.box[1] < record.height * 0.06 ? " below" : ""}`, text: titled(box) }));
    const name = make(onChoose ? "button" : "span", {
      ...(onChoose ? { type: "button", class: "plain" } : { tabindex: 0 }),
      text: box.label || `region ${box.row}`,
    });
    const row = make(
      "tr",
      { on: { ...on, click: () => choose(box.row) } },
      make("td", {}, make("span", { class: "swatch", style: { background: colourOf.get(box.label) } })),
      make("th", { scope: "row" }, name),
      scored ? make("td", { text: shown(box.score) }) : null,
      attributed
        ? [make("td", { text: box.attribute }), make("td", { text: box.attribute ? shown(box.attribute_score) : "" })]
        : null,
    );
    parts.set(box.row, [mark, row]);
    frame.append(mark);
  }
  const told = make("p", { class: "soft", role: "status" });
  const update = () => {
    let number = 0;
    for (const [rank, box] of boxes.entries()) {
      const visible = rank < state.top && (box.score === null || box.score >= state.least);
      number += visible;
      parts.get(box.row).forEach((part) => {
        part.hidden = !visible;
      });
    }
    told.textContent = `${count(number)} of ${plural(boxes.length, "region", "regions")} shown`;
  };
  const names = make("input", {
    type: "checkbox",
    id: `control-${controls++}`,
    on: {
      change: () => frame.classList.toggle("named", names.checked),
    },
  });
  const side = make(
    "div",
    { class: "side" },
    make(
      "div",
      { class: "controls" },
      scored
        ? slider(
            "Least score",
            { min: 0, max: 1, step: 0.01, value: 0 },
            (value) => shown(value),
            (value) => {
              state.least = value;
              update();
            },
          )
        : null,
      boxes.length > 1 &&
        slider(
          "Top",
          { min: 1, max: Math.max(1, boxes.length), step: 1, value: state.top },
          (value) => `${value} of ${boxes.length}`,
          (value) => {
            state.top = value;
            update();
          },
        ),
      make("div", { class: "field check" }, names, make("label", { for: names.id, text: "Names on the picture" })),
    ),
    told,
    make(
      "div",
      { class: "rows" },
      make(
        "table",
        {},
        make(
          "thead",
          {},
          make(
            "tr",
            {},
            make("td"),
            ["Class", scored && "Score", attributed && "Attribute", attributed && "Score"]
              .filter(Boolean)
              .map((text) => make("th", { scope: "col", text })),
          ),
        ),
        make(
          "tbody",
          {},
          boxes.map((box) => parts.get(box.row)[1]),
        ),
      ),
    ),
  );
  if (chosen !== null) parts.get(chosen)?.forEach((part) => part.classList.add("chosen"));
  update();
  return side;
}
