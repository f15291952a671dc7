// Small line charts of the last three minutes, as SVG, with gaps where a value is missing.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 180;
const HEIGHT = 40;

// Each chart: title, unit and lines, with the key of each line's value. A count is drawn as its increase since the
// previous sample.
export const CHARTS = [
  { title: "Results", unit: "/s", lines: [{ key: "fps" }], digits: 1 },
  { title: "Inference", unit: "ms", lines: [{ key: "inference_p50_ms", label: "p50" }, { key: "inference_p99_ms", label: "p99" }], digits: 1 },
  { title: "Age, end to end", unit: "ms", lines: [{ key: "age_p50_ms", label: "p50" }, { key: "age_p99_ms", label: "p99" }], digits: 0 },
  { title: "Lost", unit: "/s", lines: [{ key: "num_dropped", label: "dropped", isCount: true }, { key: "num_stale", label: "stale", isCount: true }], marks: "num_reconnects", digits: 0 },
];

export class Chart {
  constructor(spec, sampled) {
    this.spec = spec;
    this.columns = spec.lines.map((line) => sampled.indexOf(line.key) + 1);
    this.markColumn = spec.marks ? sampled.indexOf(spec.marks) + 1 : 0;
    this.element = document.createElement("figure");
    const caption = this.element.appendChild(document.createElement("figcaption"));
    caption.appendChild(document.createElement("span")).textContent = spec.title;
    this.value = caption.appendChild(document.createElement("span"));
    const svg = this.element.appendChild(document.createElementNS(SVG, "svg"));
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    this.marks = this.path(svg, "mark");
    this.paths = spec.lines.map((line, index) => this.path(svg, index ? "second" : "first"));
    const axis = this.element.appendChild(document.createElement("div"));
    axis.className = "axis";
    axis.setAttribute("aria-hidden", "true");
    axis.appendChild(document.createElement("span")).textContent = "3 min ago";
    this.peak = axis.appendChild(document.createElement("span"));
  }

  path(svg, name) {
    const path = svg.appendChild(document.createElementNS(SVG, "path"));
    path.setAttribute("class", name);
    return path;
  }

  update(samples, newest) {
    const series = this.spec.lines.map((line, index) => points(samples, this.columns[index], line.isCount));
    const largest = Math.max(0, ...series.flat().map((point) => point[1]));
    const top = niceCeiling(largest);
    series.forEach((line, index) => this.paths[index].setAttribute("d", pathOf(line, newest, top)));
    if (this.markColumn) {
      const jumps = points(samples, this.markColumn, true).filter((point) => point[1] > 0);
      this.marks.setAttribute("d", jumps.map((point) => `M${x(point[0], newest)} 0V${HEIGHT}`).join(""));
    }
    this.peak.textContent = `0 to ${top} ${this.spec.unit}`;
    this.value.replaceChildren(...series.map((line, index) => this.now(line, index, newest)));
  }

  now(line, index, newest) {
    const last = line.length && newest - line[line.length - 1][0] < 3 ? line[line.length - 1][1] : null;
    const { label } = this.spec.lines[index];
    const bold = document.createElement("b");
    bold.className = index ? "second" : "first";
    const shown = last === null ? "\u2013" : last.toFixed(this.spec.digits);
    const unit = index === this.spec.lines.length - 1 ? ` ${this.spec.unit}` : "";
    bold.textContent = `${index ? " " : ""}${label ? `${label} ` : ""}${shown}${unit}`;
    return bold;
  }
}

function points(samples, column, isCount) {
  const found = [];
  samples.forEach((sample, index) => {
    if (!isCount && sample[column] !== null) found.push([sample[0], sample[column]]);
    if (isCount && index) {
      const before = samples[index - 1];
      found.push([sample[0], Math.max(0, sample[column] - before[column]) / Math.max(1, sample[0] - before[0])]);
    }
  });
  return found;
}

function pathOf(line, newest, top) {
  let before = -Infinity;
  return line
    .map(([number, value]) => {
      const command = number - before > 2 ? "M" : "L";
      before = number;
      return `${command}${x(number, newest)} ${(HEIGHT - 1 - (value / top) * (HEIGHT - 3)).toFixed(1)}`;
    })
    .join("");
}

function x(number, newest) {
  return WIDTH - (newest - number) - 1;
}

// Rounds up to 1, 2 or 5 times a power of ten, so that the scale does not change with every sample.
function niceCeiling(value) {
  if (value <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}
