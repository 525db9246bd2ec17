// A box around the crosshair, rendered from the field on a finer grid while one zooms: more than the voxels hold.

import { NVImage, SHOW_RENDER } from "@niivue/niivue";
import { detail, Quantity } from "./api";
import { rampLegend } from "./colours";
import { h, later } from "./dom";
import { coloured, instance, naturalView, scaleOf } from "./pane";
import { free, withoutGradients } from "./quick";
import { Stage } from "./stage";

const VOXELS = 96; // along the box's longest edge, which software rendering still draws in time
const PIXELS = 512; // of a slice
const FROM_ZOOM = 1.25;

export class Detail {
  readonly element = h("section", { class: "detail", hidden: true });
  private readonly canvas = h("canvas", { tabindex: 0, role: "img", "aria-label": "detail rendered from the field" });
  private readonly caption = h("p", { class: "quiet", "aria-live": "polite" });
  private readonly legend = h("div", { class: "legends" });
  private readonly what = h("select", { "aria-label": "what is rendered", change: () => this.request() });
  private readonly spinner = h("span", { class: "spinner", hidden: true, role: "status", "aria-label": "rendering" });
  private readonly nv = instance(SHOW_RENDER.NEVER);
  private attached = false;
  private size = 0;
  private zoom = 1;
  private running: AbortController | null = null;
  private readonly request = later(450, () => void this.render());

  constructor(
    private readonly key: string,
    private readonly quantities: Quantity[],
    private readonly stage: Stage,
  ) {
    this.what.append(...quantities.map((one, k) => h("option", { value: k }, one.label)));
    const step = (factor: number) => (): void => {
      this.size *= factor;
      this.request();
    };
    this.canvas.addEventListener("wheel", (event) => step(event.deltaY < 0 ? 0.7 : 1 / 0.7)(), { passive: true });
    this.element.append(
      h(
        "div",
        { class: "bar" },
        h("h2", {}, "Detail from the field"),
        quantities.length > 1 ? this.what : null,
        h("button", { type: "button", click: step(0.5), title: "half the box" }, "closer"),
        h("button", { type: "button", click: step(2), title: "twice the box" }, "wider"),
        h("button", { type: "button", click: () => (this.element.hidden = true) }, "close"),
        this.spinner,
      ),
      h("div", { class: "plate" }, this.canvas),
      this.legend,
      this.caption,
    );
  }

  free(): void {
    this.running?.abort();
    if (this.attached) free(this.nv);
    this.attached = false;
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
        withoutGradients(this.nv);
        this.attached = true;
      }
      const flat = (this.stage.volume?.hdr?.dims.slice(1, 4) ?? []).includes(1);
      const centre = this.stage.crosshair;
      const size = Math.min(this.size, this.extent());
      const what = this.quantities[Number(this.what.value)];
      const data = await detail(this.key, what.name, centre, size, flat ? PIXELS : VOXELS, running.signal);
      const volume = await NVImage.loadFromUrl({ url: data, name: "detail.nii.gz", colormap: "gray" });
      this.dress(volume, what);
      while (this.nv.volumes.length) this.nv.removeVolumeByIndex(0);
      this.nv.addVolume(volume);
      this.nv.setSliceType(naturalView(volume));
      const spacing = volume.hdr?.pixDims[1] ?? 0;
      const dims = volume.hdr?.dims.slice(1, 4).join(" × ") ?? "";
      this.caption.textContent = `${size.toFixed(1)} mm around the crosshair: ${dims} points, ${spacing.toPrecision(3)} mm apart`;
      this.element.dataset["spacing"] = String(spacing);
      this.element.dataset["what"] = what.name;
    } catch (error) {
      if (running.signal.aborted) return;
      this.caption.textContent = error instanceof Error ? error.message : String(error);
    } finally {
      if (this.running === running) this.spinner.hidden = true;
    }
  }

  /** An image has the window of the one above it, a map its own scale. */
  private dress(volume: NVImage, what: Quantity): void {
    this.legend.replaceChildren();
    if (what.colours === "gray") {
      const shown = this.stage.volume;
      if (shown) [volume.cal_min, volume.cal_max] = [shown.cal_min, shown.cal_max];
      return;
    }
    const scale = scaleOf(what, volume.img ?? new Float32Array());
    coloured(volume, what, scale, false);
    this.legend.replaceChildren(rampLegend(what, scale));
  }
}
