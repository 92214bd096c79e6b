// The interactive plots. Plotly reads a small markup in its texts, so every text that comes from data goes through esc().

// The buttons are named one by one: the bundle's own choice has some that would send the data away.
const BUTTONS = [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];
const CONFIG = { displaylogo: false, responsive: true, modeBarButtons: BUTTONS, doubleClick: "reset", showSendToCloud: false };
const GREY = "#888888";

function esc(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function axisTitle(text) {
  return { text: esc(text), font: { size: 13 }, standoff: 8 };
}

function layout(more) {
  const axis = { gridcolor: "#e4e4e4", zeroline: false, automargin: true, linecolor: "#999999", ticks: "outside", tickcolor: "#999999" };
  return {
    paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff", font: { family: "system-ui, sans-serif", size: 13, color: "#222222" },
    margin: { l: 8, r: 12, t: 36, b: 8 }, hoverlabel: { align: "left", bgcolor: "#ffffff", bordercolor: "#888888", font: { color: "#222222" } },
    legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom" }, hovermode: "closest", showlegend: true, dragmode: "zoom",
    ...more, xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis },
  };
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => el("option", { value }, text)));
  if (entries.some(([value]) => value === chosen)) select.value = chosen;
}

function inputsOf(name) {
  const box = document.querySelector(`[data-plot="${name}"]`);
  const found = {};
  for (const input of box.querySelectorAll("[data-key]")) found[input.dataset.key] = input;
  return { box, found };
}

function hide(input, hidden) {
  input.closest("label").hidden = hidden;
}

function describe(id) {
  const run = DATA.runs[id];
  return `<b>${esc(run.arm)}</b><br>run ${esc(id)}<br>lr ${esc(run.lr)}, seed ${esc(run.seed)}${run.state === "done" ? "" : `<br>${esc(run.state)}`}`;
}

/** The data set and setting of a run: what is drawn together is what is compared. */
function panelOf(id) {
  return [DATA.runs[id].dataset, DATA.runs[id].setting].filter(Boolean).join(", ");
}

function fillPanels(select, ids) {
  const panels = [...new Set(ids.map(panelOf))].sort();
  options(select, panels.map((panel) => [panel, panel]), panels[0]);
  hide(select, panels.length < 2);
}

/** The ids by arm, in the order of the plan. */
function byArm(ids) {
  const arms = new Map(DATA.arms.map((arm) => [arm, []]));
  for (const id of ids) {
    const { arm } = DATA.runs[id];
    arms.get(arm).push(id);
  }
  return [...arms].filter(([, own]) => own.length);
}

function onRun(place) {
  place.on("plotly_click", (event) => {
    const id = event.points[0].customdata;
    if (typeof id === "string") openRun(id);
  });
}

// Scatter ------------------------------------------------------------------------------------------------------------

function valueOf(run, key) {
  if (key === "lr" || key === "seed") return run[key];
  if (Object.hasOwn(run.metrics, key)) return run.metrics[key];
  return Object.hasOwn(run.costs, key) ? run.costs[key] : null;
}

function startScatter(place) {
  const { box, found } = inputsOf("scatter");
  const runs = Object.entries(DATA.runs).filter(([, run]) => Object.keys(run.metrics).length);
  const metrics = [...new Set(runs.flatMap(([, run]) => Object.keys(run.metrics)))].sort();
  const costs = [...new Set(runs.flatMap(([, run]) => Object.keys(run.costs)))].sort();
  const entries = ["lr", ...metrics, ...costs].map((key) => [key, key === "lr" ? "learning rate" : titleOf(key)]);
  const [y, ...others] = DATA.shown;  // the leaderboard's metrics; learning against forgetting, where both are known
  options(found.x, entries, others.includes("forgetting_kl_nats") ? "forgetting_kl_nats" : others[0] || "lr");
  options(found.y, entries, y || metrics[0]);
  found.logx.checked = found.x.value === "lr";
  fillPanels(found.panel, runs.map(([id]) => id));
  const draw = () => {
    const traces = [];
    for (const [arm, ids] of byArm(runs.map(([id]) => id).filter((id) => panelOf(id) === found.panel.value))) {
      const look = DATA.looks[arm];
      const shown = ids.filter((id) => [found.x.value, found.y.value].every((key) => valueOf(DATA.runs[id], key) !== null));
      const x = shown.map((id) => valueOf(DATA.runs[id], found.x.value)), y = shown.map((id) => valueOf(DATA.runs[id], found.y.value));
      traces.push({
        type: "scatter", mode: "markers", name: esc(arm), x, y, customdata: shown, hoverinfo: "text",
        text: shown.map((id, i) => `${describe(id)}<br>x ${esc(shortNumber(x[i]))}<br>y ${esc(shortNumber(y[i]))}`),
        marker: { color: look.colour, size: 9, symbol: shown.map((id) => look.symbol + (DATA.runs[id].state === "done" ? "" : "-open")) },
      });
    }
    Plotly.react(place, traces, layout({
      xaxis: { title: axisTitle(titleOf(found.x.value)), type: found.logx.checked ? "log" : "linear" },
      yaxis: { title: axisTitle(titleOf(found.y.value)), type: found.logy.checked ? "log" : "linear" },
    }), CONFIG);
  };
  box.addEventListener("input", draw);
  draw();
  onRun(place);
}

/** Points of a running mean: a twentieth of a curve. */
function windowOf(num) {
  return Math.max(1, Math.floor(num / 20));
}

/** The mean of each value and those before it; a value that is no number stays one. */
function smoothed(values) {
  const window = windowOf(values.length);
  return values.map((value, at) => {
    if (value === null) return null;
    const own = values.slice(Math.max(0, at - window + 1), at + 1).filter((other) => other !== null);
    return own.reduce((sum, other) => sum + other, 0) / own.length;
  });
}

// Curves -------------------------------------------------------------------------------------------------------------

function startCurves(place) {
  const { box, found } = inputsOf("curves");
  const metrics = Object.entries(DATA.curves.titles);
  options(found.metric, metrics, DATA.curves.titles.loss_nats ? "loss_nats" : metrics[0][0]);
  options(found.which, [["chosen", "at the chosen rates"], ["all", "all"]], DATA.chosen.length ? "chosen" : "all");
  const note = document.getElementById("curves-note");
  fillPanels(found.panel, Object.keys(DATA.curves.runs));
  found.smooth.checked = true;
  const draw = () => {
    const metric = found.metric.value;
    const wanted = found.which.value === "chosen" ? DATA.chosen : Object.keys(DATA.runs);
    const ids = wanted.filter((id) => Object.hasOwn(DATA.curves.runs, id) && DATA.curves.runs[id][metric] && panelOf(id) === found.panel.value);
    const traces = [];
    let thinned = 0;
    for (const [arm, own] of byArm(ids)) {
      own.forEach((id, i) => {
        const [steps, values, recorded] = DATA.curves.runs[id][metric];
        const y = found.smooth.checked ? smoothed(values) : values;
        const x = DATA.curves.steps[steps], look = DATA.looks[arm], bad = DATA.runs[id].state !== "done";
        thinned += recorded > y.length;
        traces.push({
          type: "scatter", mode: y.length > 12 ? "lines" : "lines+markers", name: esc(arm), legendgroup: esc(arm), showlegend: i === 0,
          x, y, customdata: x.map(() => id), hoverinfo: "text", opacity: 0.8,
          text: x.map((step, at) => `${describe(id)}<br>step ${step}: ${y[at] === null ? "no number" : esc(shortNumber(y[at]))}`),
          line: { color: look.colour, width: 1.4, dash: bad ? "dot" : "solid" }, marker: { color: look.colour, symbol: look.symbol, size: 6 },
        });
      });
    }
    Plotly.react(place, traces, layout({
      xaxis: { title: axisTitle("step"), rangemode: "tozero" },
      yaxis: { title: axisTitle(titleOf(metric)), type: found.logy.checked ? "log" : "linear" },
    }), CONFIG);
    const cut = thinned ? ` Of ${runsOf(thinned)} with more steps, ${DATA.curves.most} evenly spaced ones are drawn.` : "";
    const window = Math.max(0, ...ids.map((id) => windowOf(DATA.curves.runs[id][metric][1].length)));
    const mean = found.smooth.checked && window > 1 ? ` Each point is the mean of up to ${window} points before it.` : "";
    note.textContent = `One line per run, ${runsOf(ids.length)}; dotted where the run is not done. Click a line to open its run.${mean}${cut}`;
  };
  box.addEventListener("input", draw);
  draw();
  onRun(place);
}

// Layers -------------------------------------------------------------------------------------------------------------

function startLayers(place) {
  const { box, found } = inputsOf("layers");
  const own = DATA.layers, ids = Object.keys(own.runs).sort((a, b) => DATA.arms.indexOf(DATA.runs[a].arm) - DATA.arms.indexOf(DATA.runs[b].arm) || DATA.runs[a].seed - DATA.runs[b].seed);
  fillPanels(found.panel, ids);
  const kinds = [...new Set(own.modules.map(([, , kind]) => kind))].sort();
  const parts = [...new Set(ids.flatMap((id) => Object.keys(own.runs[id])))].sort();
  options(found.measure, own.measures.map((name) => [name, titleOf(name)]), own.measures[0]);
  options(found.view, [["lines", "lines"], ["map", "heat map"]], "lines");
  options(found.kind, kinds.map((kind) => [kind, kind]), kinds[0]);
  options(found.run, ids.map((id) => [id, `${DATA.runs[id].arm}, seed ${DATA.runs[id].seed} (${id})`]), ids[0]);
  options(found.part, [["", "whole update"], ...parts.filter((part) => part.startsWith("expert ")).map((part) => [part, part])], "");
  const valuesOf = (id) => {
    const have = own.runs[id], part = found.part.value;
    const chosen = part ? have[part] : have.update || have.expected;
    return chosen && chosen[found.measure.value] ? chosen[found.measure.value] : null;
  };
  const draw = () => {
    const lines = found.view.value === "lines";
    hide(found.kind, !lines);
    hide(found.run, lines);
    hide(found.panel, !lines || found.panel.options.length < 2);
    hide(found.logy, !lines);
    hide(found.part, parts.every((part) => !part.startsWith("expert ")));
    const drawn = lines ? layerLines(valuesOf, ids.filter((id) => panelOf(id) === found.panel.value), found) : layerMap(valuesOf, kinds, found);
    Plotly.react(place, drawn.traces, layout(drawn.layout), CONFIG);
    document.getElementById("layers-note").textContent = layersNote(found.measure.value, drawn.num, lines);
  };
  box.addEventListener("input", draw);
  draw();
  onRun(place);
}

function layersNote(measure, num, lines) {
  const own = DATA.layers;
  const missing = own.reasons[measure] ? ` Missing values: ${own.reasons[measure].join("; ")}.` : "";
  const band = lines && own.bands[measure] ? " Grey: a random subspace, with its 95 % band." : "";
  const what = lines ? `One line per run, ${runsOf(num)}.` : `${num} modules.`;
  return `${what}${band}${missing} ${own.left_out}`.trim();
}

function layerLines(valuesOf, ids, found) {
  const own = DATA.layers, kind = found.kind.value, traces = [];
  const places = own.modules.map((module, at) => [module, at]).filter(([[, , its]]) => its === kind);
  const x = places.map(([[, layer]]) => layer);
  const band = own.bands[found.measure.value];
  if (band) {
    const [low, middle, high] = band.map((values) => places.map(([, at]) => values[at]));
    traces.push({ type: "scatter", mode: "lines", x, y: low, line: { width: 0 }, hoverinfo: "skip", showlegend: false });
    traces.push({ type: "scatter", mode: "lines", x, y: high, line: { width: 0 }, fill: "tonexty", fillcolor: "rgba(136,136,136,0.25)", hoverinfo: "skip", showlegend: false });
    traces.push({ type: "scatter", mode: "lines", x, y: middle, name: "random subspace", line: { color: GREY, dash: "dash", width: 1.2 }, hoverinfo: "name+y" });
  }
  let num = 0;
  for (const [arm, runs] of byArm(ids)) {
    let first = true;
    for (const id of runs) {
      const values = valuesOf(id);
      if (!values) continue;
      const y = places.map(([, at]) => values[at]), look = DATA.looks[arm];
      traces.push({
        type: "scatter", mode: "lines+markers", name: esc(arm), legendgroup: esc(arm), showlegend: first, x, y,
        customdata: x.map(() => id), hoverinfo: "text", opacity: 0.85,
        text: places.map(([[name]], i) => `${describe(id)}<br>${esc(name)}: ${y[i] === null ? "no value" : esc(shortNumber(y[i]))}`),
        line: { color: look.colour, width: 1.2 }, marker: { color: look.colour, symbol: look.symbol, size: 6 },
      });
      first = false;
      num += 1;
    }
  }
  return { traces, num, layout: {
    xaxis: { title: axisTitle("layer"), dtick: x.length > 16 ? undefined : 1 },
    yaxis: { title: axisTitle(titleOf(found.measure.value)), type: found.logy.checked ? "log" : "linear" },
  } };
}

function layerMap(valuesOf, kinds, found) {
  const own = DATA.layers, values = valuesOf(found.run.value) || [];
  const depths = [...new Set(own.modules.map(([, layer]) => layer))].sort((a, b) => a - b);
  const z = kinds.map(() => depths.map(() => null)), text = kinds.map(() => depths.map(() => "no module"));
  own.modules.forEach(([name, layer, kind], at) => {
    const row = kinds.indexOf(kind), column = depths.indexOf(layer);
    z[row][column] = values[at] === undefined ? null : values[at];
    text[row][column] = `${esc(name)}<br>${z[row][column] === null ? "no value" : esc(shortNumber(z[row][column]))}`;
  });
  const num = values.filter((value) => value !== null).length;
  const traces = [{ type: "heatmap", showlegend: false, x: depths.map(String), y: kinds.map(esc), z, text, hoverinfo: "text", colorscale: "Viridis", xgap: 1, ygap: 1,
    colorbar: { thickness: 12, outlinewidth: 0, title: { text: "" } } }];
  return { traces, num, layout: { xaxis: { title: axisTitle("layer"), type: "category" }, yaxis: { type: "category", autorange: "reversed" } } };
}
