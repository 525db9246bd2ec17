// Two panes one above the other: an image, and another one behind a slider or in the squares of a checkerboard.

import { NVImage, SLICE_TYPE } from "@niivue/niivue";
import { Layer } from "./api";
import { h } from "./dom";
import { naturalView, Pane } from "./pane";

export const VIEWS: Record<string, SLICE_TYPE> = {
  "slices and 3-D": SLICE_TYPE.MULTIPLANAR,
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  "3-D": SLICE_TYPE.RENDER,
};

export type Mixing = "curtain" | "checkerboard";

const IMAGE_KINDS = new Set(["method", "read-out", "baseline", "reference", "file"]);

export const isImage = (layer: Layer): boolean => IMAGE_KINDS.has(layer.kind);
export const isOverlay = (layer: Layer): boolean => layer.kind === "map" || layer.kind === "labels";

export interface Look {
  base: Layer | null;
  against: Layer | null;
  mixing: Mixing;
  overlays: Layer[];
  surfaces: Layer[];
  window: [number, number] | null;
  opacity: number;
}

export class Stage {
  readonly element = h("div", { class: "stage" });
  readonly readout = h("output", { class: "readout", "aria-label": "position and values at the crosshair" }, "");
  readonly legend = h("div", { class: "legends" });
  /** Called when crosshair or zoom were moved here, not by another stage. */
  moved: () => void = () => {};
  /** Stages whose crosshair and zoom follow this one. */
  tied: Stage[] = [];
  private readonly behind: Pane;
  private readonly front: Pane;
  private readonly slider = h("input", {
    type: "range",
    min: 0,
    max: 100,
    value: 50,
    class: "curtain",
    input: () => this.mix(),
  });
  private readonly names = h("div", { class: "names" });
  private readonly said = h("p", { class: "said", role: "status" }, "");
  private look: Look | null = null;
  private first = true;

  constructor(key: string) {
    this.behind = new Pane(key);
    this.front = new Pane(key);
    this.front.canvas.classList.add("front");
    this.front.canvas.hidden = this.slider.hidden = true;
    this.element.append(this.behind.canvas, this.front.canvas, this.slider, this.names, this.said);
  }

  async start(): Promise<void> {
    await this.attach(this.behind);
  }

  /** A pane costs a second of making its shaders ready: the one in front waits until it is wanted. */
  private async attach(pane: Pane): Promise<void> {
    if (pane.attached) return;
    pane.canvas.hidden = false; // a hidden canvas has no size
    await pane.attach();
    pane.nv.setSliceType(this.behind.nv.opts.sliceType);
    pane.nv.onLocationChange = () => this.followed(pane);
    pane.moved = () => {
      this.followed(pane);
      this.moved();
    };
  }

  free(): void {
    for (const pane of this.panes) pane.free();
  }

  get volume(): NVImage | undefined {
    return this.behind.volume;
  }

  get crosshair(): [number, number, number] {
    return this.behind.crosshair;
  }

  /** 1 shows everything; 2 half of it. */
  get zoom(): number {
    return this.behind.zoom;
  }

  async show(look: Look): Promise<void> {
    this.look = look;
    this.said.textContent = "loading …";
    try {
      if (this.behind.waits([look.base, ...look.overlays].filter((layer) => layer !== null))) {
        await this.behind.show(look.base, look.overlays, look.surfaces, look.opacity, true);
        this.shown(look);
        this.said.textContent = "a coarse first look; loading …";
        await new Promise((resolve) => window.setTimeout(resolve, 50)); // it is drawn before the rest is unpacked
      }
      await this.behind.show(look.base, look.overlays, look.surfaces, look.opacity, false);
      for (const element of [this.front.canvas, this.slider]) element.hidden = !look.against;
      if (look.against) {
        await this.attach(this.front);
        await this.front.show(look.against, look.overlays, look.surfaces, look.opacity, false);
      }
      this.said.textContent = "";
    } catch (error) {
      this.said.textContent = error instanceof Error ? error.message : String(error);
      return;
    }
    this.shown(look);
  }

  /** What follows when images have arrived. */
  private shown(look: Look): void {
    const volume = this.volume;
    if (volume) this.window(...(look.window ?? ([volume.cal_min ?? 0, volume.cal_max ?? 1] as [number, number])));
    if (this.first && volume) this.slices(naturalView(volume));
    this.first = false;
    if (look.against) this.front.follow(this.behind);
    this.legend.replaceChildren(...this.behind.legends());
    this.mix();
    this.read();
  }

  window(low: number, high: number): void {
    if (this.look) this.look.window = [low, high];
    for (const pane of this.seen) pane.window(low, high);
  }

  slices(type: SLICE_TYPE): void {
    for (const pane of this.panes) pane.nv.setSliceType(type);
  }

  opacity(value: number): void {
    if (this.look) this.look.opacity = value;
    for (const pane of this.seen) {
      for (let k = this.look?.base ? 1 : 0; k < pane.nv.volumes.length; k++) pane.nv.setOpacity(k, value);
    }
  }

  interpolation(nearest: boolean): void {
    for (const pane of this.panes) pane.nv.setInterpolation(nearest);
  }

  zoomBy(factor: number): void {
    this.behind.zoomBy(factor);
  }

  frame(index: number): void {
    for (const pane of this.seen) {
      for (const volume of pane.nv.volumes) {
        if ((volume.nFrame4D ?? 1) > 1) pane.nv.setFrame4D(volume.id, index);
      }
    }
    this.read();
  }

  /** Takes crosshair and zoom of another stage. */
  follow(other: Stage): void {
    for (const pane of this.seen) {
      pane.follow(other.behind);
      pane.thin();
    }
    this.read();
  }

  private get panes(): Pane[] {
    return [this.behind, this.front].filter((pane) => pane.attached);
  }

  private get seen(): Pane[] {
    return this.look?.against && this.front.attached ? [this.behind, this.front] : [this.behind];
  }

  private followed(pane: Pane): void {
    for (const other of this.seen) if (other !== pane) other.follow(pane);
    for (const stage of this.tied) stage.follow(this);
    for (const shown of this.seen) shown.thin();
    this.read();
  }

  /** How much of the image in front is seen, and where. */
  private mix(): void {
    const look = this.look;
    const at = Number(this.slider.value);
    const squares = look?.mixing === "checkerboard";
    this.slider.setAttribute("aria-label", squares ? "size of the checkerboard's squares" : "curtain between the two images");
    this.slider.setAttribute("aria-valuetext", squares ? `${this.side(at)} pixels` : `${at} percent`);
    const style = this.front.canvas.style;
    style.clipPath = squares ? "" : `inset(0 0 0 ${at}%)`;
    const side = 2 * this.side(at);
    style.maskImage = squares ? "repeating-conic-gradient(#000 0 25%, transparent 0 50%)" : "";
    style.maskSize = squares ? `${side}px ${side}px` : "";
    const [left, right] = squares ? ["◰", "◳"] : ["◀", "▶"];
    this.names.replaceChildren(
      ...(look?.against
        ? [h("span", {}, `${left} ${look.base?.label ?? ""}`), h("span", {}, `${look.against.label} ${right}`)]
        : []),
    );
  }

  private side(at: number): number {
    return Math.round(8 + 1.6 * at);
  }

  private read(): void {
    // A tenth of a millimetre, or of a voxel where these are smaller: cells are measured in micrometres.
    const voxel = Math.min(1, ...(this.volume?.hdr?.pixDims.slice(1, 4) ?? []).filter((size) => size > 0));
    const digits = voxel < 0.1 ? Math.min(9, 1 - Math.floor(Math.log10(voxel))) : 1;
    const mm = this.crosshair.map((v) => v.toFixed(digits).replace("-", "−")).join(", ");
    const values = this.seen.flatMap((pane, k) => (k === 0 ? pane.values() : pane.values().slice(0, 1)));
    this.readout.textContent = [`${mm} mm (RAS+)`, ...values].join("   ");
  }
}
