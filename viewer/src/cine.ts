// Play and pause through the frames of a series.

import { h } from "./dom";
import { Stage } from "./stage";

const USUAL_MS = 100;

export class Cine {
  readonly element = h("div", { class: "cine", hidden: true });
  private timer = 0;
  private count = 1;
  private step = USUAL_MS;
  private readonly at = h("input", { type: "range", min: 0, value: 0, "aria-label": "frame" });
  private readonly button = h("button", { type: "button", click: () => this.toggle() }, "play");
  private readonly said = h("output", { class: "quiet" }, "");

  constructor(private readonly stage: Stage) {
    this.at.addEventListener("input", () => this.show(Number(this.at.value)));
    this.element.append(h("span", { class: "row" }, this.button, this.at), this.said);
  }

  /** So many frames, with so many seconds from one to the next (0: not known). */
  frames(count: number, seconds: number): void {
    this.count = count;
    this.step = seconds > 0.005 && seconds < 2 ? Math.max(40, 1000 * seconds) : USUAL_MS;
    this.at.max = String(count - 1);
    this.element.hidden = count < 2;
    if (count < 2) this.stop();
    else this.show(Math.min(Number(this.at.value), count - 1));
  }

  stop(): void {
    window.clearInterval(this.timer);
    this.timer = 0;
    this.button.textContent = "play";
  }

  private show(frame: number): void {
    this.at.value = String(frame);
    this.said.textContent = `frame ${frame + 1} of ${this.count}`;
    this.stage.frame(frame);
  }

  private toggle(): void {
    if (this.timer) {
      this.stop();
      return;
    }
    this.button.textContent = "pause";
    this.timer = window.setInterval(() => this.show((Number(this.at.value) + 1) % this.count), this.step);
  }
}
