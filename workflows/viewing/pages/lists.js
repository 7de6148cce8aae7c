// Lists: the images that a search finds, and the images that failed; a page at a time.
"use strict";

const PAGE = 24;
const FILTERS = ["search", "class", "attribute", "least"];

// A small picture of an image with some boxes, as a link.
function thumb(store, item, href, note = null, height = 150) {
  const frame = ground(item, height, data.picture(store, item, 320), () => frame.classList.add("bare"));
  if (!data.picture(store, item, 320)) frame.classList.add("bare");
  const colourOf = colours(item.boxes || []);
  for (const box of item.boxes || [])
    frame.append(placed(box.box, item, { class: "box", style: { "--colour": colourOf.get(box.label) } }));
  const best = ranked(item.boxes || [])[0];
  const says =
    note ||
    (item.boxes
      ? `${plural(item.kept, "region", "regions")}${best ? ` · ${titled(best)}` : ""}`
      : item.view === "pixels"
        ? `${item.cells[1]} x ${item.cells[0]} pixels`
        : `${item.cells[0]} x ${item.cells[1]} cells`);
  return make(
    "li",
    { class: "card" },
    make(
      "a",
      { href },
      make("span", { class: "stage" }, frame),
      make("span", { class: "key", text: item.key }),
      make("span", { class: "soft", text: says }),
    ),
  );
}

function pager(found, go) {
  const last = Math.max(0, Math.ceil(found.found / PAGE) - 1);
  const page = Math.floor(found.first / PAGE);
  const to = (name, target, allowed) =>
    make("button", { type: "button", text: name, disabled: !allowed, on: { click: () => go(target * PAGE) } });
  return make(
    "nav",
    { class: "pager", "aria-label": "Pages" },
    to("First", 0, page > 0),
    to("Previous", page - 1, page > 0),
    make("span", { class: "soft", text: `page ${count(page + 1)} of ${count(last + 1)}` }),
    to("Next", page + 1, page < last),
    to("Last", last, page < last),
  );
}

// A field of a filter, told of when typing pauses.
function filter(name, query, key, props, act) {
  let waiting;
  const input = make("input", {
    type: "search",
    autocomplete: "off",
    spellcheck: "false",
    ...props,
    value: query[key] || "",
  });
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => act(key, input.value), 250);
  });
  return labelled(name, input);
}

function suggestions(id, names) {
  return make(
    "datalist",
    { id },
    [...new Set(names)].sort().map((name) => make("option", { value: name })),
  );
}

// Ask again and again until all is found or another page is looked at, and show what there is.
async function follow(ask, show, current) {
  for (let found; current();) {
    try {
      found = await ask();
    } catch (error) {
      if (current()) show(null, error);
      return;
    }
    if (!current()) return;
    show(found, found.error ? new Error(found.error) : null);
    if (found.finished) return;
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}

function imagesPage(app, query) {
  const store = app.stores[query.store || 0];
  const results = make("section", { "aria-label": "Images" });
  const has = (field) => store.fields.includes(field);
  let first = Number(query.first || 0);
  const show = (found, error) => {
    if (error && !found) {
      results.replaceChildren(trouble(error));
      return;
    }
    const at = (number) => app.link("image", { ...query, at: number, first: undefined });
    const filtered = FILTERS.some((name) => query[name]);
    results.replaceChildren(
      ...[
        error ? trouble(error) : found.finished ? null : progress(found, "Searched"),
        make("p", {
          class: "soft",
          role: "status",
          text: filtered
            ? `${plural(found.found, "image", "images")} found${found.finished ? "" : " so far"}`
            : plural(found.found, "image", "images"),
        }),
        make(
          "ul",
          { class: "cards" },
          found.items.map((item, number) => thumb(query.store || 0, item, at(first + number))),
        ),
        found.found > PAGE
          ? pager(found, (to) => {
              first = to;
              change("first", to || "");
              scrollTo(0, 0);
            })
          : null,
        found.finished && !found.found
          ? make("p", {
              class: "note",
              text: filtered ? "No image fits. Clear a filter to see more." : "This store has no records.",
            })
          : null,
      ].filter(Boolean),
    );
  };
  const change = (key, value) => {
    query[key] = value;
    if (key !== "first") {
      first = 0;
      query.first = "";
    }
    app.replace("images", query);
    load();
  };
  const load = () => {
    const current = app.turn();
    follow(() => data.images({ ...query, first, count: PAGE }), show, current);
  };
  load();
  return make(
    "div",
    {},
    make("h1", { class: "unseen", text: `Images of ${store.name}` }),
    make(
      "form",
      { class: "controls", role: "search", on: { submit: (event) => event.preventDefault() } },
      filter("Key", query, "search", { id: "search", placeholder: "part of a key  ( / )" }, change),
      has("class_ids") ? filter("Class", query, "class", { list: "classes", placeholder: "any" }, change) : null,
      has("attribute_ids")
        ? filter("Attribute", query, "attribute", { list: "attributes", placeholder: "any" }, change)
        : null,
      has("class_scores")
        ? slider(
            "Least score",
            { min: 0, max: 1, step: 0.05, value: Number(query.least || 0) },
            (value) => shown(value),
            (() => {
              let waiting;
              return (value) => {
                clearTimeout(waiting);
                waiting = setTimeout(() => change("least", value || ""), 250);
              };
            })(),
          )
        : null,
      suggestions("classes", store.classes),
      suggestions("attributes", store.attributes),
    ),
    store.kept_of
      ? make("p", {
          class: "soft",
          text: `A report of ${plural(store.kept_of[0], "image", "images")} out of ${count(store.kept_of[1])}.`,
        })
      : null,
    results,
  );
}

function errorsPage(app, query) {
  const store = app.stores[query.store || 0];
  const results = make("section", { "aria-label": "Failed images" });
  let first = 0;
  const row = (item) => {
    const mark = () =>
      make("span", { class: "mark", text: "not shown", title: "There is no picture of it that can be shown." });
    const source = data.picture(query.store || 0, { ...item, view: "" }, 320);
    const image = source ? make("img", { src: source, alt: "", loading: "lazy" }) : mark();
    if (source) image.addEventListener("error", () => image.replaceWith(mark()));
    return make(
      "li",
      { class: "failed" },
      make("span", { class: "stage" }, image),
      make(
        "div",
        {},
        make("strong", { class: "key", text: item.key }),
        make("div", {}, make("span", { class: "reason", text: `${item.stage}: ${item.reason}` })),
        make("div", { text: item.message }),
        make("div", { class: "soft key", text: item.uri }),
      ),
    );
  };
  const show = (found, error) =>
    results.replaceChildren(
      ...(error
        ? [trouble(error)]
        : [
            make("p", {
              class: "soft",
              role: "status",
              text: `${plural(found.found, "failed image", "failed images")}`,
            }),
            make("ul", { class: "failures" }, found.items.map(row)),
            found.found > PAGE
              ? pager(found, (to) => {
                  first = to;
                  load();
                  scrollTo(0, 0);
                })
              : null,
          ].filter(Boolean)),
    );
  const load = () => follow(() => data.errors({ ...query, first, count: PAGE }), show, app.turn());
  const change = (key, value) => {
    query[key] = value;
    first = 0;
    app.replace("errors", query);
    load();
  };
  const reasons = Object.entries(store.errors_by_reason).map(([reason, number]) => [
    reason,
    `${reason} (${count(number)})`,
  ]);
  load();
  return make(
    "div",
    {},
    make("h1", { class: "unseen", text: `Failed images of ${store.name}` }),
    make(
      "form",
      { class: "controls", role: "search", on: { submit: (event) => event.preventDefault() } },
      filter("Key or message", query, "search", { id: "search", placeholder: "part of it  ( / )" }, change),
      choice("Reason", [["", `all (${count(store.errors)})`], ...reasons], query.reason || "", (value) =>
        change("reason", value),
      ),
    ),
    results,
  );
}
