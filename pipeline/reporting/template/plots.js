// Draws the figures and applies the choices. Each figure's data stands in the page as JSON, beside its plot.
"use strict";
(() => {
  const settings = {
    responsive: true,
    displaylogo: false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };
  // On a narrow screen a drag belongs to scrolling, not to zooming.
  const narrow = window.matchMedia("(max-width: 700px)").matches;

  const draw = (source) => {
    const plot = document.getElementById(source.dataset.plot);
    const figure = JSON.parse(source.textContent);
    const small = plot.closest(".panel") !== null;
    if (narrow) {
      figure.layout.dragmode = false;
      if (!small) figure.layout.margin.l = 44;
      figure.layout.font.size = 12;
      for (const [part, values] of Object.entries(figure.narrow)) {
        figure.layout[part] = typeof values === "object" ? { ...figure.layout[part], ...values } : values;
      }
      plot.style.height = `${figure.layout.height}px`;
    }
    if (small) figure.layout.font.size = 12;
    Plotly.newPlot(plot, figure.data, figure.layout, { ...settings, displayModeBar: narrow || small ? false : "hover" });
    for (const group of plot.closest("figure")?.querySelectorAll("fieldset") ?? []) {
      group.addEventListener("change", (event) => {
        const choice = figure.choices[group.dataset.group][Number(event.target.value)];
        if (choice.layout.height) plot.style.height = `${choice.layout.height}px`;
        Plotly.update(plot, choice.data, choice.layout);
      });
    }
  };

  // What is folded away has no width to be drawn in: it is drawn when it is first opened, or printed.
  const waiting = new Set(document.querySelectorAll("script.figure"));
  const drawShown = () => {
    for (const source of waiting) {
      if (document.getElementById(source.dataset.plot).offsetParent === null) continue;
      waiting.delete(source);
      draw(source);
    }
  };
  drawShown();
  document.addEventListener("toggle", drawShown, true);

  // Paper has another width than the window, and Plotly must be told.
  const resize = () => {
    for (const plot of document.querySelectorAll(".js-plotly-plot")) {
      if (plot.offsetParent !== null) Plotly.Plots.resize(plot);
    }
  };
  window.addEventListener("beforeprint", resize);
  window.addEventListener("afterprint", resize);
})();
