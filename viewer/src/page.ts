// The page of one run or file: what can be chosen on the left, images in the middle, numbers and news below.

import { address, item as ask, Item, layerAddress, Layer, news, stop } from "./api";
import { Chart } from "./chart";
import { Detail } from "./detail";
import { h } from "./dom";
import { isImage, isOverlay, Look, naturalView, Stage, VIEWS } from "./stage";
import { numbers } from "./table";

export async function itemPage(main: HTMLElement, key: string): Promise<() => void> {
  const item = await ask(key);
  document.getElementById("crumb")!.textContent = item.title;
  const body = h("div", { class: "item" });
  main.replaceChildren(body);
  if (item.problem) {
    body.append(h("p", { class: "problem", role: "alert" }, item.problem));
    return () => {};
  }
  const leave: (() => void)[] = [];
  const running = item.status === "running";
  if (running) leave.push(live(body, item, () => void itemPage(main, key)));
  const shown = h("div");
  body.append(shown);
  if (item.status === "interrupted") body.append(h("p", { class: "problem" }, "This fit was stopped early; the result is as far as it came."));
  results(body, item);
  if (!running && item.kind === "run") leave.push(convergence(body, item));
  figures(body, item);
  if (!running && item.layers.length) leave.push(await images(shown, item)); // last: drawing takes longest
  return () => leave.forEach((end) => end());
}

/** The stage with its controls; returns what frees it. */
export async function images(body: HTMLElement, item: Item): Promise<() => void> {
  const stage = new Stage(item.key);
  const pictures = item.layers.filter(isImage);
  const order: Layer["kind"][] = ["method", "read-out", "file", "baseline", "reference"];
  const first = [...pictures].sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind))[0] ?? null;
  const look: Look = { base: first, against: null, overlays: [], surfaces: [], window: item.window };
  if (!first) look.surfaces = item.layers.filter((layer) => layer.kind === "surface");

  const apply = (): void => void stage.show(look).then(() => refresh());
  const choose = (label: string, none: string | null, set: (layer: Layer | null) => void): HTMLElement => {
    const options = pictures.map((layer, k) => h("option", { value: k }, `${layer.label}${note(layer)}`));
    const select = h("select", {}, ...(none ? [h("option", { value: "" }, none)] : []), ...options);
    if (!none && first) select.value = String(pictures.indexOf(first));
    select.addEventListener("change", () => {
      set(select.value === "" ? null : pictures[Number(select.value)]);
      apply();
    });
    return h("label", {}, label, select);
  };
  const toggles = item.layers
    .filter((layer) => isOverlay(layer) || layer.kind === "surface")
    .map((layer) => {
      const list = isOverlay(layer) ? look.overlays : look.surfaces;
      const box = h("input", { type: "checkbox" });
      box.checked = list.includes(layer);
      box.addEventListener("change", () => {
        if (box.checked) list.push(layer);
        else list.splice(list.indexOf(layer), 1);
        apply();
      });
      return h("label", { class: "toggle" }, box, layer.label);
    });

  const low = h("input", { type: "number", step: "any", "aria-label": "darkest value" });
  const high = h("input", { type: "number", step: "any", "aria-label": "brightest value" });
  const rewindow = (): void => {
    const [a, b] = [Number(low.value), Number(high.value)];
    if (Number.isFinite(a) && Number.isFinite(b) && a < b) {
      look.window = [a, b];
      stage.window(a, b);
    }
  };
  low.addEventListener("change", rewindow);
  high.addEventListener("change", rewindow);
  const opacity = h("input", { type: "range", min: 0, max: 1, step: 0.05, value: 0.45, "aria-label": "overlay opacity" });
  opacity.addEventListener("input", () => stage.opacity(Number(opacity.value)));
  const view = h("select", {}, ...Object.keys(VIEWS).map((name) => h("option", { value: name }, name)));
  view.addEventListener("change", () => stage.slices(VIEWS[view.value]));
  const smooth = h("input", { type: "checkbox" });
  smooth.addEventListener("change", () => stage.interpolation(smooth.checked));
  const detail = item.renders ? new Detail(item.key, stage) : null;
  if (detail) stage.moved = () => detail.follow();
  const cine = new Cine(stage);

  const refresh = (): void => {
    const volume = stage.volume;
    if (volume) {
      low.value = String(Number((volume.cal_min ?? 0).toPrecision(4)));
      high.value = String(Number((volume.cal_max ?? 1).toPrecision(4)));
    }
    cine.frames(volume?.nFrame4D ?? 1);
  };
  const controls = h(
    "aside",
    { class: "controls", "aria-label": "what is shown" },
    ...(first
      ? [
          choose("image", null, (layer) => (look.base = layer)),
          pictures.length > 1 ? choose("curtain with", "nothing", (layer) => (look.against = layer)) : null,
          h("label", {}, "view", view),
          h("label", {}, "window", h("span", { class: "pair" }, low, high)),
          h("label", { class: "toggle" }, smooth, "show voxels"),
        ]
      : []),
    ...(toggles.length ? [h("fieldset", {}, h("legend", {}, "on top"), ...toggles, opacity)] : []),
    cine.element,
    detail ? h("button", { click: () => detail.open() }, "render a detail from the field") : null,
    ...(first ? [h("a", { href: layerAddress(item.key, first), download: first.name }, `save ${first.name}`)] : []),
  );
  const middle = h("div", { class: "middle" }, stage.element, stage.readout);
  body.append(h("div", { class: "viewer" }, controls, middle, ...(detail ? [detail.element] : [])));
  await stage.start();
  await stage.show(look);
  const natural = Object.keys(VIEWS).find((name) => VIEWS[name] === naturalView(stage.volume));
  if (first && natural) view.value = natural;
  refresh();
  return () => cine.stop();
}

const note = (layer: Layer): string =>
  layer.kind === "reference" ? " (reference)" : layer.kind === "baseline" ? " (rival)" : "";

/** Play and pause through the frames of a series. */
class Cine {
  readonly element = h("div", { class: "cine", hidden: true });
  private timer = 0;
  private count = 1;
  private readonly at = h("input", { type: "range", min: 0, value: 0, "aria-label": "frame" });
  private readonly button = h("button", { click: () => this.toggle() }, "play");

  constructor(private readonly stage: Stage) {
    this.at.addEventListener("input", () => stage.frame(Number(this.at.value)));
    this.element.append(this.button, this.at);
  }

  frames(count: number): void {
    this.count = count;
    this.at.max = String(count - 1);
    this.element.hidden = count < 2;
    if (count < 2) this.stop();
  }

  stop(): void {
    window.clearInterval(this.timer);
    this.timer = 0;
    this.button.textContent = "play";
  }

  private toggle(): void {
    if (this.timer) {
      this.stop();
      return;
    }
    this.button.textContent = "pause";
    this.timer = window.setInterval(() => {
      this.at.value = String((Number(this.at.value) + 1) % this.count);
      this.stage.frame(Number(this.at.value));
    }, 100);
  }
}

function live(body: HTMLElement, item: Item, done: () => void): () => void {
  const chart = new Chart();
  const said = h("p", { class: "quiet", role: "status" }, item.stoppable ? "The fit is running." : "This run has not finished: it is being fitted, or was killed.");
  const button = h("button", { class: "stop" }, "Stop and keep the result");
  button.addEventListener("click", () => {
    button.disabled = true;
    said.textContent = "Stopping after this step; rivals and report follow …";
    stop(item.key).catch((error: Error) => (said.textContent = error.message));
  });
  body.append(h("section", { class: "live" }, said, item.stoppable ? button : null, chart.element));
  return news(
    item.key,
    (steps) => chart.add(steps),
    (status) => {
      if (status === "complete" || status === "interrupted") done();
    },
  );
}

function convergence(body: HTMLElement, item: Item): () => void {
  const chart = new Chart();
  const section = h("section", { hidden: true }, h("h2", {}, "Convergence"), chart.element);
  body.append(section);
  return news(
    item.key,
    (steps) => {
      section.hidden = false;
      chart.add(steps);
    },
    () => {},
  );
}

export function results(body: HTMLElement, item: Item): void {
  const { table, warnings, notes, command, citation, title } = item.facts;
  if (title) body.append(h("h2", {}, `${item.method}: ${title}`));
  if (table?.rows.length) body.append(numbers(table));
  const said = [...(warnings ?? []).map((w) => `Warning: ${w}`), ...(notes ?? [])];
  if (said.length) body.append(h("ul", { class: "notes" }, ...said.map((text) => h("li", {}, text))));
  if (command) body.append(h("pre", { class: "command" }, command));
  if (item.report) body.append(h("p", {}, h("a", { href: address(item.key, "/report.html"), target: "_blank" }, "report")));
  if (citation) body.append(h("p", { class: "quiet" }, citation));
}

function figures(body: HTMLElement, item: Item): void {
  if (!item.figures.length) return;
  const pictures = item.figures.map((name) =>
    h(
      "figure",
      {},
      h("img", { src: address(item.key, `/figures/${encodeURIComponent(name)}`), alt: name.replace(".png", ""), loading: "lazy" }),
      h("figcaption", {}, name.replace(".png", "")),
    ),
  );
  body.append(h("details", {}, h("summary", {}, "figures"), ...pictures));
}

/** Two items side by side, their crosshairs tied. */
export async function comparePage(main: HTMLElement, keys: string[]): Promise<() => void> {
  const pair = await Promise.all(keys.map(ask));
  document.getElementById("crumb")!.textContent = pair.map((item) => item.title).join(" | ");
  const columns = pair.map(() => h("div", { class: "column" }));
  main.replaceChildren(h("div", { class: "columns" }, ...columns));
  const leave: (() => void)[] = [];
  for (const [k, item] of pair.entries()) {
    columns[k].append(h("h1", {}, item.title));
    if (item.problem) columns[k].append(h("p", { class: "problem" }, item.problem));
    if (item.layers.length) leave.push(await images(columns[k], item));
    results(columns[k], item);
  }
  return () => leave.forEach((end) => end());
}
