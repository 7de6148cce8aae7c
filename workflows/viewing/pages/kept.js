// What the page shows, kept in the file itself: a report.
"use strict";

const kept = JSON.parse(document.getElementById("data").textContent);
const records = kept.stores.map((one) => new Map(one.images.map((image) => [image.key, image])));
const pictured = Object.keys(kept.pictures).length > 0;

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
  stores: async () => ({ stores: kept.stores.map((one) => one.store), images: { named: pictured, finished: true } }),
  async images(query) {
    const text = (query.search || "").toLowerCase();
    const asksBoxes = query.class || query.attribute || Number(query.least || 0) > 0;
    const found = kept.stores[query.store || 0].images.filter(
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
    const found = records[store].get(key);
    if (!found) throw new Error(`This report does not hold ${key}.`);
    return found;
  },
  async map(store, key, kind, row, column) {
    const image = records[store].get(key);
    return kind === "similar" ? cosines(image, row, column) : image.maps[kind];
  },
  async errors(query) {
    const text = (query.search || "").toLowerCase();
    const found = kept.stores[query.store || 0].errors.filter(
      (row) =>
        (!query.reason || row.reason === query.reason) && `${row.key} ${row.message}`.toLowerCase().includes(text),
    );
    const first = Number(query.first || 0);
    return { items: found.slice(first, first + Number(query.count || 24)), found: found.length, first, finished: true };
  },
  picture: (store, item) => records[store].get(item.key)?.picture || kept.pictures[item.key] || null,
  why: async () => "the picture cannot be shown",
};
