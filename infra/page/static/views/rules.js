// What the rules dropped and refused, and which share of the rows carries each tag.

import { facts, h, parts, table } from "../dom.js";
import { plot } from "../plot.js";
import { number, percent } from "../text.js";

export function mount(root) {
  const show = parts(root, pipeline);
  return { set: (said) => show(said.pipelines) };
}

const bar = (share) => h("span", {}, h("span", { class: "bar", "aria-hidden": "true" }, h("i", { style: `width:${Math.min(100, share * 100)}%` })), percent(share));

function pipeline({ name }) {
  const told = facts();
  const rules = table("Rows by rule, the most frequent first", [
    { title: "rule", cell: (r) => r.rule },
    { title: "what becomes of them", cell: (r) => r.what },
    { title: "rows", number: true, cell: (r) => number(r.rows) },
    { title: "of all", cell: (r) => bar(r.share) },
  ], (r) => `${r.what} ${r.rule}`);
  const tags = table("Tags by share of the rows kept", [
    { title: "tag", cell: (t) => t.tag },
    { title: "rows", number: true, cell: (t) => number(t.rows) },
    { title: "share", cell: (t) => bar(t.share) },
  ], (t) => t.tag);
  const shares = plot("Share of each tag", { unit: "by window" });
  const refused = plot("Rows dropped or refused", { unit: "by window", bars: true });
  return {
    element: h("section", { "data-pipeline": name }, h("h2", {}, name), told.element,
      h("div", { class: "plots" }, h("div", {}, rules.element, refused.element), h("div", {}, tags.element, shares.element))),
    set(said) {
      const of = (counts, what) => Object.entries(counts).map(([rule, rows]) => ({ rule, what, rows }));
      const all = [...of(said.dropped, "dropped"), ...of(said.rejected, "dead letter")];
      const lost = all.reduce((sum, r) => sum + r.rows, 0);
      told.set({ "newest windows": number(said.windows), "rows kept": number(said.rows), "dropped or refused": number(lost) });
      rules.set(all.map((r) => ({ ...r, share: r.rows / (said.rows + lost) })).sort((a, b) => b.rows - a.rows));
      tags.set(Object.entries(said.tags).map(([tag, t]) => ({ tag, ...t })));
      shares.set(said.start_ms, Object.entries(said.shares).map(([label, values]) => ({ label, values })));
      refused.set(said.start_ms, [{ label: "rows", values: said.refused }]);
    },
  };
}
