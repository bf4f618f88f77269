// Elements, and tables that change in place: who reads, selects or has focus is not disturbed by what comes.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Replaces the content only where it differs.
export function put(element, content) {
  if (content instanceof Node) {
    const known = element.firstChild;
    if (element.childNodes.length === 1 && known.isEqualNode?.(content)) return;
    element.replaceChildren(content);
  } else if (element.textContent !== String(content ?? "")) {
    element.textContent = String(content ?? "");
  }
}

// A list of names and values: facts({closed: 31}) on what facts() gave changes the numbers alone.
export function facts() {
  const element = h("dl", { class: "facts" });
  const values = new Map();
  return {
    element,
    set(said) {
      for (const [name, value] of Object.entries(said)) {
        if (!values.has(name)) {
          const place = h("dd", { "data-fact": name });
          values.set(name, place);
          element.append(h("div", {}, h("dt", {}, name), place));
        }
        put(values.get(name), value);
      }
    },
  };
}

// columns: [{title, cell(item), number}]; keyed by key(item). Rows that stay keep their elements.
export function table(caption, columns, key, { select } = {}) {
  const body = h("tbody");
  const head = h("tr", {}, ...columns.map((c) => h("th", { scope: "col", class: c.number && "number" }, c.title)));
  const none = h("p", { class: "quiet" }, "none yet");
  const whole = h("table", {}, h("caption", {}, caption), h("thead", {}, head), body);
  const element = h("div", {}, h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, whole), none);
  const rows = new Map();
  return {
    element,
    set(items) {
      none.hidden = items.length > 0;
      const kept = new Set();
      let before = null;
      for (const item of items) {
        const at = key(item);
        kept.add(at);
        let row = rows.get(at);
        if (!row) {
          row = h("tr", { "data-key": at }, ...columns.map((c) => h("td", { class: c.number && "number" })));
          rows.set(at, row);
        }
        columns.forEach((column, number) => put(row.cells[number], column.cell(item)));
        if (select) row.setAttribute("aria-selected", String(select(item)));
        const place = before ? before.nextSibling : body.firstChild;
        if (place !== row) body.insertBefore(row, place);
        before = row;
      }
      for (const [at, row] of rows) if (!kept.has(at)) { row.remove(); rows.delete(at); }
    },
  };
}

// One part of the page for each item, made once by make(item) -> {element, set(item), destroy()?}.
export function parts(root, make) {
  const known = new Map();
  const none = h("p", { class: "quiet" }, "Nothing has been said of this yet.");
  root.append(none);
  return (items, key = (item) => item.name) => {
    none.hidden = items.length > 0;
    const kept = new Set(items.map(key));
    for (const [at, part] of known) if (!kept.has(at)) { part.destroy?.(); part.element.remove(); known.delete(at); }
    for (const item of items) {
      if (!known.has(key(item))) {
        const part = make(item);
        known.set(key(item), part);
        root.append(part.element);
      }
      known.get(key(item)).set(item);
    }
  };
}
