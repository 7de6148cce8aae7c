// What the page shows, kept in the file itself: a report.
"use strict";

const kept = JSON.parse(document.getElementById("data").textContent);
const records = new Map(kept.images.map((image) => [image.key, image]));

// The bytes of base64 as whole numbers from -127 to 127.
function signed(text) {
  return Int8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function fits(box, query) {
  const named = (name, part) => !part || (name || "").toLowerCase().includes(part.toLowerCase());
  return (
    named(box.label, query.class) &&
    named(box.attribute, query.attribute) &&
    (box.score ?? 1) >= Number(query.least || 0)
  );
}

function cosines(image, row, column) {
  const [rows, columns] = image.cells;
  const cells = rows * columns;
  const at = (row * columns + column) * cells;
  image.unpacked = image.unpacked || signed(image.likeness);
  const values = Array.from(image.unpacked.slice(at, at + cells), (value) => Number((value / 127).toFixed(2)));
  return { kind: "similar", values, low: Math.min(...values), high: Math.max(...values) };
}

const data = {
  live: false,
  stores: async () => ({ stores: [kept.store], images: { named: kept.pictured, finished: true } }),
  async images(query) {
    const text = (query.search || "").toLowerCase();
    const asksBoxes = query.class || query.attribute || Number(query.least || 0) > 0;
    const found = kept.images.filter(
      (image) =>
        image.key.toLowerCase().includes(text) && (!asksBoxes || (image.boxes || []).some((box) => fits(box, query))),
    );
    const first = Number(query.first || 0);
    const items = found.slice(first, first + Number(query.count || 24));
    const shownOf = (image) =>
      image.boxes ? { ...image, boxes: image.boxes.filter((box) => fits(box, query)).slice(0, 12) } : image;
    return { items: items.map(shownOf), found: found.length, first, finished: true };
  },
  async record(store, key) {
    if (!records.has(key)) throw new Error(`This report does not hold ${key}.`);
    return records.get(key);
  },
  async map(store, key, kind, row, column) {
    const image = records.get(key);
    return kind === "similar" ? cosines(image, row, column) : image.maps[kind];
  },
  async errors(query) {
    const text = (query.search || "").toLowerCase();
    const found = kept.errors.filter(
      (row) =>
        (!query.reason || row.reason === query.reason) && `${row.key} ${row.message}`.toLowerCase().includes(text),
    );
    const first = Number(query.first || 0);
    return { items: found.slice(first, first + Number(query.count || 24)), found: found.length, first, finished: true };
  },
  picture: (store, item) => records.get(item.key)?.picture || null,
  why: async () => "the picture cannot be shown",
};
