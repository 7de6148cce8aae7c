// What the page shows, from the server.
"use strict";

async function ask(what, query = {}) {
  const params = new URLSearchParams(
    Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== ""),
  );
  let answer;
  try {
    answer = await fetch(`/api/${what}?${params}`);
  } catch {
    throw new Error("The server does not answer: is `triptych view` still running?");
  }
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

let named = false; // whether --images was given

const data = {
  live: true,
  async stores() {
    const found = await ask("stores");
    named = Boolean(found.images.named);
    return found;
  },
  images: (query) => ask("images", query),
  record: (store, key) => ask("record", { store, key }),
  map: (store, key, kind, row, column) => ask("map", { store, key, kind, row, column }),
  near: (store, key, row, images) => ask("near", { store, key, row, images }),
  errors: (query) => ask("errors", query),
  diff: (first, second) => ask("diff", { first, second }),
  recordDiff: (first, second, key) => ask("diff/record", { first, second, key }),
  // Where the picture of an image is, or null where there is none.
  picture(store, item, side) {
    if (item.view === "pixels") return `/api/pixels?${new URLSearchParams({ store, key: item.key })}`;
    return named ? `/api/picture?${new URLSearchParams({ key: item.key, side })}` : null;
  },
  // Why a picture did not come.
  async why(source) {
    try {
      return (await (await fetch(source)).json()).error;
    } catch {
      return "the picture cannot be shown";
    }
  },
};
