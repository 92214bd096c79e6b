// The drawer: one run with everything that is known of it.

const drawer = document.getElementById("drawer");

function show(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function openRun(id) {
  const run = Object.hasOwn(DATA.runs, id) ? DATA.runs[id] : null;
  if (!run) return;
  const close = el("button", { type: "button", class: "close", "aria-label": "Close" }, "×");
  close.addEventListener("click", () => drawer.close());
  const title = el("h2", { id: "drawer-title", tabindex: "-1" }, el("bdi", {}, run.arm), " ", el("code", {}, id));
  drawer.replaceChildren(
    el("div", { class: "bar" }, title, close),
    el("div", { class: "inside" }, runFacts(run), runFailure(run), runNumbers(run), runSpec(run), runSamples(run), runPlaces(run)),
  );
  if (!drawer.open) drawer.showModal();
  title.focus();
  drawer.querySelector(".inside").scrollTop = 0;
  // Where the address cannot be replaced (a page inside a sandbox), the drawer works without it.
  try { history.replaceState(null, "", `#run-${id}`); } catch { /* as said */ }
}

function runFacts(run) {
  const facts = [["state", run.state], ["why", run.why], ["data set", run.dataset], ["setting", run.setting],
    ["lr", run.lr], ["seed", run.seed], ["step", run.step], ["problem", run.problem]];
  const shown = facts.filter(([, value]) => value !== null && value !== "");
  return el("dl", { class: "facts" }, shown.map(([key, value]) => el("div", {}, el("dt", {}, key), el("dd", {}, el("bdi", {}, String(value))))));
}

function runFailure(run) {
  if (!run.failure) return null;
  const { failure } = run;
  const at = failure.step === null ? "" : ` at step ${failure.step}`;
  return el("section", { class: "failure" },
    el("h3", {}, `Failed: ${failure.class}${at}`),
    el("pre", { class: "said" }, failure.message || "It left no message."),
    failure.traceback ? el("details", { open: true }, el("summary", {}, "Traceback"), el("pre", { tabindex: "0" }, failure.traceback)) : null);
}

function pairsTable(pairs) {
  const rows = pairs.map(([key, value]) => el("tr", {}, el("th", { scope: "row" }, key), el("td", { class: "num" }, shortNumber(value))));
  return el("div", { class: "scroll" }, el("table", {}, el("tbody", {}, rows)));
}

function runNumbers(run) {
  const metrics = Object.entries(run.metrics), costs = Object.entries(run.costs);
  if (!metrics.length && !costs.length) return null;
  return el("section", {}, el("h3", {}, "Metrics and costs"),
    pairsTable([...metrics, ...costs].map(([key, value]) => [titleOf(key), value])));
}

function specOf(run) {
  const lacking = new Set(run.spec.without);
  const entries = Object.entries(DATA.base).filter(([key]) => !lacking.has(key) && !Object.hasOwn(run.spec.set, key));
  return [...entries, ...Object.entries(run.spec.set)].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
}

function runSpec(run) {
  if (!run.spec) return el("section", {}, el("h3", {}, "Specification"), el("p", {}, "There is none that could be read."));
  const whole = specOf(run), own = new Map(whole);
  const usual = (key) => (Object.hasOwn(DATA.base, key) ? show(DATA.base[key]) : "absent");
  const rows = DATA.varying.map((key) => {
    const mine = own.has(key) ? show(own.get(key)) : "absent";
    return el("tr", { class: mine === usual(key) ? null : "differs" },
      el("th", { scope: "row" }, key), el("td", {}, el("bdi", {}, mine)), el("td", { class: "usual" }, el("bdi", {}, usual(key))));
  });
  const head = el("tr", {}, ["field", "this run", "most common"].map((text) => el("th", { scope: "col" }, text)));
  const table = el("table", { class: "spec" }, el("thead", {}, head), el("tbody", {}, rows));
  const lines = whole.map(([key, value]) => `${key}: ${show(value)}`).join("\n");
  return el("section", {}, el("h3", {}, "Specification"),
    rows.length ? el("p", { class: "under" }, "The fields that vary in this study; in bold where this run is not the common case.") : null,
    rows.length ? el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Fields that vary" }, table)
      : el("p", {}, "No field varies in this study."),
    el("details", {}, el("summary", {}, `All ${whole.length} fields`), el("pre", { tabindex: "0" }, lines)));
}

function runPlaces(run) {
  if (!run.starts.length) return null;
  const of = run.starts.map((place, i) => {
    const lines = Object.entries(DATA.places[place]).map(([key, value]) => `${key}: ${show(value)}`).join("\n");
    return el("details", {}, el("summary", {}, run.starts.length > 1 ? `Start ${i + 1}` : "Where it ran"), el("pre", { tabindex: "0" }, lines));
  });
  return el("section", {}, el("h3", {}, "Environment"), of);
}

function runSamples(run) {
  if (!run.samples) return null;
  const prompts = Object.hasOwn(DATA.prompts, run.dataset) ? DATA.prompts[run.dataset] : {};
  const right = run.samples.items.filter((sample) => sample[3]).length;
  const shown = run.samples.items.length;
  const list = el("div", { class: "samples" }, run.samples.items.map((sample) => oneSample(sample, prompts)));
  const only = el("input", { type: "checkbox" });
  only.addEventListener("change", () => list.classList.toggle("only-wrong", only.checked));
  const counted = `${right} right, ${shown - right} wrong` + (shown < run.samples.of ? `; the first ${shown} of ${run.samples.of} items` : "");
  return el("section", {}, el("h3", {}, "What it generated"), el("p", { class: "under" }, counted),
    el("label", { class: "check" }, only, el("span", {}, "only wrong ones")), list);
}

function oneSample([item, prediction, target, correct, text], prompts) {
  const prompt = Object.hasOwn(prompts, item) ? prompts[item] : null;
  return el("article", { class: correct ? "sample right" : "sample wrong" },
    el("p", {}, el("span", { class: `badge ${correct ? "good" : "bad"}` }, correct ? "right" : "wrong"), " ", el("code", {}, item)),
    el("dl", {}, el("dt", {}, "prediction"), el("dd", {}, el("bdi", {}, prediction || "(none)")),
      el("dt", {}, "target"), el("dd", {}, el("bdi", {}, target))),
    prompt === null ? null : el("details", {}, el("summary", {}, "prompt"), el("pre", {}, prompt)),
    el("pre", { class: "said" }, text || "(no text)"));
}

function startDrawer() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.open");
    const row = event.target.closest("tr[data-run]");
    if (button) openRun(button.dataset.run || row.dataset.run);
    else if (row && !event.target.closest("a, button, summary") && !String(getSelection())) openRun(row.dataset.run);
  });
  drawer.addEventListener("click", (event) => { if (event.target === drawer) drawer.close(); });
  drawer.addEventListener("close", () => {
    if (drawer.open) return; // the event comes later than the closing: another run may have been opened since
    try { history.replaceState(null, "", location.pathname + location.search); } catch { /* see openRun */ }
  });
  const named = /^#run-([0-9a-f]+)$/.exec(location.hash);
  if (named) openRun(named[1]);
}
