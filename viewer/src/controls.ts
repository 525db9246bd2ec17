// The stage of an item with everything that decides what is shown on it. Loaded apart from the page: NiiVue is large.

import { Item, layerAddress, Layer } from "./api";
import { Cine } from "./cine";
import { Detail } from "./detail";
import { h } from "./dom";
import { naturalView } from "./pane";
import { isImage, isOverlay, Look, Mixing, Stage, VIEWS } from "./stage";

const ORDER: Layer["kind"][] = ["method", "read-out", "file", "baseline", "reference"];
const NOTES: Partial<Record<Layer["kind"], string>> = { reference: " (reference)", baseline: " (rival)" };

export class Images {
  readonly stage: Stage;
  /** Called with a window that was chosen here. */
  windowed: (low: number, high: number) => void = () => {};
  private readonly look: Look;
  private readonly pictures: Layer[];
  private readonly low = h("input", { type: "number", step: "any", "aria-label": "darkest value" });
  private readonly high = h("input", { type: "number", step: "any", "aria-label": "brightest value" });
  private readonly view = h("select", { "aria-label": "view" }, ...Object.keys(VIEWS).map((name) => h("option", { value: name }, name)));
  private readonly save = h("a");
  private readonly cine: Cine;
  private readonly detail: Detail | null;

  constructor(private readonly item: Item) {
    this.stage = new Stage(item.key);
    this.pictures = item.layers.filter(isImage);
    const first = [...this.pictures].sort((a, b) => ORDER.indexOf(a.kind) - ORDER.indexOf(b.kind))[0] ?? null;
    const surfaces = item.layers.filter((layer) => layer.kind === "surface");
    const named = item.layers.filter((layer) => layer.kind === "labels" && layer.classes.length);
    const labels = named.filter((layer) => layer.name.startsWith("segmentation"));
    this.look = {
      base: first,
      against: null,
      mixing: "curtain",
      overlays: labels.slice(0, 1), // a segmentation is what its run is about
      surfaces: first ? [] : surfaces,
      window: item.window,
      opacity: 0.45,
    };
    this.cine = new Cine(this.stage);
    this.detail = item.quantities.length ? new Detail(item.key, item.quantities, this.stage) : null;
    this.stage.moved = () => this.detail?.follow();
  }

  /** Puts stage and controls into an element and draws; returns what frees them. */
  async open(body: HTMLElement): Promise<() => void> {
    const middle = h("div", { class: "middle" }, this.stage.element, this.stage.readout, this.stage.legend);
    this.offer();
    body.append(h("div", { class: "viewer" }, this.controls(), middle, this.detail?.element ?? null));
    await this.stage.start();
    await this.stage.show(this.look);
    const natural = Object.keys(VIEWS).find((name) => VIEWS[name] === naturalView(this.stage.volume));
    if (this.look.base && natural) this.view.value = natural;
    this.refresh();
    return () => {
      this.cine.stop();
      this.stage.free();
      this.detail?.free();
    };
  }

  /** The unit of the image that is shown. */
  get unit(): string {
    return this.look.base?.unit ?? "";
  }

  window(low: number, high: number): void {
    this.stage.window(low, high);
    this.refresh();
  }

  private async apply(): Promise<void> {
    this.offer();
    await this.stage.show(this.look);
    this.refresh();
  }

  /** The link that saves the image that is shown. */
  private offer(): void {
    const { base } = this.look;
    if (!base) return;
    this.save.href = layerAddress(this.item.key, base);
    this.save.download = base.name;
    this.save.textContent = `save ${base.name}`;
  }

  private refresh(): void {
    const volume = this.stage.volume;
    if (volume) {
      this.low.value = String(Number((volume.cal_min ?? 0).toPrecision(4)));
      this.high.value = String(Number((volume.cal_max ?? 1).toPrecision(4)));
    }
    this.cine.frames(volume?.nFrame4D ?? 1, volume?.hdr?.pixDims[4] ?? 0);
  }

  private controls(): HTMLElement {
    const { item, look } = this;
    const rewindow = (): void => {
      const [a, b] = [Number(this.low.value), Number(this.high.value)];
      if (!Number.isFinite(a) || !Number.isFinite(b) || a >= b) return;
      this.stage.window(a, b);
      this.windowed(a, b);
    };
    for (const input of [this.low, this.high]) input.addEventListener("change", rewindow);
    this.view.addEventListener("change", () => this.stage.slices(VIEWS[this.view.value]));
    const voxels = h("input", { type: "checkbox" });
    voxels.addEventListener("change", () => this.stage.interpolation(voxels.checked));
    const zoom = (name: string, sign: string, factor: number): HTMLElement =>
      h("button", { type: "button", "aria-label": name, title: name, click: () => this.stage.zoomBy(factor) }, sign);
    return h(
      "aside",
      { class: "controls", "aria-label": `what is shown of ${item.title}` },
      ...(look.base
        ? [
            this.choice("image", null, (layer) => (look.base = layer)),
            this.pictures.length > 1 ? this.choice("compared with", "nothing", (layer) => (look.against = layer)) : null,
            this.pictures.length > 1 ? this.mixing() : null,
            h("label", {}, "view", this.view),
            h("fieldset", { class: "plain" }, h("legend", {}, "window"), h("span", { class: "pair" }, this.low, this.high)),
            h("span", { class: "row" }, zoom("zoom in", "+", 1.25), zoom("zoom out", "−", 0.8), h("label", { class: "toggle" }, voxels, "voxels")),
          ]
        : []),
      this.onTop(),
      this.cine.element,
      this.detail ? h("button", { type: "button", click: () => this.detail?.open() }, "render a detail from the field") : null,
      look.base ? this.save : null,
    );
  }

  private choice(label: string, none: string | null, set: (layer: Layer | null) => void): HTMLElement {
    const options = this.pictures.map((layer, k) => h("option", { value: k }, layer.label + (NOTES[layer.kind] ?? "")));
    const select = h("select", { "aria-label": label }, ...(none ? [h("option", { value: "" }, none)] : []), ...options);
    if (!none && this.look.base) select.value = String(this.pictures.indexOf(this.look.base));
    select.addEventListener("change", () => {
      set(select.value === "" ? null : this.pictures[Number(select.value)]);
      void this.apply();
    });
    return h("label", {}, label, select);
  }

  private mixing(): HTMLElement {
    const select = h("select", { "aria-label": "compared by" }, ...(["curtain", "checkerboard"] as Mixing[]).map((name) => h("option", { value: name }, name)));
    select.addEventListener("change", () => {
      this.look.mixing = select.value as Mixing;
      void this.apply();
    });
    return h("label", {}, "by", select);
  }

  private onTop(): HTMLElement | null {
    const layers = this.item.layers.filter((layer) => isOverlay(layer) || layer.kind === "surface");
    if (!layers.length) return null;
    const toggles = layers.map((layer) => {
      const list = isOverlay(layer) ? this.look.overlays : this.look.surfaces;
      const box = h("input", { type: "checkbox" });
      box.checked = list.includes(layer);
      box.addEventListener("change", () => {
        if (box.checked) list.push(layer);
        else list.splice(list.indexOf(layer), 1);
        void this.apply();
      });
      return h("label", { class: "toggle" }, box, layer.kind === "surface" ? `surface: ${layer.label}` : layer.label);
    });
    const { opacity } = this.look;
    const slider = h("input", { type: "range", min: 0, max: 1, step: 0.05, value: opacity, "aria-label": "opacity of what lies on top" });
    slider.addEventListener("input", () => this.stage.opacity(Number(slider.value)));
    return h("fieldset", {}, h("legend", {}, "on top"), ...toggles, slider);
  }
}

/** Ties crosshair, zoom and, between images of one unit, window of two. */
export function tie(a: Images, b: Images, on: boolean): void {
  a.stage.tied = on ? [b.stage] : [];
  b.stage.tied = on ? [a.stage] : [];
  const same = on && a.unit === b.unit;
  a.windowed = same ? (low, high) => b.window(low, high) : () => {};
  b.windowed = same ? (low, high) => a.window(low, high) : () => {};
  if (on) b.stage.follow(a.stage);
}
