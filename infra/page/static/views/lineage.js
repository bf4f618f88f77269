// From a model back to the windows and offsets that it was made of.

import { h } from "../dom.js";
import { number, time } from "../text.js";

export function mount(root, [name, version]) {
  const choice = h("select", { id: "version", onchange: () => { location.hash = choice.value; } });
  const road = h("ol", { class: "road", "aria-live": "polite" });
  root.append(h("p", {}, h("label", { for: "version" }, "Model "), choice), road);
  let shown = "", offered = "";

  async function open(model) {
    shown = `${model.name}/${model.version}`;
    const got = await fetch(`/api/lineage/${encodeURIComponent(model.name)}/${model.version}`);
    const said = await got.json();
    if (shown !== `${model.name}/${model.version}`) return; // another was chosen meanwhile
    if (said.error) { road.replaceChildren(h("li", {}, said.error)); return; }
    road.replaceChildren(...steps(said));
    road.dataset.model = shown;
  }

  return {
    set({ models }) {
      const now = models.map((m) => `${m.name}/${m.version}/${m.live}`).join("\n");
      if (now !== offered) {
        offered = now;
        const chosen = choice.value;
        choice.replaceChildren(...models.map((m) => h("option", { value: `#lineage/${encodeURIComponent(m.name)}/${m.version}` }, `${m.name} version ${m.version}${m.live ? ", live" : ""}`)));
        if (chosen) choice.value = chosen;
      }
      const wanted = models.find((m) => m.name === name && m.version === Number(version)) ?? (name ? { name, version } : models[0]);
      if (!wanted) { road.replaceChildren(h("li", {}, "No model has been published yet.")); return; }
      if (`${wanted.name}/${wanted.version}` === shown) return;
      choice.value = `#lineage/${encodeURIComponent(wanted.name)}/${wanted.version}`;
      open(wanted);
    },
  };
}

const step = (title, ...content) => h("li", {}, h("h3", {}, title), ...content);
const p = (...content) => h("p", {}, ...content);
const mono = (text) => h("code", {}, text);

function steps(manifest) {
  const origin = manifest.lineage;
  return [
    step(`${manifest.name} version ${manifest.version}`, p(`published ${time(manifest.published_ms, { seconds: true })} UTC`), p("weights ", mono(manifest.artifact.sha256), `, ${number(manifest.artifact.size_bytes)} bytes`)),
    step("Job", p(mono(origin.job_id)), p(`on ${origin.device}, ${origin.threads} thread(s)`), p(`code ${origin.code}, SHA-256 `, mono(origin.code_sha256)), p(`parameters ${JSON.stringify(origin.params)}, seed ${origin.seed}`)),
    step("Decision", p(origin.decision_id ? h("a", { href: "#decisions" }, origin.decision_id) : "asked for by a person, no decision")),
    step("Began from", p(origin.parent_sha256 ? h("a", { href: `#lineage/${encodeURIComponent(manifest.name)}/${origin.parent_version}` }, `version ${origin.parent_version}`) : "nothing"), origin.champion_sha256 ? p("judged beside weights ", mono(origin.champion_sha256)) : null),
    step("Rows", p(`${number(origin.rows)} rows of dataset version ${number(origin.dataset_version)}`), p(mono(origin.dataset_uri)), p("digest of the rows ", mono(origin.input_sha256 || "not recorded"))),
    step(`Windows (${origin.window_ids.length})`, h("ul", {}, ...origin.window_ids.map((id) => h("li", {}, readable(id))))),
    step(`Offsets (${origin.offsets.length} partitions)`, h("ul", {}, ...origin.offsets.map((o) => h("li", {}, `${o.topic} partition ${o.partition}: ${number(o.start)} to ${number(o.end)}`)))),
    step("Machine and libraries", p(Object.entries(origin.hardware).map(([what, value]) => `${what} ${value}`).join(", ") || "not recorded"), p(Object.entries(origin.libraries).map(([what, value]) => `${what} ${value}`).join(", "))),
  ];
}

// "flights/0-86400000" with its times as people write them.
function readable(id) {
  const found = /^(.*)\/(-?\d+)-(-?\d+)$/.exec(id);
  return found ? `${found[1]}: ${time(Number(found[2]))} – ${time(Number(found[3]))}` : id;
}
