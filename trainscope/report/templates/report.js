// Draws the figures of the JSON island with plotly, in the page's own colours; copies diffs; enlarges samples.
// Reports through data attributes of <body>: ready, errors, overflow.
"use strict";
(() => {
  const body = document.body;
  const errors = [];
  const fail = (what) => { errors.push(String(what)); body.dataset.errors = errors.join(" | "); };
  window.addEventListener("error", (event) => fail(event.message));
  window.addEventListener("unhandledrejection", (event) => fail(event.reason));
  document.addEventListener("securitypolicyviolation", (event) => fail(`${event.violatedDirective}: ${event.blockedURI}`));
  document.documentElement.classList.add("js");

  const figures = JSON.parse(document.getElementById("figures").textContent);
  const coarse = matchMedia("(pointer: coarse)").matches;
  const drawn = new Set();
  let until = Infinity; // the last step that curves show

  // plotly reads some markup in texts: names are data, not markup
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text, most) => (text.length <= most ? text : "…" + text.slice(1 - most));
  const middle = (text, most) => (text.length <= most ? text : text.slice(0, most * 0.4) + "…" + text.slice(1 - most * 0.6));

  const figure = (value) => {
    const text = String(Number(value.toPrecision(3)));
    return value !== 0 && Math.abs(value) < 1e-3 ? Number(value.toPrecision(3)).toExponential() : text;
  };

  function palette() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return {
      ink: of("--ink"), muted: of("--muted"), line: of("--line"), panel: of("--panel"), limit: of("--warning"), bad: of("--error"),
      font: style.getPropertyValue("--sans").trim(), lines: [1, 2, 3, 4, 5, 6].map((index) => of(`--curve-${index}`)),
      scale: [0, 1, 2, 3, 4].map((index) => [index / 4, of(`--heat-${index}`)]),
    };
  }

  function layout(colours, extra) {
    const axis = {
      color: colours.muted, gridcolor: colours.line, linecolor: colours.line, zeroline: false, fixedrange: coarse,
      tickfont: { size: 11 }, exponentformat: "e", minexponent: 4, automargin: true,
      // small numbers whole (5e-7), not by a common power (0.5e-6)
      tickformatstops: [{ dtickrange: [null, 2e-4], value: "~e" }], labelalias: { "0e+0": "0" },
    };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, dragmode: coarse ? false : "zoom",
      font: { family: colours.font, color: colours.muted, size: 11 }, margin: { l: 46, r: 10, t: 20, b: 40 },
      hoverlabel: { bgcolor: colours.panel, bordercolor: colours.line, font: { color: colours.ink, size: 12 } },
      xaxis: {
        ...axis, tickformatstops: [], showgrid: false, showline: true, ticks: "outside", ticklen: 3, nticks: 6, unifiedhovertitle: { text: "step %{x}" },
        title: { text: "step", font: { size: 11 }, standoff: 4 },
      },
      yaxis: { ...axis, nticks: 5 }, ...extra,
    };
  }

  const ends = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

  function curve(spec, colours) {
    const several = spec.lines.length > 1;
    const meant = spec.lines.some((line) => line.mean);
    const xs = spec.lines.flatMap((line) => [...line.x, ...line.bad]);
    const shown = xs.filter((x) => x <= until);
    const range = shown.length ? ends(shown) : [0, 1];
    const [low, high] = ends([...spec.lines.flatMap((line) => line.y).filter((y) => y !== null && (!spec.log || y > 0)), ...spec.thresholds.map((limit) => limit.value)]);
    const log = spec.log && high / low >= 8; // within a decade a logarithmic scale only looks odd
    // a line of several runs has its run's look, the same in every figure
    const traces = [...spec.lines].sort((a, b) => (a.mean || 0) - (b.mean || 0)).map((line, index) => ({
      x: line.x, y: line.y, name: plain(short(line.name, 40)), type: "scatter", 
      mode: line.symbol || line.y.filter((y) => y !== null).length < 40 ? "lines+markers" : "lines",
      line: {
        width: line.mean ? 2.6 : 1.8, color: colours.lines[line.colour ?? index % 6], dash: line.dash ?? (index < 6 ? "solid" : "dot"),
      },
      cliponaxis: false, opacity: meant && !line.mean ? 0.4 : 1,
      marker: line.symbol ? { size: 7, symbol: line.symbol, maxdisplayed: 8 } : { size: 4 },
      hovertemplate: several ? "%{fullData.name}: %{y:.4~g}<extra></extra>" : "%{y:.4~g}<extra></extra>",
    }));
    for (const [key, symbol, name] of [["bad", "x", "not finite"], ["zero", "triangle-down", "0 or below"]]) {
      const steps = spec.lines.flatMap((line) => line[key]);
      if (!steps.length) continue;
      traces.push({
        x: steps, y: steps.map(() => 0.03), yaxis: "y2", name, type: "scatter", mode: "markers", showlegend: true,
        marker: { symbol, size: 7, color: spec.lines.flatMap((line) => line[key].map(() => colours.lines[line.colour] ?? colours.bad)) }, hovertemplate: `${name}<extra></extra>`,
      });
    }
    const annotations = [];
    for (const limit of spec.thresholds) {
      traces.push({
        x: range, y: [limit.value, limit.value], type: "scatter", mode: "lines", showlegend: false, hoverinfo: "skip",
        line: { width: 1.4, dash: "dash", color: colours.limit },
      });
      if (log && limit.value <= 0) continue;
      annotations.push({
        xref: "paper", x: 1, xanchor: "right", y: log ? Math.log10(limit.value) : limit.value, yanchor: limit.value >= high ? "top" : "bottom",
        yshift: limit.value >= high ? -2 : 2, showarrow: false, bgcolor: colours.panel,
        text: plain(short(limit.label, 40)), font: { size: 11, color: colours.limit },
      });
    }
    const shapes = [];
    const across = (step) => (range[1] > range[0] ? Math.min(1, Math.max(0, (step - range[0]) / (range[1] - range[0]))) : 0);
    const upright = (step, line) => shapes.push({ type: "line", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, line });
    const words = (text, step, at) => annotations.push({
      x: step, xanchor: across(step) > 0.6 ? "right" : "left", yref: "paper", showarrow: false, text: plain(short(text, 48)),
      font: { size: 11, color: colours.muted }, ...at,
    });
    const places = spec.places.slice(0, 3);
    places.forEach(({ step, last, whole, label }, index) => {
      if (!whole) {
        upright(step, { width: 1.2, dash: "dot", color: colours.limit });
        if (last > step) {
          shapes.push({
            type: "rect", x0: step, x1: Math.min(last, range[1]), yref: "paper", y0: 0, y1: 1, layer: "below", line: { width: 0 },
            fillcolor: colours.limit, opacity: 0.09,
          });
        }
      }
      words(label, whole ? range[0] : step, { y: 1, yanchor: "bottom", yshift: 14 * (places.length - 1 - index) });
    });
    (spec.resumes || []).slice(-8).forEach((step, index) => {
      upright(step, { width: 1, dash: "longdash", color: colours.muted });
      if (index === 0) words("resumed", step, { y: 0, yanchor: "bottom", bgcolor: colours.panel });
    });
    const base = layout(colours, {
      shapes, annotations, hovermode: "x unified", showlegend: spec.legend !== false && (several || traces.some((trace) => trace.showlegend)),
      legend: { orientation: "h", x: 0, y: -0.2, yanchor: "top", font: { size: 11 } }, height: (several ? 256 : 232) + 14 * Math.max(0, places.length - 1),
      margin: { l: 46, r: 10, t: 20 + 14 * Math.max(0, places.length - 1), b: 40 },
      yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
    });
    const pad = 0.02 * (range[1] - range[0]) || 0.5;
    base.xaxis.range = [range[0] - pad, range[1] + pad];
    if (log) {
      const decades = Math.log10(high / low);
      const values = [0, 1, 2].flatMap((n) => (decades >= 2 && n ? [] : Array.from({ length: Math.ceil(decades) + 2 }, (_, index) => [1, 2, 5][n] * 10 ** (Math.floor(Math.log10(low)) + index))));
      Object.assign(base.yaxis, { type: "log", tickformatstops: [], ...(decades >= 5 ? { dtick: Math.ceil(decades / 5) } : { tickvals: values, ticktext: values.map(figure) }) });
    } else if (spec.unit === "share" && low >= 0) {
      base.yaxis.range = [0, 1.04 * Math.max(1, high)];
    } else if (low === 0 && high === 0) {
      base.yaxis.range = [0, 1];
    } else if (low > 0 && (high - low < 0.02 * high || low < 0.3 * high)) {
      base.yaxis.rangemode = "tozero"; // a flat line must look flat, a fall as deep as it is
    }
    return [traces, base];
  }

  function map(spec, colours, width) {
    const known = spec.values.flat().filter((value) => value !== null);
    const [low, high] = ends(known);
    const share = spec.unit === "share" && low >= 0 && high <= 1.5;
    const log = !share && low > 0 && high / low > 300;
    const rows = spec.modules.map((_, index) => index);
    const every = Math.ceil(rows.length / 60);
    const narrow = width < 520;
    const room = narrow ? 20 : 44;
    const z = log ? spec.values.map((row) => row.map((value) => (value === null ? null : Math.log10(value)))) : spec.values;
    const exponents = log ? Array.from({ length: 20 }, (_, index) => Math.floor(Math.log10(low)) + index).filter((e) => e <= Math.log10(high)) : [];
    const trace = {
      type: "heatmap", x: spec.steps, y: rows, z, customdata: spec.values, colorscale: colours.scale, hoverongaps: false, xgap: 0, ygap: 1,
      ...(share || low === high ? { zmin: 0, zmax: share ? 1 : high || 1 } : {}),
      text: spec.modules.map((name) => spec.steps.map(() => plain(name))),
      hovertemplate: "%{text}<br>step %{x}: %{customdata:.3~g}<extra></extra>",
      colorbar: {
        orientation: "h", thickness: 8, len: narrow ? 1 : 0.4, lenmode: "fraction", x: 1, xanchor: "right", y: 1, yanchor: "bottom", ypad: 6, outlinewidth: 0, tickangle: 0,
        tickfont: { size: 11, color: colours.muted }, exponentformat: "e", minexponent: 4, nticks: 4,
        ...(log ? { tickvals: exponents, ticktext: exponents.map((e) => `1e${e}`) } : {}),
      },
    };
    const shown = rows.filter((row) => row % every === 0);
    const base = layout(colours, { height: 80 + Math.max(60, (rows.length > 60 ? 6 : 14) * rows.length), margin: { l: 46, r: 10, t: 36, b: 40 } });
    base.xaxis.title.standoff = 20; // the labels are drawn later here, and would lie on it
    Object.assign(base.yaxis, {
      autorange: "reversed", showgrid: false, tickfont: { size: narrow ? 9 : 10 }, tickformatstops: [], tickvals: shown, ticktext: shown.map((row) => plain(middle(spec.modules[row], room))),
    });
    return [[trace], base];
  }

  // paper has a width of its own, and does not tell it
  const PAPER = 650;
  const onPaper = () => document.documentElement.classList.contains("print");

  async function draw(spec) {
    const place = document.getElementById(spec.id);
    if (!place || place.closest("details:not([open])")) return; // drawn when they open
    const width = onPaper() ? PAPER : place.clientWidth;
    const [traces, base] = spec.kind === "map" ? map(spec, palette(), width) : curve(spec, palette());
    await Plotly.react(place, traces, { ...base, ...(onPaper() ? { width } : {}) }, { displayModeBar: false, responsive: true });
    drawn.add(spec.id);
    place.dataset.drawn = "true";
    if (drawn.size === 1) performance.mark("first-figure");
  }

  // what is seen first is drawn first; the browser gets its breath in between
  const inView = (spec) => {
    const { top, bottom } = document.getElementById(spec.id)?.getBoundingClientRect() ?? { top: 0, bottom: 0 };
    return bottom > 0 && top < innerHeight ? 0 : 1;
  };

  async function drawAll(again) {
    await new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
    for (const spec of figures.map((spec) => [inView(spec), spec]).sort(([a], [b]) => a - b).map(([, spec]) => spec)) {
      if (drawn.has(spec.id) && !again) continue;
      try { await draw(spec); } catch (error) { fail(`${spec.id}: ${error}`); }
      await new Promise((next) => setTimeout(next));
    }
  }

  function measure() {
    body.dataset.overflow = String(document.documentElement.scrollWidth > innerWidth);
  }

  async function copy(button) {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      getSelection().selectAllChildren(source);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  }

  for (const button of document.querySelectorAll(".until")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      until = until === Infinity ? Number(button.dataset.until) : Infinity;
      button.setAttribute("aria-pressed", String(until !== Infinity));
      drawAll(true);
    });
  }
  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.setAttribute("aria-live", "polite");
    button.addEventListener("click", () => copy(button));
  }

  const lightbox = document.getElementById("lightbox");
  const full = document.createElement("a");
  full.rel = "noreferrer noopener";
  full.textContent = "The file in full size";
  lightbox.append(full);
  const pictures = [...document.querySelectorAll(".sheet img")];
  let shown = null;
  const enlarge = (image) => {
    shown = image;
    const large = lightbox.querySelector("img");
    large.src = image.src;
    large.alt = image.alt;
    lightbox.querySelector("p").textContent = image.alt;
    full.hidden = !image.dataset.full;
    if (image.dataset.full) full.href = image.dataset.full;
    if (!lightbox.open) lightbox.showModal();
  };
  for (const image of pictures) {
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    image.addEventListener("click", () => enlarge(image));
    image.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); enlarge(image); }
    });
  }
  lightbox.addEventListener("click", () => lightbox.close());
  lightbox.addEventListener("keydown", (event) => {
    const next = pictures[pictures.indexOf(shown) + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] || 0)];
    if (next && next.closest("tr") === shown.closest("tr")) enlarge(next); // along a row: the same prompt over the run
  });

  document.addEventListener("toggle", (event) => { if (event.target.open) drawAll(false); }, true);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(true));
  window.addEventListener("resize", measure);
  const opened = [];
  window.addEventListener("beforeprint", () => {
    document.documentElement.classList.add("print");
    for (const details of document.querySelectorAll("details:not([open])")) { details.open = true; opened.push(details); }
    figures.forEach((spec) => draw(spec).catch((error) => fail(`${spec.id}: ${error}`)));
  });
  window.addEventListener("afterprint", () => {
    document.documentElement.classList.remove("print");
    opened.splice(0).forEach((details) => { details.open = false; });
    drawAll(true);
  });

  drawAll(false).then(() => { performance.mark("all-figures"); measure(); body.dataset.ready = "true"; });
})();
