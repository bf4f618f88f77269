// Every evaluation on a time line: how near each condition came to its threshold, and what was decided.

import { facts, h, parts, table } from "../dom.js";
import { plot } from "../plot.js";
import { number, score, span } from "../text.js";

export function mount(root) {
  const show = parts(root, pipeline);
  return { set: (said) => show(said.pipelines) };
}

function pipeline({ name }) {
  const told = facts();
  const line = plot("Scores as a share of their thresholds", { unit: "by window; a condition fires at 1; 2 stands for all above" });
  const detail = h("div", { id: "detail", tabindex: -1 });
  const listed = table("Decisions, the newest first", [
    { title: "window, UTC", cell: span },
    { title: "verdict", cell: (d) => h("span", { class: { yes: "good", not_evaluated: "warn" }[d.verdict] ?? "" }, d.verdict.replaceAll("_", " ")) },
    { title: "reason", cell: (d) => d.reason },
    { title: "job", cell: (d) => (d.job_id ? h("a", { href: "#jobs" }, d.job_id) : "") },
    { title: "scores", cell: (d) => h("button", { type: "button", onclick: () => open(d) }, "Show") },
  ], (d) => d.window);

  async function open(decision) {
    const got = await fetch(`/api/decision?pipeline=${encodeURIComponent(name)}&window=${encodeURIComponent(decision.window)}`);
    const said = await got.json();
    if (said.error) { detail.textContent = said.error; return; }
    const conditions = table(`Conditions on ${span(decision)}: ${said.verdict.replaceAll("_", " ")}`, [
      { title: "condition", cell: (e) => e.condition },
      { title: "fired", cell: (e) => (e.fired ? "yes" : e.evaluated ? "no" : "cannot say") },
      { title: "score", number: true, cell: (e) => score(e.score) },
      { title: "threshold", number: true, cell: (e) => score(e.threshold) },
      { title: "forecast", cell: (e) => (e.forecast_windows === null || e.fired ? "" : `in ${number(e.forecast_windows)} windows`) },
      { title: "held against", cell: (e) => e.reference ?? "" },
      { title: "reason", cell: (e) => e.reason },
      { title: "worst", cell: (e) => Object.entries(e.scores ?? {}).map(([column, value]) => `${column} ${score(value)}`).join(", ") },
    ], (e) => e.condition);
    conditions.set(said.evaluations);
    detail.replaceChildren(conditions.element);
    detail.focus();
  }

  return {
    element: h("section", { "data-pipeline": name }, h("h2", {}, name), told.element, h("div", { class: "plots" }, line.element), detail, listed.element),
    set(said) {
      told.set({ yes: number(said.verdicts.yes), no: number(said.verdicts.no), "not evaluated": number(said.verdicts.not_evaluated) });
      const series = said.conditions.map((c) => ({ label: c.condition, values: c.scores.map((s, at) => (s === null || !c.thresholds[at] ? null : Math.min(2, s / c.thresholds[at]))) }));
      const yes = new Set(said.decisions.filter((d) => d.verdict === "yes").map((d) => d.start_ms));
      line.set(said.start_ms, [...series, { label: "threshold", dash: true, values: said.start_ms.map(() => 1) }, { label: "a training was asked for", marks: true, values: said.start_ms.map((ms) => (yes.has(ms) ? 1 : null)) }]);
      listed.set(said.decisions);
    },
  };
}
