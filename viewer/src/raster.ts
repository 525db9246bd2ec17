// Pictures that arrive as numbers (see the server's `view.raster`): drawn, windowed and read out here.

import { bytes } from "./api";
import { ramp } from "./colours";
import { h, short } from "./dom";

export interface Picture {
  label: string;
  shape: [number, number];
  block: [number, number];
  unit: string;
  axes: [string, string];
  pixel: [number, number];
  window: [number, number];
  colours: "gray" | "difference";
  edges: [string, string, string, string] | null;
  values: Float32Array;
}

export interface Message {
  pictures: Picture[];
  [fact: string]: unknown;
}

export async function message(path: string, signal?: AbortSignal): Promise<Message> {
  const data = await bytes(path, signal);
  const size = new DataView(data).getUint32(0, true);
  const facts = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, size))) as Message;
  let start = 4 + size;
  for (const picture of facts.pictures) {
    const count = picture.shape[0] * picture.shape[1];
    picture.values = new Float32Array(data, start, count);
    start += 4 * count;
  }
  return facts;
}

/** One picture with its scale. A value is read by pointing at it, or with the arrow keys. */
export class Raster {
  readonly element: HTMLElement;
  private readonly canvas = h("canvas", { tabindex: 0, role: "img" });
  private readonly cursor = h("span", { class: "cursor", hidden: true });
  private readonly readout = h("output", { class: "readout" }, "");
  private at: [number, number] = [0, 0];

  /** `stretched` fills its place whatever the pixels' shape: for pictures whose axes are no lengths. */
  constructor(
    private readonly picture: Picture,
    stretched: boolean,
  ) {
    const [rows, columns] = picture.shape;
    const { label, unit, edges, axes } = picture;
    const tall = (rows * picture.pixel[0]) / (columns * picture.pixel[1]);
    this.canvas.setAttribute(
      "aria-label",
      `${label}: ${rows} × ${columns} values, ${axes[0]} downwards, ${axes[1]} to the right, ${this.range()}; arrow keys read values`,
    );
    this.at = [Math.floor(rows / 2), Math.floor(columns / 2)];
    const frame = h(
      "div",
      { class: "frame", style: stretched ? "" : `aspect-ratio:${1 / tall}` },
      this.canvas,
      this.cursor,
      ...(edges ?? []).map((letter, k) => h("span", { class: `edge ${["left", "right", "top", "bottom"][k]}` }, letter)),
    );
    const bar = h("span", { class: "ramp", style: `background:${ramp(picture.colours)}` });
    const [low, high] = picture.window.map((v) => short(v));
    this.element = h(
      "figure",
      { class: "raster" },
      h("figcaption", {}, label),
      frame,
      h("div", { class: "scale" }, low, bar, `${high}${unit && unit !== "1" ? ` ${unit}` : ""}`),
      this.readout,
    );
    this.draw();
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("keydown", (event) => this.move(event));
    this.canvas.addEventListener("focus", () => this.read());
  }

  private range(): string {
    const [low, high] = this.picture.window.map((v) => short(v));
    return `scale from ${low} to ${high} ${this.picture.unit}`.trim();
  }

  private draw(): void {
    const { shape, window: [low, high], values, colours } = this.picture;
    [this.canvas.height, this.canvas.width] = shape;
    const context = this.canvas.getContext("2d")!;
    const image = context.createImageData(shape[1], shape[0]);
    const pixels = new Uint32Array(image.data.buffer);
    const table = lookup(colours);
    const factor = 255 / Math.max(high - low, 1e-30);
    for (let k = 0; k < values.length; k++) {
      pixels[k] = table[Math.max(0, Math.min(255, Math.round((values[k] - low) * factor)))];
    }
    context.putImageData(image, 0, 0);
  }

  private point(event: PointerEvent): void {
    const box = this.canvas.getBoundingClientRect();
    const [rows, columns] = this.picture.shape;
    this.at = [
      Math.floor(((event.clientY - box.top) / box.height) * rows),
      Math.floor(((event.clientX - box.left) / box.width) * columns),
    ];
    this.read();
  }

  private move(event: KeyboardEvent): void {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const by = event.shiftKey ? 10 : 1;
    this.at = [this.at[0] + by * step[0], this.at[1] + by * step[1]];
    this.read();
  }

  private read(): void {
    const { shape, values, axes, block, unit } = this.picture;
    this.at = this.at.map((v, k) => Math.max(0, Math.min(shape[k] - 1, v))) as [number, number];
    const place = this.at.map((v, k) => `${axes[k]} ${v * block[k] + 1}`).join(", ");
    const value = short(values[this.at[0] * shape[1] + this.at[1]]);
    this.readout.textContent = `${place}: ${value}${unit && unit !== "1" ? ` ${unit}` : ""}`;
    this.cursor.hidden = false;
    this.cursor.style.left = `${(100 * (this.at[1] + 0.5)) / shape[1]}%`;
    this.cursor.style.top = `${(100 * (this.at[0] + 0.5)) / shape[0]}%`;
  }
}

/** Black to white, or blue over white to red; as the pixels of a canvas. */
function lookup(colours: "gray" | "difference"): Uint32Array {
  const table = new Uint32Array(256);
  for (let k = 0; k < 256; k++) {
    const t = k / 255;
    const [r, g, b] =
      colours === "gray"
        ? [k, k, k]
        : t < 0.5
          ? [33, 102, 172].map((c) => c + (247 - c) * 2 * t)
          : [178, 24, 43].map((c) => c + (247 - c) * 2 * (1 - t));
    table[k] = (255 << 24) | (Math.round(b) << 16) | (Math.round(g) << 8) | Math.round(r);
  }
  return table;
}
