"use strict";
// Sort a table by a column: numbers by value, text by locale; rows without a value stay last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), column = head.cellIndex;
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value ?? "";
    const numeric = head.classList.contains("number");
    const order = (a, b) => {
      const left = value(a), right = value(b);
      if (left === "" || right === "") return (left === "") - (right === "");
      const sign = numeric ? Math.sign(Number(left) - Number(right)) || 0 : left.localeCompare(right, undefined, { numeric: true });
      return ascending ? sign : -sign;
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(order));
  });
}
// Curves: one cursor per plot, the values at the step nearest to it, a switch of the y scale.
for (const figure of document.querySelectorAll(".curves")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot");
  const cursor = plot.querySelector(".cursor"), tip = plot.querySelector(".tip");
  const scale = figure.querySelector(".scale");
  const [low, high] = data.range;
  const hide = () => { cursor.hidden = tip.hidden = true; };
  const line = (colour, text) => {
    const row = document.createElement("div");
    if (colour) row.appendChild(document.createElement("i")).style.background = colour;
    row.append(text);
    return row;
  };
  const format = (value) => (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6) || value === 0
    ? String(Number(value.toPrecision(5))) : value.toExponential(3);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("pointermove", (event) => {
    const area = plot.getBoundingClientRect();
    const wanted = low + (high - low) * Math.min(1, Math.max(0, (event.clientX - area.left) / area.width));
    const nearestTo = (x, xs) => xs.reduce(
      (best, each, at) => (best < 0 || Math.abs(each - x) < Math.abs(xs[best] - x) ? at : best), -1);
    const nearest = data.series.flatMap((one) => one.x.slice(nearestTo(wanted, one.x)).slice(0, 1))
      .reduce((best, x) => (best === null || Math.abs(x - wanted) < Math.abs(best - wanted) ? x : best), null);
    if (nearest === null) return hide();
    const rows = [line("", `${data.x_label} ${format(nearest)}`)];
    for (const one of data.series) {
      // Long series are thinned each by its own extremes, so theirs may be a neighbouring step.
      const at = nearestTo(nearest, one.x);
      if (at < 0 || one.y[at] === null || Math.abs(one.x[at] - nearest) > (high - low) / 100) continue;
      rows.push(line(one.colour, `${one.name}  ${format(one.y[at])}`));
    }
    const place = high > low ? (nearest - low) / (high - low) : 0.5;
    cursor.style.left = tip.style.left = `${100 * place}%`;
    tip.classList.toggle("left", place > 0.5);
    tip.replaceChildren(...rows);
    cursor.hidden = tip.hidden = false;
  });
  scale?.addEventListener("click", () => {
    const logarithmic = figure.classList.toggle("logarithmic");
    scale.textContent = logarithmic ? "linear scale" : "log scale";
  });
}
