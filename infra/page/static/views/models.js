// Champion against challenger, overall and slice by slice, with the bounds of the difference.

import { h, parts, table } from "../dom.js";
import { plot } from "../plot.js";
import { number, score, time } from "../text.js";

export function mount(root) {
  const line = h("div", { class: "plots" });
  const listed = table("Versions, the newest first", [
    { title: "model", cell: (m) => m.name },
    { title: "version", number: true, cell: (m) => m.version },
    { title: "", cell: (m) => (m.live ? h("span", { class: "good" }, "live") : "") },
    { title: "published, UTC", cell: (m) => time(m.published_ms, { seconds: true }) },
    { title: "AUC", number: true, cell: (m) => score(m.challenger?.auc) },
    { title: "of the champion", number: true, cell: (m) => score(m.champion?.auc) },
    { title: "judged rows", number: true, cell: (m) => number(m.challenger?.rows) },
    { title: "signed by", cell: (m) => `${m.signed_by.join(", ") || "nobody"}${m.trusted ? "" : " (not trusted)"}` },
    { title: "adopted by", cell: (m) => Object.keys(m.adopted_by).join(", ") },
    { title: "", cell: (m) => h("a", { href: `#lineage/${encodeURIComponent(m.name)}/${m.version}` }, "lineage") },
  ], (m) => `${m.name}/${m.version}/${m.sha256}`);
  const slices = h("div");
  const refusedSlices = h("div");
  root.append(line, listed.element, h("h2", {}, "By slice, of each model's newest version"), slices, h("h2", {}, "Challengers that were refused"), refusedSlices);
  const draw = parts(line, ({ name }) => {
    const drawn = plot(`${name}: AUC on the newest unseen rows`, { x: "version", from0: false });
    return {
      element: drawn.element,
      destroy: drawn.destroy,
      set({ versions }) {
        drawn.set(versions.map((m) => m.version), [{ label: "challenger", values: versions.map((m) => m.challenger?.auc ?? null) }, { label: "champion", values: versions.map((m) => m.champion?.auc ?? null) }]);
      },
    };
  });
  const showSlices = parts(slices, sliced);
  const showRefused = parts(refusedSlices, (one) => {
    const made = sliced(one);
    return { element: h("details", {}, h("summary", {}, `${one.title}: ${one.reason}`), made.element), set: made.set };
  });
  return {
    set(said) {
      const byName = new Map();
      for (const model of said.models) byName.set(model.name, [...(byName.get(model.name) ?? []), model]);
      draw([...byName].filter(([, models]) => models.some((m) => m.challenger?.auc != null)).map(([name, models]) => ({ name, versions: [...new Map(models.map((m) => [m.version, m])).values()].reverse() })));
      listed.set(said.models);
      showSlices([...byName].map(([name, models]) => ({ name, title: `${name} version ${models[0].version}`, slices: said.slices[`${name}/${models[0].version}`] ?? [] })));
      showRefused(said.refused.map((r) => ({ name: `${r.name}/${r.job_id}`, title: `${r.name}, job ${r.job_id}`, reason: r.reason, slices: r.slices })));
    },
  };
}

function sliced({ title }) {
  let widest = 0;
  const heading = h("h3", {}, title);
  const listed = table("More is better for the difference, whatever the metric", [
    { title: "slice", cell: (s) => s.slice },
    { title: "metric", cell: (s) => s.metric },
    { title: "challenger", number: true, cell: (s) => score(s.challenger) },
    { title: "champion", number: true, cell: (s) => score(s.champion) },
    { title: "rows", number: true, cell: (s) => number(s.difference?.rows) },
    { title: "better by", number: true, cell: (s) => score(s.difference?.value) },
    { title: "bounds", cell: (s) => (s.difference ? interval(s.difference, widest) : "") },
  ], (s) => s.slice);
  return {
    element: h("section", {}, heading, listed.element),
    set(one) {
      heading.textContent = one.title;
      widest = Math.max(1e-9, ...one.slices.filter((s) => s.difference).flatMap((s) => [Math.abs(s.difference.low), Math.abs(s.difference.high)]));
      listed.set(one.slices);
    },
  };
}

// From the lower bound to the upper, with 0 in the middle.
function interval({ low, value, high }, widest) {
  const x = (v) => 50 + (48 * v) / widest;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "interval");
  svg.setAttribute("viewBox", "0 0 100 10");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `from ${score(low)} to ${score(high)}`);
  const colour = low > 0 ? "var(--good)" : high < 0 ? "var(--bad)" : "var(--quiet)";
  for (const [x1, x2, y1, y2, stroke] of [[50, 50, 0, 10, "var(--line)"], [x(low), x(high), 5, 5, colour], [x(value), x(value), 1, 9, colour]]) {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, at] of Object.entries({ x1, x2, y1, y2 })) line.setAttribute(name, at);
    line.setAttribute("style", `stroke:${stroke};stroke-width:1.5`);
    svg.append(line);
  }
  return svg;
}
