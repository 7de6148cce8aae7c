// The page as a whole: which part is shown, the header, one image, and the keyboard.
"use strict";

const KEYS = [
  ["/", "search"],
  ["← →", "the image before, the next one"],
  ["Esc", "back to the list"],
  ["t", "light or dark"],
  ["?", "these keys"],
  ["Tab", "from control to control; a box lights up with its row"],
  ["arrows, Enter", "on a map: move, and show likeness"],
];
const PARTS = { images: imagesPage, image: imagePage, errors: errorsPage, compare: comparePage, store: storePage };
const TABS = [
  ["images", "Images"],
  ["errors", "Errors"],
  ["store", "Store"],
  ["compare", "Compare"],
];

const app = {
  stores: [],
  step: null, // goes on by so many images, where that has a meaning
  turns: 0,
  // A test for whether what began now is still looked at.
  turn() {
    const mine = ++app.turns;
    return () => mine === app.turns;
  },
  link(part, query) {
    const usual = (name, value) => name !== "row" && Number(value) === 0; // also what is empty
    const kept = Object.entries(query).filter(
      ([name, value]) => value !== undefined && value !== null && !usual(name, value),
    );
    return `#${part}${kept.length ? `?${new URLSearchParams(kept)}` : ""}`;
  },
  go(part, query) {
    location.hash = app.link(part, query);
  },
  replace(part, query) {
    history.replaceState(null, "", app.link(part, query));
  },
  where() {
    const [part, query] = location.hash.slice(1).split("?");
    return [PARTS[part] ? part : "images", Object.fromEntries(new URLSearchParams(query || ""))];
  },
  stepButton(text, by, allowed = true) {
    return make("button", { type: "button", text, disabled: !allowed, on: { click: () => app.step && app.step(by) } });
  },
  recordView,
};

// An image large, with what its record holds.
function recordView(store, record, height, options = {}) {
  const notes = make("div", {});
  const source = data.picture(store, record, 1280);
  const frame = ground(record, height, source, async () => {
    frame.classList.add("bare");
    notes.append(make("p", { class: "soft", text: `No picture: ${await data.why(source)}` }));
  });
  frame.classList.add("large");
  if (!source) {
    frame.classList.add("bare");
    if (data.live)
      notes.append(make("p", { class: "soft", text: "Start the command with --images to see the pictures." }));
  }
  frame.querySelector("img")?.addEventListener("load", ({ target }) => {
    const shape = target.naturalWidth / target.naturalHeight / (record.width / record.height);
    if (record.sized && Math.abs(shape - 1) > 0.02)
      notes.append(
        make("p", {
          class: "note",
          text: "This picture has another shape than the image of the record: are these the right images?",
        }),
      );
  });
  const size = record.sized ? `${record.width} x ${record.height} pixels` : "the record does not tell the image's size";
  let side;
  if (record.boxes) side = boxPanel(record, frame, options);
  else if (record.view === "pixels")
    side = make(
      "div",
      { class: "side" },
      make("p", {
        text: `Stored as ${record.cells[1]} x ${record.cells[0]} pixels, which is what networks are trained on.`,
      }),
    );
  else
    side = cellPanel(record, frame, (kind, row, column) => data.map(store, record.key, kind, row, column), {
      kinds: record.kinds,
    });
  return make(
    "div",
    { class: "record" },
    make(
      "div",
      { class: "stage" },
      frame,
      make("p", {
        class: "soft",
        text:
          record.boxes || record.view === "pixels" ? size : `${size}, ${record.cells[0]} x ${record.cells[1]} cells`,
      }),
      notes,
    ),
    side,
  );
}

// The regions nearest to one, as far as they are found.
function nearPart(store, record, row, current) {
  const part = make("section", { "aria-label": "Nearest regions" });
  const start = (images) =>
    follow(
      () => data.near(store, record.key, row, images),
      (found, error) => {
        if (error) {
          part.replaceChildren(trouble(error));
          return;
        }
        const among =
          found.of < found.all
            ? `the first ${count(found.of)} of ${count(found.all)} images`
            : `all ${count(found.all)} images`;
        part.replaceChildren(
          ...[
            make("h2", { text: `Regions most like this ${record.boxes[row].label || "one"}` }),
            found.finished
              ? make("p", {
                  class: "soft",
                  role: "status",
                  text: `among ${among}, by the cosine of their features; ${found.seconds.toFixed(1)} s`,
                })
              : progress(found, "Looked through"),
            found.finished && found.of < found.all
              ? make("button", {
                  type: "button",
                  text: `Look through all ${count(found.all)}`,
                  on: { click: () => start(found.all) },
                })
              : null,
            make(
              "ul",
              { class: "cards" },
              found.near.map((near) =>
                thumb(
                  store,
                  near,
                  app.link("image", { store, key: near.key, row: near.row, at: undefined }),
                  `${near.cosine.toFixed(3)} · ${titled(near.boxes[0])}`,
                  110,
                ),
              ),
            ),
          ].filter(Boolean),
        );
      },
      current,
    );
  start();
  return part;
}

async function imageOf(query) {
  const asked = Object.fromEntries(FILTERS.map((name) => [name, query[name]]));
  if (query.key) return [await data.record(query.store || 0, query.key), null];
  for (;;) {
    const found = await data.images({ ...asked, store: query.store, first: query.at || 0, count: 1 });
    if (found.items.length) return [await data.record(query.store || 0, found.items[0].key), found];
    if (found.finished) throw new Error("There is no such image; go back to the list.");
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}

function imagePage(app, query) {
  const page = make("div", {}, make("p", { class: "soft", text: "Loading …" }));
  const store = Number(query.store || 0);
  const current = app.turn();
  const list = app.link("images", {
    ...query,
    at: undefined,
    key: undefined,
    row: undefined,
    first: Math.floor((query.at || 0) / PAGE) * PAGE,
  });
  app.back = list;
  imageOf(query).then(
    ([record, found]) => {
      if (!current()) return;
      const at = Number(query.at || 0);
      if (found)
        app.step = (by) => {
          if (at + by >= 0 && at + by < found.found) app.go("image", { ...query, at: at + by, row: undefined });
        };
      const near = make("div", {});
      const chosen = query.row === undefined ? null : Number(query.row);
      const onChoose = data.live && ((row) => near.replaceChildren(nearPart(store, record, row, current)));
      page.replaceChildren(
        make(
          "div",
          { class: "bar" },
          make("a", { href: list, text: "← All images" }),
          found
            ? make(
                "div",
                { class: "steps" },
                app.stepButton("Previous", -1, at > 0),
                make("span", { class: "soft", text: `${count(at + 1)} of ${count(found.found)}` }),
                app.stepButton("Next", 1, at + 1 < found.found),
              )
            : null,
        ),
        make("h1", { class: "key", text: record.key }),
        app.recordView(store, record, 560, { onChoose, chosen }),
        record.boxes && data.live
          ? make("p", {
              class: "soft",
              text: "Click a region, on the picture or in the table, to find the regions most like it.",
            })
          : "",
        near,
      );
      if (chosen !== null && onChoose) onChoose(chosen);
    },
    (error) => current() && page.replaceChildren(trouble(error), make("a", { href: list, text: "← All images" })),
  );
  return page;
}

// Features of random weights are named as such wherever they are shown.
function randomMark(store) {
  return String(store?.spec.model.weights?.origin || "").startsWith("random")
    ? make("span", { class: "mark", text: "random weights" })
    : null;
}

function header() {
  const [part, query] = app.where();
  const store = query.store || query.first || "0";
  const tab = ([name, text]) => {
    if (name === "compare" && (app.stores.length < 2 || !data.live)) return null;
    const here = name === part || (name === "images" && part === "image");
    const number = name === "errors" && app.stores[store]?.errors ? ` (${count(app.stores[store].errors)})` : "";
    return make("a", {
      href: app.link(name, name === "compare" ? {} : { store }),
      "aria-current": here ? "page" : null,
      text: text + number,
    });
  };
  const pick =
    app.stores.length > 1 && part !== "compare"
      ? choice(
          "Store",
          app.stores.map((each, at) => [String(at), `${each.name} (${each.view})`]),
          store,
          (value) => app.go(part === "image" ? "images" : part, { store: value }),
        )
      : null;
  const what = app.stores[store];
  document.getElementById("top").replaceChildren(
    ...[
      make("span", { class: "brand", text: "Triptych" }),
      pick ||
        (what && part !== "compare" ? make("span", { class: "soft key", text: `${what.name} (${what.view})` }) : null),
      part === "compare" ? null : randomMark(what),
      make("nav", { "aria-label": "Parts" }, TABS.map(tab)),
      make(
        "span",
        { class: "buttons" },
        themeButton(),
        make("button", {
          type: "button",
          text: "?",
          title: "Keys (?)",
          "aria-label": "Keys",
          on: { click: showKeys },
        }),
      ),
    ].filter(Boolean),
  );
}

function showKeys() {
  const dialog = document.getElementById("keys");
  dialog.replaceChildren(
    make("h2", { id: "keys-title", text: "Keys" }),
    make(
      "dl",
      { class: "facts" },
      KEYS.flatMap(([key, text]) => [make("dt", {}, make("kbd", { text: key })), make("dd", { text })]),
    ),
    make("form", { method: "dialog" }, make("button", { text: "Close" })),
  );
  if (!dialog.open) dialog.showModal();
}

function render() {
  const [part, query] = app.where();
  app.step = app.back = null;
  app.turn();
  header();
  const main = document.getElementById("main");
  const store = app.stores[query.store || 0];
  main.replaceChildren(store ? PARTS[part](app, query) : trouble(new Error("There is no such store.")));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("keys").open) return;
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    else if (app.back) location.hash = app.back;
    return;
  }
  if (typing) return;
  const act = {
    "/": () => document.getElementById("search")?.focus(),
    ArrowLeft: () => app.step?.(-1),
    ArrowRight: () => app.step?.(1),
    t: () => document.getElementById("theme").click(),
    "?": showKeys,
  }[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});
addEventListener("hashchange", () => {
  render();
  document.getElementById("main").focus({ preventScroll: true }); // what had the focus is gone
  scrollTo(0, 0);
});
document.getElementById("top").append(themeButton());

// Pictures come once their source is listed; until then, and where that fails, a note says so.
async function begin() {
  const note = make("p", { class: "note", role: "status" });
  const show = (text) => {
    note.textContent = text;
    document.getElementById("top").after(note);
  };
  let found = await data.stores();
  app.stores = found.stores;
  render();
  if (!found.images.named) return;
  while (!found.images.finished) {
    show("The images are being listed; pictures come then.");
    await new Promise((resolve) => setTimeout(resolve, 1000));
    found = await data.stores();
    if (found.images.finished) {
      note.remove();
      render();
    }
  }
  if (found.images.error) show(`The images could not be listed: ${found.images.error}`);
}

begin().catch((error) => document.getElementById("main").replaceChildren(trouble(error)));
