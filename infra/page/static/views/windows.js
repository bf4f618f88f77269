// Windows that fill, have closed, and were amended by late rows.

import { facts, h, parts, table } from "../dom.js";
import { plot } from "../plot.js";
import { counted, number, percent, span, time } from "../text.js";

export function mount(root) {
  const show = parts(root, pipeline);
  return { set: (said) => show(said.pipelines) };
}

function pipeline({ name }) {
  const told = facts();
  const rows = plot("Rows of closed windows", { unit: "by the window's start", bars: true });
  const filling = table("Filling now", [
    { title: "window, UTC", cell: span },
    { title: "rows so far", number: true, cell: (w) => number(w.rows) },
    { title: "closes at watermark, UTC", cell: (w) => time(w.closes_at_ms) },
  ], (w) => w.id);
  const closed = table("Closed, the newest first", [
    { title: "window, UTC", cell: span },
    { title: "rows", number: true, cell: (w) => number(w.rows) },
    { title: "labelled", number: true, cell: (w) => (w.rows ? percent(w.labelled / w.rows) : "") },
    { title: "refused", number: true, cell: (w) => number(w.rejected) },
    { title: "dropped", number: true, cell: (w) => number(w.dropped) },
    { title: "amended", cell: (w) => (w.amended ? `${w.amended === 1 ? "once" : `${number(w.amended)} times`} by ${counted(w.late_rows, "late row")}` : "") },
    { title: "dataset version", number: true, cell: (w) => number(w.dataset_version) },
  ], (w) => w.id);
  return {
    element: h("section", { "data-pipeline": name }, h("h2", {}, name), told.element, filling.element, h("div", { class: "plots" }, rows.element), closed.element),
    set(said) {
      told.set({ open: number(said.open_windows), closed: number(said.closed), amendments: number(said.amended), "late rows": number(said.late_rows) });
      filling.set(said.filling);
      const inOrder = [...said.windows].reverse();
      rows.set(inOrder.map((w) => w.start_ms), [{ label: "rows", values: inOrder.map((w) => w.rows) }]);
      closed.set(said.windows);
    },
  };
}
