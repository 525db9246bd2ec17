// One canvas of NiiVue with one image, what lies on top of it, and surfaces. What was loaded is kept.

import { cmapper, DRAG_MODE, Niivue, NVImage, NVMesh, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";
import { bytes, Class, Layer, layerAddress } from "./api";
import { classesOf, labelLegend, labelTable, rampLegend, rgb255, Scale, table } from "./colours";
import { h, short } from "./dom";
import { free, withoutGradients } from "./quick";

const KEPT = 8; // images of a pane in memory
const COARSE = "#coarse"; // behind the name of a first look
const CROSSHAIR = 0.4; // percent of the image at zoom 1
const GAP = 8;
const SURFACE = "#dcaa5a";

const AXES: Partial<Record<SLICE_TYPE, [number, number, number]>> = {
  [SLICE_TYPE.AXIAL]: [0, 1, 2],
  [SLICE_TYPE.CORONAL]: [0, 2, 1],
  [SLICE_TYPE.SAGITTAL]: [1, 2, 0],
};
const KEYS: Record<string, [number, number, number]> = {
  ArrowLeft: [-1, 0, 0],
  ArrowRight: [1, 0, 0],
  ArrowUp: [0, 1, 0],
  ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1],
  PageDown: [0, 0, -1],
};

export function instance(render = SHOW_RENDER.ALWAYS): Niivue {
  return new Niivue({
    backColor: [0.07, 0.08, 0.09, 1],
    show3Dcrosshair: true,
    isRadiologicalConvention: true,
    isColorbar: false,
    dragMode: DRAG_MODE.pan,
    multiplanarShowRender: render,
    dragAndDropEnabled: false,
    loadingText: "",
    crosshairWidth: CROSSHAIR,
    crosshairWidthUnit: "percent",
    meshXRay: 0.35, // surfaces inside a volume shine through
    crosshairColor: [0.95, 0.6, 0.1, 0.9],
    crosshairGap: GAP,
    fontMinPx: 13,
    logLevel: "error",
  });
}

/** The plane of an image of one slice, or all planes of a volume. */
export function naturalView(volume: NVImage | undefined): SLICE_TYPE {
  const thin = (volume?.dimsRAS ?? []).slice(1, 4).indexOf(1);
  return [SLICE_TYPE.SAGITTAL, SLICE_TYPE.CORONAL, SLICE_TYPE.AXIAL][thin] ?? SLICE_TYPE.MULTIPLANAR;
}

/** What of a layer a reader needs to know beside it: its scale or its names. */
interface Shown {
  image: NVImage;
  legend: HTMLElement | null;
  classes: Class[];
}

export class Pane {
  readonly canvas = h("canvas", {
    tabindex: 0,
    role: "application",
    "aria-label": "image: arrow keys and page up and down move the crosshair, plus and minus zoom",
  });
  readonly nv = instance();
  /** Called whenever the crosshair or the zoom was moved in this pane. */
  moved: () => void = () => {};
  attached = false;
  private readonly known = new Map<string, Shown>();
  private readonly meshes = new Map<Layer, NVMesh>();
  private layers: { layer: Layer; shown: Shown }[] = [];

  constructor(private readonly key: string) {
    this.canvas.addEventListener("keydown", (event) => this.press(event), { capture: true });
    this.canvas.addEventListener("wheel", () => this.moved(), { passive: true });
    this.canvas.addEventListener("mouseup", () => this.moved());
  }

  async attach(): Promise<void> {
    await this.nv.attachToCanvas(this.canvas);
    withoutGradients(this.nv);
    this.attached = true;
  }

  free(): void {
    if (this.attached) free(this.nv);
    this.attached = false;
  }

  get volume(): NVImage | undefined {
    return this.nv.volumes[0];
  }

  /** World position, mm RAS+, also where the image is oblique and its planes are drawn along its own axes. */
  get crosshair(): [number, number, number] {
    const mm = this.nv.frac2mm(this.nv.scene.crosshairPos, 0, true);
    return [mm[0], mm[1], mm[2]];
  }

  get zoom(): number {
    return this.nv.scene.pan2Dxyzmm[3];
  }

  /** Whether a layer is large and not here yet: a first look comes sooner. */
  waits(layers: Layer[]): boolean {
    return layers.some((layer) => layer.large && !this.known.has(layer.name));
  }

  /** Shows a base image, layers on top of it and surfaces; only what is new is loaded, large ones coarsely if asked. */
  async show(base: Layer | null, overlays: Layer[], surfaces: Layer[], opacity: number, coarse: boolean): Promise<void> {
    const wanted = [...(base ? [base] : []), ...overlays];
    const shown = await Promise.all(wanted.map((layer) => this.load(layer, coarse && this.waits([layer]))));
    for (const old of [...this.nv.volumes]) if (!shown.some((one) => one.image === old)) this.nv.removeVolume(old);
    shown.forEach(({ image }, place) => {
      if (!this.nv.volumes.includes(image)) this.nv.addVolume(image);
      if (this.nv.volumes.indexOf(image) !== place) this.nv.setVolume(image, place);
    });
    shown.slice(base ? 1 : 0).forEach(({ image }) => (image.opacity = opacity));
    if (base) shown[0].image.opacity = 1;
    this.layers = wanted.map((layer, k) => ({ layer, shown: shown[k] }));
    this.nv.updateGLVolume();
    // On slices a surface is what of it lies within half a voxel of them.
    this.nv.opts.meshThicknessOn2D = base ? 0.5 * Math.min(...(shown[0].image.hdr?.pixDims.slice(1, 4) ?? [1])) : Infinity;
    await this.showSurfaces(surfaces);
    for (const [name, one] of this.known) {
      if ((this.known.size > KEPT || name.endsWith(COARSE)) && !shown.includes(one)) this.known.delete(name);
    }
  }

  /** Keeps the crosshair as thin as it is at zoom 1. */
  thin(): void {
    const { opts } = this.nv;
    const zoom = Math.max(this.zoom, 0.5);
    if (opts.crosshairWidth === CROSSHAIR / zoom) return;
    [opts.crosshairWidth, opts.crosshairGap] = [CROSSHAIR / zoom, GAP / zoom];
    this.nv.drawScene();
  }

  legends(): HTMLElement[] {
    return this.layers.flatMap(({ shown }) => shown.legend ?? []);
  }

  window(low: number, high: number): void {
    const volume = this.volume;
    if (!volume) return;
    [volume.cal_min, volume.cal_max] = [low, high];
    this.nv.updateGLVolume();
  }

  /** Name, value and unit of every layer at the crosshair. */
  values(): string[] {
    const mm = this.crosshair;
    return this.layers.flatMap(({ layer, shown }) => {
      const [i, j, k] = shown.image.mm2vox(mm);
      const [n0, n1, n2] = (shown.image.dimsRAS ?? []).slice(1, 4);
      if (i < 0 || j < 0 || k < 0 || i >= n0 || j >= n1 || k >= n2) return [];
      const value = shown.image.getValue(i, j, k, shown.image.frame4D);
      if (layer.kind === "labels") {
        const name = shown.classes.find((one) => one.value === value)?.name;
        return name ? [`${layer.label}: ${name}`] : [];
      }
      const unit = layer.unit && layer.unit !== "1" ? ` ${layer.unit}` : "";
      return [`${layer.label} ${short(value)}${unit}`];
    });
  }

  /** Takes crosshair, zoom and turn of another pane. */
  follow(other: Pane): void {
    if (!this.nv.volumes.length && !this.nv.meshes.length) return;
    other.nv.doSync2d(this.nv);
    other.nv.doSync3d(this.nv);
    this.nv.drawScene();
  }

  zoomBy(factor: number): void {
    const view = this.nv.scene.pan2Dxyzmm;
    const zoom = Math.min(32, Math.max(0.2, view[3] * factor));
    const mm = this.nv.frac2mm(this.nv.scene.crosshairPos);
    for (let k = 0; k < 3; k++) view[k] += (view[3] - zoom) * mm[k];
    view[3] = zoom;
    this.nv.drawScene();
    this.moved();
  }

  private press(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
    event.stopImmediatePropagation(); // NiiVue's own keys are others, and one opens an alert
    // Across the screen, up it, and out of it, as voxel axes of the plane that is seen.
    const [across, up, out] = AXES[this.nv.opts.sliceType] ?? AXES[SLICE_TYPE.AXIAL]!;
    const step = KEYS[event.key];
    if (step && this.volume) {
      const by = [0, 0, 0];
      [across, up, out].forEach((axis, k) => (by[axis] = step[k]));
      if (across === 0) by[0] = -by[0]; // the patient's right is on the left
      this.nv.moveCrosshairInVox(by[0], by[1], by[2]);
      this.moved();
    } else if (event.key === "+" || event.key === "=") this.zoomBy(1.25);
    else if (event.key === "-") this.zoomBy(0.8);
    else return;
    event.preventDefault();
  }

  private async load(layer: Layer, coarse: boolean): Promise<Shown> {
    const key = layer.name + (coarse ? COARSE : "");
    const known = this.known.get(key);
    if (known) return known;
    const url = await bytes(layerAddress(this.key, layer, coarse));
    const name = layer.name.endsWith(".nii") ? layer.name : layer.name.replace(/(\.nii\.gz)?$/, ".nii.gz");
    const image = await NVImage.loadFromUrl({ url, name, colormap: "gray" });
    const shown = dressed(layer, image);
    this.known.set(key, shown);
    return shown;
  }

  private async showSurfaces(surfaces: Layer[]): Promise<void> {
    for (const [layer, mesh] of this.meshes) {
      if (!surfaces.includes(layer)) {
        this.nv.removeMesh(mesh);
        this.meshes.delete(layer);
      }
    }
    for (const layer of surfaces) {
      if (this.meshes.has(layer)) continue;
      const buffer = await bytes(layerAddress(this.key, layer));
      const colour = rgb255(layer.classes[0]?.colour ?? SURFACE);
      const mesh = await NVMesh.readMesh(buffer, layer.name, this.nv.gl, 1, new Uint8Array(colour));
      this.nv.addMesh(mesh);
      this.meshes.set(layer, mesh);
    }
  }
}

/** Gives an image the colours of its layer. */
function dressed(layer: Layer, image: NVImage): Shown {
  const values = image.img ?? new Float32Array();
  if (layer.kind === "labels") {
    const classes = classesOf(values, layer.classes);
    image.setColormapLabel(labelTable(classes));
    return { image, legend: labelLegend(layer.label, classes), classes };
  }
  if (layer.kind !== "map") return { image, legend: null, classes: [] };
  const scale = scaleOf(layer, values);
  coloured(image, layer, scale, true);
  return { image, legend: rampLegend(layer, scale), classes: [] };
}

let tables = 0;

export function coloured(image: NVImage, layer: { colours: Layer["colours"] }, scale: Scale, onTop: boolean): void {
  const name = `scanfield-${layer.colours}-${(tables += 1)}`;
  cmapper.addColormap(name, table(layer.colours, scale.folds, onTop));
  image.setColormap(name);
  [image.cal_min, image.cal_max] = scale.range;
}

/** The ends of a map's colours: as the run says, around 1 for a determinant, from 0 otherwise; without the outermost. */
export function scaleOf(
  layer: { colours: Layer["colours"]; range?: [number, number] | null },
  values: ArrayLike<number>,
): Scale {
  const step = Math.max(1, Math.floor(values.length / 20000));
  const some: number[] = [];
  let folds = false;
  for (let k = 0; k < values.length; k++) {
    if (k % step === 0 && Number.isFinite(values[k])) some.push(values[k]);
    if (values[k] <= 0) folds = true;
  }
  some.sort((a, b) => a - b);
  const at = (part: number): number => some[Math.min(some.length - 1, Math.floor(part * some.length))] ?? 0;
  if (layer.colours === "determinant") {
    const reach = folds ? 1 : Math.max(0.02, Math.min(1, Math.max(1 - at(0.005), at(0.995) - 1)));
    return { range: [1 - reach, 1 + reach], folds };
  }
  if (layer.range) return { range: layer.range, folds: false };
  const low = Math.min(0, at(0.005));
  return { range: [low, Math.max(at(0.995), low + 1e-9)], folds: false };
}
