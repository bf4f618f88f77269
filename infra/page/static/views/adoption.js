// Which service answers with which version, since when, and what it would not take.

import { h, table } from "../dom.js";
import { plot } from "../plot.js";
import { number, time } from "../text.js";

export function mount(root) {
  const now = table("Who answers with what now", [
    { title: "service", cell: (a) => a.service },
    { title: "model", cell: (a) => a.name },
    { title: "version", number: true, cell: (a) => a.version },
    { title: "", cell: (a) => (a.version === a.live ? h("span", { class: "good" }, "the live one") : h("span", { class: "warn" }, `live is ${a.live ?? "unknown"}`)) },
    { title: "by the service's bounds", cell: (a) => (a.stale ? h("span", { class: "warn" }, `stale: ${a.stale}`) : "") },
    { title: "since, UTC", cell: (a) => time(a.adopted_ms, { seconds: true }) },
  ], (a) => `${a.service} ${a.name}`);
  const line = plot("Versions over time", { unit: "by service and model", from0: false });
  const history = table("What services said, the newest first", [
    { title: "at, UTC", cell: (a) => time(a.at_ms, { seconds: true }) },
    { title: "service", cell: (a) => a.service },
    { title: "model", cell: (a) => a.name },
    { title: "version", number: true, cell: (a) => a.version },
    { title: "", cell: (a) => (a.reason ? h("span", { class: a.what === "stale" ? "warn" : "bad" }, `${a.what}: ${a.reason}`) : a.what) },
    { title: "load, ms", number: true, cell: (a) => number(a.load_ms, 1) },
  ], (a) => `${a.at_ms} ${a.service} ${a.name} ${a.version}`);
  root.append(now.element, h("div", { class: "plots" }, line.element), history.element);
  return {
    set(said) {
      now.set(said.now);
      const took = said.history.filter((a) => a.what === "adopted").reverse();
      const lines = [...new Set(took.map((a) => `${a.service}: ${a.name}`))].slice(0, 8);
      line.set(took.map((a) => a.at_ms), lines.map((label) => ({ label, values: took.map((a) => (`${a.service}: ${a.name}` === label ? a.version : null)) })));
      history.set(said.history);
    },
  };
}
