// Volumes and surfaces on a canvas; a second canvas above it for before/after, cut off by a slider.

import { DRAG_MODE, Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";
import { Layer, layerAddress } from "./api";
import { h, short } from "./dom";

export const VIEWS: Record<string, SLICE_TYPE> = {
  "slices and 3-D": SLICE_TYPE.MULTIPLANAR,
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  "3-D": SLICE_TYPE.RENDER,
};
const MAPS: Record<string, string> = { map: "viridis", labels: "random" };
const IMAGE_KINDS = new Set(["method", "read-out", "baseline", "reference", "file"]);

export const isImage = (layer: Layer): boolean => IMAGE_KINDS.has(layer.kind);
export const isOverlay = (layer: Layer): boolean => layer.kind in MAPS;

const middle = (volume: NVImage): [number, number, number] => {
  const [i, j, k] = (volume.dimsRAS ?? [3, 1, 1, 1]).slice(1, 4).map((n) => Math.floor(n / 2));
  return [i, j, k];
};

interface Location {
  mm: Float32Array | number[];
  values: { name: string; value: number }[];
}

/** The plane of an image of one slice, or all planes of a volume. */
export function naturalView(volume: NVImage | undefined): SLICE_TYPE {
  const thin = (volume?.dimsRAS ?? []).slice(1, 4).indexOf(1);
  return [SLICE_TYPE.SAGITTAL, SLICE_TYPE.CORONAL, SLICE_TYPE.AXIAL][thin] ?? SLICE_TYPE.MULTIPLANAR;
}

export function instance(): Niivue {
  return new Niivue({
    backColor: [0.07, 0.08, 0.09, 1],
    show3Dcrosshair: true,
    isRadiologicalConvention: true,
    isColorbar: false,
    dragMode: DRAG_MODE.pan,
    multiplanarShowRender: SHOW_RENDER.AUTO,
    dragAndDropEnabled: false,
    loadingText: "",
    crosshairWidth: 0.6,
    crosshairColor: [0.95, 0.6, 0.1, 0.9],
    crosshairGap: 8,
    textHeight: 0.03,
    logLevel: "error",
  });
}

/** One canvas with one image and overlays on it. */
class Pane {
  readonly canvas = h("canvas", { tabindex: 0, "aria-label": "image; arrow keys move, the wheel zooms" });
  readonly nv = instance();
  base: Layer | null = null;

  async attach(): Promise<void> {
    await this.nv.attachToCanvas(this.canvas);
  }

  async show(key: string, base: Layer | null, overlays: Layer[], surfaces: Layer[], window_: [number, number] | null) {
    this.base = base;
    const volumes = [...(base ? [base] : []), ...overlays].map((layer) => ({
      url: layerAddress(key, layer),
      name: layer.name.endsWith(".nii") ? layer.name : layer.name.replace(/(\.nii\.gz)?$/, ".nii.gz"),
      colormap: MAPS[layer.kind] ?? "gray",
      opacity: layer === base ? 1 : 0.45,
      ...(layer === base && window_ ? { cal_min: window_[0], cal_max: window_[1] } : {}),
    }));
    await this.nv.loadVolumes(volumes);
    await this.nv.loadMeshes(
      surfaces.map((layer) => ({ url: layerAddress(key, layer), name: layer.name, rgba255: [220, 170, 90, 255] as never })),
    );
  }

  window(low: number, high: number): void {
    const volume = this.nv.volumes[0];
    if (!volume) return;
    volume.cal_min = low;
    volume.cal_max = high;
    this.nv.updateGLVolume();
  }
}

export interface Look {
  base: Layer | null;
  against: Layer | null;
  overlays: Layer[];
  surfaces: Layer[];
  window: [number, number] | null;
}

export class Stage {
  readonly element = h("div", { class: "stage" });
  readonly readout = h("output", { class: "readout" }, "");
  crosshair: [number, number, number] = [0, 0, 0];
  moved: () => void = () => {};
  private readonly behind = new Pane();
  private readonly front = new Pane();
  private readonly slider = h("input", {
    type: "range",
    min: 0,
    max: 100,
    value: 50,
    class: "curtain",
    "aria-label": "curtain between the two images",
    input: () => this.curtain(),
  });
  private readonly names = h("div", { class: "names" });
  private look: Look = { base: null, against: null, overlays: [], surfaces: [], window: null };

  constructor(private readonly key: string) {
    this.front.canvas.classList.add("front");
    this.element.append(this.behind.canvas, this.front.canvas, this.slider, this.names);
  }

  async start(): Promise<void> {
    await this.behind.attach();
    await this.front.attach();
    this.behind.nv.broadcastTo([this.front.nv], { "2d": true, "3d": true });
    this.front.nv.broadcastTo([this.behind.nv], { "2d": true, "3d": true });
    for (const pane of [this.behind, this.front]) {
      pane.nv.onLocationChange = (place: unknown) => this.located(place as Location);
      pane.canvas.addEventListener("wheel", () => this.moved(), { passive: true });
      pane.canvas.addEventListener("mouseup", () => this.moved());
    }
    this.curtain();
  }

  get main(): Niivue {
    return this.behind.nv;
  }

  /** 1 shows everything; 2 half of it. */
  get zoom(): number {
    const shown = this.look.against ? [this.behind, this.front] : [this.behind];
    return Math.max(...shown.map((pane) => pane.nv.scene.pan2Dxyzmm[3]));
  }

  get volume(): NVImage | undefined {
    return this.behind.nv.volumes[0];
  }

  async show(look: Look): Promise<void> {
    const before = this.look;
    this.look = look;
    await this.behind.show(this.key, look.base, look.overlays, look.surfaces, look.window);
    const volume = this.volume;
    const window_: [number, number] | null =
      look.window ?? (volume ? [volume.cal_min ?? 0, volume.cal_max ?? 1] : null);
    if (look.against) await this.front.show(this.key, look.against, look.overlays, look.surfaces, window_);
    else if (before.against) await this.front.show(this.key, null, [], [], null);
    for (const element of [this.front.canvas, this.slider]) element.hidden = !look.against;
    if (volume && before.base === null) {
      this.slices(naturalView(volume));
      const nv = this.behind.nv;
      const mm = nv.frac2mm(nv.scene.crosshairPos);
      const values = nv.volumes.map((v) => ({ name: v.name, value: v.getValue(...middle(v)) }));
      this.located({ mm: [mm[0], mm[1], mm[2]], values });
    }
    this.curtain();
  }

  window(low: number, high: number): void {
    this.look.window = [low, high];
    this.behind.window(low, high);
    if (this.look.against) this.front.window(low, high);
  }

  slices(type: SLICE_TYPE): void {
    for (const pane of [this.behind, this.front]) pane.nv.setSliceType(type);
  }

  opacity(value: number): void {
    for (const pane of [this.behind, this.front]) {
      for (let k = 1; k < pane.nv.volumes.length; k++) pane.nv.setOpacity(k, value);
    }
  }

  interpolation(nearest: boolean): void {
    for (const pane of [this.behind, this.front]) pane.nv.setInterpolation(nearest);
  }

  frame(index: number): void {
    for (const pane of [this.behind, this.front]) {
      for (const volume of pane.nv.volumes) {
        if ((volume.nFrame4D ?? 1) > 1) pane.nv.setFrame4D(volume.id, index);
      }
    }
  }

  private curtain(): void {
    const at = Number(this.slider.value);
    this.front.canvas.style.clipPath = `inset(0 0 0 ${at}%)`;
    const { base, against } = this.look;
    this.names.replaceChildren(
      ...(against ? [h("span", {}, `◀ ${base?.label ?? ""}`), h("span", {}, `${against.label} ▶`)] : []),
    );
  }

  private located(place: Location): void {
    this.crosshair = [place.mm[0], place.mm[1], place.mm[2]];
    const unit = this.look.base?.unit ?? "";
    const values = place.values.map((v) => short(v.value)).join(" · ");
    const mm = this.crosshair.map((v) => v.toFixed(1).replace("-", "−")).join(", ");
    this.readout.textContent = `${mm} mm (RAS)   ${values} ${unit}`;
  }
}
