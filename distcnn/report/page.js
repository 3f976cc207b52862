"use strict";
// Draw the figures in the page's theme, redraw them when it changes, and give each a legend of buttons.
(() => {
  const figures = JSON.parse(document.getElementById("data").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const hidden = new Map(figures.map((figure) => [figure.id, new Set()]));

  const draw = (figure) => {
    const text = colour("--text"), quiet = colour("--quiet"), rule = colour("--rule");
    const traces = figure.traces.map((trace) => {
      const own = colour(`--c${trace.colour % 8}`);
      const themed = { ...trace, visible: !hidden.get(figure.id).has(trace.group), showlegend: false };
      if (trace.scale) return { ...themed, colorscale: [[0, colour("--low")], [1, colour("--high")]] };
      const marker = { color: own, size: 6, line: { color: colour("--page"), width: trace.type === "bar" ? 1 : 0 } };
      return { ...themed, line: { ...trace.line, color: own }, marker };
    });
    const axis = { gridcolor: rule, zerolinecolor: rule, linecolor: rule, tickfont: { color: quiet } };
    const label = (given) => ({ ...axis, ...given, title: { standoff: 12, ...given.title, font: { color: quiet, size: 12 } } });
    const layout = {
      height: 300, margin: { l: 60, r: 12, t: 12, b: 48 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: text, family: "system-ui, DejaVu Sans, sans-serif" }, hovermode: "x unified",
      hoverlabel: { bgcolor: colour("--panel"), bordercolor: rule, font: { color: text }, namelength: -1 }, dragmode: false,
      ...figure.layout,
      xaxis: label(figure.layout.xaxis), yaxis: label(figure.layout.yaxis),
      shapes: (figure.layout.shapes || []).map((shape) => ({ ...shape, line: { ...shape.line, color: quiet } })),
    };
    const where = document.getElementById(`plot-${figure.id}`);
    return Plotly.react(where, traces, layout, { responsive: true, displayModeBar: false });
  };

  const legend = (figure) => {
    const box = document.getElementById(`legend-${figure.id}`);
    const groups = [...new Map(figure.traces.filter((t) => t.group).map((t) => [t.group, t.colour]))];
    if (groups.length < 2) return;
    for (const [group, number] of groups) {
      const button = document.createElement("button");
      button.type = "button";
      button.innerHTML = group;  // already escaped, by report/figures.py
      button.style.setProperty("--swatch", `var(--c${number % 8})`);
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        const off = hidden.get(figure.id);
        if (!off.delete(group)) off.add(group);
        button.setAttribute("aria-pressed", String(!off.has(group)));
        draw(figure);
      });
      box.append(button);
    }
  };

  figures.forEach(legend);
  const all = () => Promise.all(figures.map(draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  // Show the numbers before several megabytes of plotting code are parsed.
  requestAnimationFrame(() => setTimeout(() => {
    const code = document.createElement("script");
    code.textContent = document.getElementById("plotly").textContent;
    document.head.append(code);
    all().then(() => document.body.setAttribute("data-drawn", "yes"));
  }));
})();
