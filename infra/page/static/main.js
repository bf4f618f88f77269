// The frame: which view is shown, what it is told, and whether what it shows is live.

import { h } from "./dom.js";
import { clear } from "./plot.js";

const VIEWS = ["road", "windows", "rules", "letters", "decisions", "jobs", "models", "lineage", "adoption"];
const NAMES = { road: "Road", windows: "Windows", rules: "Rules and tags", letters: "Dead letters", decisions: "Decisions", jobs: "Jobs", models: "Models", lineage: "Lineage", adoption: "Adoption" };
const main = document.getElementById("main");
const state = document.getElementById("state");
let source = null, shown = null, turn = 0;

const list = document.getElementById("views");
for (const view of VIEWS) list.append(h("li", {}, h("a", { href: `#${view}` }, NAMES[view])));

function say(kind, text) {
  if (state.dataset.state === kind && state.textContent === text) return;
  state.dataset.state = kind;
  state.textContent = text;
}

async function show(focus) {
  const [wanted, ...rest] = location.hash.slice(1).split("/");
  const view = VIEWS.includes(wanted) ? wanted : "road";
  const mine = ++turn;
  const module = await import(`./views/${view}.js`);
  if (mine !== turn) return;
  source?.close();
  clear();
  for (const link of list.querySelectorAll("a")) {
    if (link.getAttribute("href") === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${NAMES[view]} · Tidemill`;
  main.replaceChildren(h("h1", { id: "title" }, NAMES[view]));
  main.dataset.view = view;
  delete main.dataset.updates;
  shown = module.mount(main, rest.map(decodeURIComponent));
  if (focus) main.focus();
  follow(view);
}

function follow(view) {
  const mine = turn;
  source = new EventSource(`/events?section=${view}`);
  source.addEventListener("section", (event) => {
    if (mine !== turn) return;
    shown.set(JSON.parse(event.data));
    main.dataset.updates = Number(main.dataset.updates ?? 0) + 1;
  });
  source.addEventListener("state", (event) => {
    const { connected, caught_up: caughtUp } = JSON.parse(event.data);
    if (!connected) say("lost", "the cluster does not answer; trying again");
    else say(caughtUp ? "live" : "waiting", caughtUp ? "live" : "reading what was");
  });
  source.onerror = () => {
    if (mine !== turn) return;
    say("lost", "the page's server does not answer; trying again");
    // A browser gives up on an answer that is no stream, as while too many look: ask again then.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => { if (mine === turn) follow(view); }, 3000);
  };
}

const theme = document.getElementById("theme");
const isDark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
function themed() {
  theme.textContent = isDark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", `Change to ${isDark() ? "light" : "dark"} colours`);
  document.dispatchEvent(new Event("theme"));
}
try { if (localStorage.theme) document.documentElement.dataset.theme = localStorage.theme; } catch { /* no storage: the system's choice */ }
theme.addEventListener("click", () => {
  const chosen = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = chosen;
  try { localStorage.theme = chosen; } catch { /* not kept */ }
  themed();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themed);
themed();
addEventListener("hashchange", () => show(true));
show(false);
