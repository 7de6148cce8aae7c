// Two stores beside each other, and what a store is.
"use strict";

const LISTS = [
  ["only_in_first", "only in the first"],
  ["only_in_second", "only in the second"],
  ["resized", "of another image size"],
  ["reshaped", "with other boxes or shapes"],
];
const precise = (value) => (typeof value === "number" ? Number(value.toPrecision(4)).toString() : String(value));

// `several`: of many records, so that it is told how many.
function differenceTable(fields, several) {
  const rows = Object.entries(fields).map(([name, each]) => {
    const cells = [
      ["Largest", precise(each.largest)],
      ["Mean", precise(each.mean)],
    ];
    if (several) cells.unshift(["Records", count(each.records)], ["Identical", count(each.equal)]);
    cells.push(["Lowest cosine", ["features", "whole_image"].includes(name) ? each.lowest_cosine.toFixed(6) : ""]);
    return [name, cells];
  });
  const heads = ["Field", ...rows[0][1].map(([head]) => head)];
  return make(
    "table",
    { class: "numbers" },
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        heads.map((text) => make("th", { scope: "col", text })),
      ),
    ),
    make(
      "tbody",
      {},
      rows.map(([name, cells]) =>
        make(
          "tr",
          {},
          make("th", { scope: "row", text: name }),
          cells.map(([head, text]) => make("td", { text, "data-head": text && head })),
        ),
      ),
    ),
  );
}

const matches = ({ boxes: [matched, first, second] }) =>
  first
    ? make("p", {
        class: "soft",
        text: `${count(matched)} boxes are in both, by IoU of at least 0.5, of ${count(first)} and ${count(second)}`,
      })
    : null;

// How far one image is apart in two stores.
function recordDifference(found) {
  const words = found.same
    ? "Identical to the last bit."
    : found.resized.length
      ? "The image has two sizes."
      : found.reshaped.length
        ? "Other boxes, or boxes in another order."
        : "The same boxes or cells, with other values.";
  return [
    make("p", { class: found.same ? "good" : "", text: words }),
    found.reshaped.length ? matches(found) : null,
    Object.keys(found.fields).length ? differenceTable(found.fields, false) : null,
  ].filter(Boolean);
}

// How far all images are apart; `open(key)` leads to one.
function differenceParts(found, open) {
  const list = ([name, words]) =>
    found.counts[name]
      ? make(
          "details",
          {},
          make("summary", { text: `${plural(found.counts[name], "image", "images")} ${words}` }),
          make(
            "ul",
            { class: "keys" },
            found[name].map((key) => make("li", {}, make("a", { href: open(key), class: "key", text: key }))),
          ),
          found.counts[name] > found[name].length
            ? make("p", { class: "soft", text: `the first ${count(found[name].length)}` })
            : null,
        )
      : null;
  return [
    make("p", {
      class: found.same ? "good" : "",
      text: `${count(found.identical)} of ${count(found.records)} records in both are identical to the bit`,
    }),
    found.spec.length
      ? make(
          "details",
          {},
          make("summary", { text: `${plural(found.spec.length, "setting differs", "settings differ")}` }),
          make(
            "ul",
            { class: "keys" },
            found.spec.map((line) => make("li", { text: line })),
          ),
        )
      : null,
    ...LISTS.map(list),
    found.counts.reshaped ? matches(found) : null,
    Object.keys(found.fields).length ? differenceTable(found.fields, true) : null,
  ].filter(Boolean);
}

function comparePage(app, query) {
  const [first, second] = [Number(query.first || 0), Number(query.second || 1)];
  const names = app.stores.map((store, at) => [String(at), store.name]);
  const pick = (name, key, value) =>
    choice(name, names, String(value), (chosen) => app.go("compare", { ...query, [key]: chosen }));
  const pair = make("section", { class: "pair", "aria-label": "One image in both stores" });
  const apart = make("div", {});
  const whole = make("div", {});
  const heading = make("h1", { class: "key" });
  const current = app.turn();
  const open = (key) => app.link("compare", { first, second, key });
  const one = async (store, key) => {
    const section = make("section", {}, make("h3", {}, app.stores[store].name, " ", randomMark(app.stores[store])));
    try {
      const record = await data.record(store, key);
      section.append(app.recordView(store, record, 320));
    } catch (error) {
      section.append(trouble(error));
    }
    return section;
  };
  const show = async (key) => {
    const both = await Promise.all([one(first, key), one(second, key)]);
    if (!current()) return;
    heading.textContent = key;
    pair.replaceChildren(...both);
    try {
      const found = await data.recordDiff(first, second, key);
      apart.replaceChildren(make("h2", { text: "How far apart" }), ...recordDifference(found));
    } catch (error) {
      apart.replaceChildren(make("p", { class: "soft", text: error.message }));
    }
  };
  const find = async () => {
    if (query.key) {
      show(query.key);
      return;
    }
    const found = await data.images({ store: first, search: query.search, first: Number(query.at || 0), count: 1 });
    if (!current()) return;
    app.step = (by) => {
      const at = Number(query.at || 0) + by;
      if (at >= 0 && at < found.found) app.go("compare", { ...query, at });
    };
    if (found.items.length) show(found.items[0].key);
    else
      pair.replaceChildren(
        make("p", { class: "note", text: found.finished ? "No image has that in its key." : "Still searching …" }),
      );
  };
  const start = () =>
    follow(
      () => data.diff(first, second),
      (found, error) => {
        if (error) whole.replaceChildren(trouble(error));
        else
          whole.replaceChildren(
            ...(found.finished ? differenceParts(found.difference, open) : [progress(found, "Compared")]),
          );
      },
      current,
    );
  const button = make("button", {
    type: "button",
    text: `Compare all ${count(app.stores[first].records)} records`,
    on: {
      click: () => {
        button.remove();
        start();
      },
    },
  });
  find().catch((error) => pair.replaceChildren(trouble(error)));
  return make(
    "div",
    {},
    make(
      "form",
      { class: "controls", on: { submit: (event) => event.preventDefault() } },
      pick("First store", "first", first),
      pick("Second store", "second", second),
      filter("Key", query, "search", { id: "search", placeholder: "part of a key  ( / )" }, (key, value) =>
        app.go("compare", { first, second, search: value }),
      ),
      query.key ? null : make("div", { class: "steps" }, app.stepButton("Previous", -1), app.stepButton("Next", 1)),
    ),
    heading,
    pair,
    apart,
    make("h2", { text: "All images" }),
    make("p", { class: "soft", text: "What `triptych diff` prints: every record of both stores is read." }),
    button,
    whole,
  );
}

function storePage(app, query) {
  const store = app.stores[query.store || 0];
  const model = store.spec.model;
  const run = store.run || {};
  const facts = [
    ["View", `${store.view}${store.complete ? "" : ", not complete"}`],
    [
      "Records",
      `${count(store.records)}, ${count(store.rows)} rows of ${store.spec.layout.dim} ${store.spec.layout.dtype}`,
    ],
    [
      "Failed",
      Object.entries(store.errors_by_reason)
        .map(([reason, number]) => `${count(number)} ${reason}`)
        .join(", ") || "none",
    ],
    ["Shards", `${count(store.shards)}, ${bytes(store.bytes)}, ${store.formats.join(" and ") || "none yet"}`],
    [
      "Model",
      `${model.name || "not known"}${model.width_divisor > 1 ? `, all widths divided by ${model.width_divisor}` : ""}`,
    ],
    ["Weights", weightsOf(model.weights)],
    [
      "Source",
      run.source ? `${count(run.images)} of ${count(run.source_images)} images of ${run.source}` : "not known",
    ],
    [
      "Last run",
      run.images_per_second
        ? `${run.images_per_second.toFixed(2)} images/s, ${run.engine} engine, ${run.hardware}, ${run.finished_at}`
        : "not known",
    ],
    ["Spec", store.spec_id],
  ];
  return make(
    "div",
    {},
    make("h1", { class: "unseen", text: `About ${store.name}` }),
    randomMark(store)
      ? make("p", {
          class: "note",
          text: "These features come from random weights: they show that every part works, and mean nothing.",
        })
      : null,
    make(
      "dl",
      { class: "facts" },
      facts.flatMap(([name, text]) => [make("dt", { text: name }), make("dd", { class: "key", text })]),
    ),
    make(
      "details",
      {},
      make("summary", { text: "The whole spec" }),
      make("pre", { text: JSON.stringify(store.spec, null, 2) }),
    ),
  );
}

// What a spec says of weights, of whatever form an extractor of one's own gives it.
function weightsOf(weights) {
  const told = weights?.origin || weights?.sha256 ? [weights.origin, weights.sha256?.slice(0, 16)] : [weights];
  return told.filter((each) => typeof each === "string" && each).join(" ") || "not known";
}
