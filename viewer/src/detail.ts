// A box around the crosshair, rendered from the field on a finer grid while one zooms: more than the voxels hold.

import { NVImage } from "@niivue/niivue";
import { detail } from "./api";
import { h, later } from "./dom";
import { instance, naturalView, Stage } from "./stage";

const VOXELS = 128; // along the box's longest edge; a slice gets four times that
const FROM_ZOOM = 1.25;

export class Detail {
  readonly element = h("section", { class: "detail", hidden: true });
  private readonly canvas = h("canvas", { "aria-label": "detail rendered from the field" });
  private readonly caption = h("p", { class: "quiet", "aria-live": "polite" });
  private readonly spinner = h("span", { class: "spinner", hidden: true, role: "status", "aria-label": "rendering" });
  private readonly nv = instance();
  private attached = false;
  private size = 0;
  private zoom = 1;
  private running: AbortController | null = null;
  private readonly request = later(450, () => void this.render());

  constructor(
    private readonly key: string,
    private readonly stage: Stage,
  ) {
    const step = (factor: number) => (): void => {
      this.size *= factor;
      this.request();
    };
    this.canvas.addEventListener("wheel", (event) => step(event.deltaY < 0 ? 0.7 : 1 / 0.7)(), { passive: true });
    this.element.append(
      h(
        "div",
        { class: "bar" },
        h("strong", {}, "Detail from the field"),
        h("button", { click: step(0.5), title: "half the box" }, "closer"),
        h("button", { click: step(2), title: "twice the box" }, "wider"),
        h("button", { click: () => (this.element.hidden = true) }, "close"),
        this.spinner,
      ),
      h("div", { class: "plate" }, this.canvas),
      this.caption,
    );
  }

  /** The view has moved: past a zoom, the detail follows it. */
  follow(): void {
    if (this.stage.zoom === this.zoom && this.element.hidden) return;
    this.zoom = this.stage.zoom;
    if (this.zoom < FROM_ZOOM && this.element.hidden) return;
    this.open(this.zoom < FROM_ZOOM ? 4 : 2 * this.zoom);
  }

  /** Shows a box of a part of the image around the crosshair. */
  open(part = 4): void {
    const extent = this.extent();
    if (!extent) return;
    this.element.hidden = false;
    this.size = extent / part;
    this.request();
  }

  private extent(): number {
    const sizes = this.stage.volume?.hdr?.dims.slice(1, 4) ?? [];
    const spacing = this.stage.volume?.hdr?.pixDims.slice(1, 4) ?? [];
    return Math.max(...sizes.map((n, k) => n * spacing[k]), 0);
  }

  private async render(): Promise<void> {
    this.running?.abort();
    const running = (this.running = new AbortController());
    this.spinner.hidden = false;
    try {
      if (!this.attached) {
        await this.nv.attachToCanvas(this.canvas);
        this.attached = true;
      }
      const flat = (this.stage.volume?.hdr?.dims.slice(1, 4) ?? []).includes(1);
      const centre = this.stage.crosshair;
      const size = Math.min(this.size, this.extent());
      const data = await detail(this.key, centre, size, flat ? 4 * VOXELS : VOXELS, running.signal);
      const volume = await NVImage.loadFromUrl({ url: data, name: "detail.nii.gz", colormap: "gray" });
      const shown = this.stage.volume;
      if (shown) [volume.cal_min, volume.cal_max] = [shown.cal_min, shown.cal_max];
      while (this.nv.volumes.length) this.nv.removeVolumeByIndex(0);
      this.nv.addVolume(volume);
      this.nv.setSliceType(naturalView(volume));
      const spacing = volume.hdr?.pixDims[1] ?? 0;
      const dims = volume.hdr?.dims.slice(1, 4).join(" × ") ?? "";
      this.caption.textContent = `${size.toFixed(1)} mm around the crosshair: ${dims} points, ${spacing.toPrecision(3)} mm apart`;
      this.element.dataset["spacing"] = String(spacing);
    } catch (error) {
      if (running.signal.aborted) return;
      this.caption.textContent = error instanceof Error ? error.message : String(error);
    } finally {
      if (this.running === running) this.spinner.hidden = true;
    }
  }
}
