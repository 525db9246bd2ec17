// What was measured, what the result predicts, and what is left: sinograms, views, slices, k-space, as pictures.

import { address, Item } from "./api";
import { h } from "./dom";
import { message, Message, Raster } from "./raster";

interface Series {
  name: string;
  choices: string[];
}

export function measured(body: HTMLElement, item: Item): void {
  if (!item.measured) return;
  const pictures = h("div", { class: "rasters" });
  const note = h("p", { class: "quiet" }, "");
  const bar = h("div", { class: "bar" });
  const section = h("section", { class: "measured" }, h("h2", {}, "Measured and predicted"), bar, pictures, note);
  body.append(section);
  let asked: AbortController | null = null;

  const show = async (name: string | null, index: number): Promise<void> => {
    asked?.abort();
    const mine = (asked = new AbortController());
    const query = `?index=${index}${name === null ? "" : `&series=${encodeURIComponent(name)}`}`;
    try {
      const found = await message(address(item.key, `/measurements${query}`), mine.signal);
      if (!bar.childElementCount) bar.append(...choices(found));
      pictures.replaceChildren(...found.pictures.map((one) => new Raster(one, found["shown"] !== "slice").element));
      note.textContent = String(found["note"]);
      section.dataset["index"] = String(found["index"]);
    } catch (error) {
      if (!mine.signal.aborted) note.textContent = error instanceof Error ? error.message : String(error);
    }
  };

  const choices = (found: Message): HTMLElement[] => {
    const all = found["series"] as Series[];
    const which = h("select", { "aria-label": "what was measured" }, ...all.map((one) => h("option", { value: one.name }, one.name)));
    const at = h("input", { type: "range", min: 0, value: 0, "aria-label": "which of them" });
    const said = h("output", { class: "quiet" }, "");
    const series = (): Series => all.find((one) => one.name === which.value)!;
    const update = (): void => {
      const { choices, name } = series();
      at.max = String(choices.length - 1);
      at.hidden = choices.length < 2;
      said.textContent = choices[Number(at.value)];
      at.setAttribute("aria-valuetext", said.textContent);
      void show(name, Number(at.value));
    };
    which.addEventListener("change", () => {
      at.value = "0";
      update();
    });
    at.addEventListener("input", update);
    at.max = String(all[0].choices.length - 1);
    at.hidden = all[0].choices.length < 2;
    said.textContent = all[0].choices[0];
    return [all.length > 1 ? which : h("span", {}, all[0].name), at, said];
  };
  void show(null, 0);
}
