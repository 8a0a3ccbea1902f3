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

  for (const source of document.querySelectorAll("script.figure")) {
    const plot = document.getElementById(source.dataset.plot);
    const figure = JSON.parse(source.textContent);
    if (narrow) {
      figure.layout.dragmode = false;
      figure.layout.margin.l = 44;
      figure.layout.font.size = 12;
      for (const [part, values] of Object.entries(figure.narrow)) {
        figure.layout[part] = typeof values === "object" ? { ...figure.layout[part], ...values } : values;
      }
      plot.style.height = `${figure.layout.height}px`;
    }
    Plotly.newPlot(plot, figure.data, figure.layout, { ...settings, displayModeBar: narrow ? false : "hover" });
    for (const group of plot.closest("figure").querySelectorAll("fieldset")) {
      group.addEventListener("change", (event) => {
        const choice = figure.choices[group.dataset.group][Number(event.target.value)];
        Plotly.update(plot, choice.data, choice.layout);
      });
    }
  }

  // Paper has another width than the window, and Plotly must be told.
  const resize = () => document.querySelectorAll(".plot").forEach((plot) => Plotly.Plots.resize(plot));
  window.addEventListener("beforeprint", resize);
  window.addEventListener("afterprint", resize);
})();
