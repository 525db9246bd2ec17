// A run that is being fitted: its curves, what it looks like by now, and Stop.

import { address, Item, news, stop } from "./api";
import { Chart } from "./chart";
import { h } from "./dom";
import { message, Raster } from "./raster";

export function live(body: HTMLElement, item: Item, done: () => void): () => void {
  const chart = new Chart();
  const ours = item.stoppable;
  const said = h(
    "p",
    { class: "quiet", role: "status" },
    ours ? "The fit is running." : "This run has not finished: it is being fitted, or was killed.",
  );
  const button = h("button", { type: "button", class: "stop" }, "Stop and keep the result");
  button.addEventListener("click", () => {
    button.disabled = true;
    said.textContent = "Stopping after this step; rivals and report follow …";
    stop(item.key).catch((error: Error) => (said.textContent = error.message));
  });
  const pictures = h("div", { class: "rasters" });
  const caption = h("p", { class: "quiet" }, "");
  const preview = h("section", { class: "preview", hidden: true }, h("h2", {}, "As it is now"), pictures, caption);
  body.append(
    h("section", { class: "live" }, said, ours ? button : null, h("div", { class: "forming" }, chart.element, preview)),
  );

  let busy = false;
  const draw = async (): Promise<void> => {
    if (busy) return; // the next word of pictures comes soon
    busy = true;
    try {
      const found = await message(address(item.key, "/preview"));
      pictures.replaceChildren(...found.pictures.map((picture) => new Raster(picture, false).element));
      caption.textContent = `Rendered from the field between two steps: stage ${found["stage"]}, step ${found["step"]}.`;
      preview.dataset["step"] = String(found["step"]);
      preview.hidden = false;
    } catch {
      // the fit has just ended, and its pictures with it
    } finally {
      busy = false;
    }
  };
  return news(item.key, {
    steps: (steps) => chart.add(steps),
    preview: () => void draw(),
    status: (status) => {
      if (status === "complete" || status === "interrupted") done();
    },
  });
}

/** The curves of a run that has ended. */
export function convergence(body: HTMLElement, item: Item): () => void {
  const chart = new Chart();
  const section = h("section", { hidden: true }, h("h2", {}, "Convergence"), chart.element);
  body.append(section);
  return news(item.key, {
    steps: (steps) => {
      section.hidden = false;
      chart.add(steps);
    },
  });
}
