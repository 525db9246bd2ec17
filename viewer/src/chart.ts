// Convergence as a small line chart: loss terms and the held-out residual over steps, logarithmic.

import { Step } from "./api";
import { duration, h, short, svg } from "./dom";

const WIDTH = 520;
const HEIGHT = 220;
const MARGIN = { left: 58, right: 10, top: 10, bottom: 30 };
const COLOURS = ["#0b6e99", "#c1581b", "#4f7a28", "#7a4fa0", "#8a6d00", "#a03050"];

export class Chart {
  readonly element = h("figure", { class: "chart" });
  private readonly picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  private readonly legend = h("div", { class: "legend" });
  private readonly progress = h("figcaption", { "aria-live": "polite" });
  private steps: Step[] = [];

  constructor() {
    this.element.append(this.picture, this.legend, this.progress);
  }

  add(steps: Step[]): void {
    const known = new Map(this.steps.map((s) => [`${s.stage}/${s.step}`, s]));
    for (const step of steps) known.set(`${step.stage}/${step.step}`, step);
    this.steps = [...known.values()];
    this.draw();
  }

  private draw(): void {
    const stages = [...new Set(this.steps.map((s) => s.stage))];
    const starts = new Map<string, number>();
    let total = 0;
    for (const stage of stages) {
      starts.set(stage, total);
      total += Math.max(...this.steps.filter((s) => s.stage === stage).map((s) => s.step));
    }
    const lines = new Map<string, [number, number][]>();
    for (const s of this.steps) {
      const x = (starts.get(s.stage) ?? 0) + s.step;
      const values = { ...s.loss, ...(s.held_out == null ? {} : { "held out": s.held_out }) };
      for (const [name, value] of Object.entries(values)) {
        if (value > 0) lines.set(name, [...(lines.get(name) ?? []), [x, Math.log10(value)]]);
      }
    }
    const all = [...lines.values()].flat();
    if (!all.length) return;
    const [low, high] = [Math.min(...all.map((p) => p[1])), Math.max(...all.map((p) => p[1]))];
    const x = (v: number): number => MARGIN.left + (v / Math.max(total, 1)) * (WIDTH - MARGIN.left - MARGIN.right);
    const y = (v: number): number =>
      HEIGHT - MARGIN.bottom - ((v - low) / Math.max(high - low, 1e-9)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    const parts: SVGElement[] = [];
    for (const at of [low, (low + high) / 2, high]) {
      parts.push(
        svg("line", { x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: y(at), y2: y(at), class: "rule" }),
        svg("text", { x: MARGIN.left - 6, y: y(at) + 4, "text-anchor": "end" }, (10 ** at).toPrecision(2)),
      );
    }
    parts.push(svg("text", { x: x(total), y: HEIGHT - 8, "text-anchor": "end" }, `step ${total}`));
    [...lines].forEach(([, points], k) => {
      const path = points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ");
      parts.push(svg("polyline", { points: path, fill: "none", stroke: COLOURS[k % COLOURS.length], "stroke-width": 1.6 }));
    });
    const last = this.steps[this.steps.length - 1];
    this.picture.setAttribute("aria-label", `Convergence of ${[...lines.keys()].join(", ")} over ${total} steps`);
    this.picture.replaceChildren(...parts);
    this.legend.replaceChildren(
      ...[...lines].map(([name, points], k) =>
        h(
          "span",
          { style: `--colour:${COLOURS[k % COLOURS.length]}` },
          `${name} ${short(10 ** points[points.length - 1][1])}`,
        ),
      ),
    );
    if (last) {
      const left = last.of > last.step ? `, ${duration((last.seconds / last.step) * (last.of - last.step))} left` : "";
      this.progress.textContent = `${last.stage}: step ${last.step} of ${last.of}, ${duration(last.seconds)}${left}`;
    }
  }
}
