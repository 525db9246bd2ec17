// The page of one run or file, and of two side by side: images above, numbers, curves and measurements below.

import { address, item as ask, Item } from "./api";
import { h } from "./dom";
import { convergence, live } from "./live";
import { measured } from "./measured";
import { numbers } from "./table";

const IMAGES_FIRST_MS = 1500;

export async function itemPage(main: HTMLElement, key: string): Promise<() => void> {
  void import("./controls"); // NiiVue is on its way while the server answers
  const item = await ask(key);
  entitle(item.title);
  const body = h("div", { class: "item" });
  main.replaceChildren(body);
  body.append(h("h1", {}, item.title));
  if (item.problem) {
    body.append(h("p", { class: "problem", role: "alert" }, item.problem));
    return () => {};
  }
  const leave: (() => void)[] = [];
  const running = item.status === "running";
  if (running) leave.push(live(body, item, () => void itemPage(main, key)));
  const shown = h("section", { "aria-label": "images" });
  body.append(shown);
  if (item.status === "interrupted") body.append(h("p", { class: "problem" }, "This fit was stopped early; the result is as far as it came."));
  results(body, item);
  const below = h("div");
  body.append(below);
  figures(body, item);
  if (running) return () => leave.forEach((end) => end());
  // Images first: curves and measurements would share the processor with them, and are further down.
  const drawn = item.layers.length ? images(shown, item).then(({ leave: end }) => void leave.push(end)) : Promise.resolve();
  await Promise.race([drawn.catch(() => {}), new Promise((resolve) => window.setTimeout(resolve, IMAGES_FIRST_MS))]);
  if (item.kind === "run") leave.push(convergence(below, item));
  measured(below, item);
  await drawn;
  return () => leave.forEach((end) => end());
}

async function images(body: HTMLElement, item: Item) {
  const { Images } = await import("./controls");
  const shown = new Images(item);
  return { shown, leave: await shown.open(body) };
}

export const entitle = (title: string): void => {
  document.getElementById("crumb")!.textContent = title;
  document.title = title ? `${title} – scanfield` : "scanfield";
};

function results(body: HTMLElement, item: Item): void {
  const { table, warnings, notes, command, citation, title } = item.facts;
  if (title) body.append(h("h2", {}, `${item.method}: ${title}`));
  if (table?.rows.length) body.append(numbers(table));
  const said = [...(warnings ?? []).map((w) => `Warning: ${w}`), ...(notes ?? [])];
  if (said.length) body.append(h("ul", { class: "notes" }, ...said.map((text) => h("li", {}, text))));
  if (command) body.append(h("pre", { class: "command", tabindex: 0, role: "region", "aria-label": "command" }, command));
  if (item.report) body.append(h("p", {}, h("a", { href: address(item.key, "/report.html"), target: "_blank" }, "report")));
  if (citation) body.append(h("p", { class: "quiet" }, citation));
}

function figures(body: HTMLElement, item: Item): void {
  if (!item.figures.length) return;
  const pictures = item.figures.map((name) => {
    const said = name.replace(/\.\w+$/, "");
    const src = address(item.key, `/figures/${encodeURIComponent(name)}`);
    return h("figure", {}, h("img", { src, alt: `figure ${said} of the report`, loading: "lazy" }), h("figcaption", {}, said));
  });
  body.append(h("details", {}, h("summary", {}, "figures"), ...pictures));
}

/** Two items side by side, their crosshairs, zoom and window tied. */
export async function comparePage(main: HTMLElement, keys: string[]): Promise<() => void> {
  void import("./controls");
  const pair = await Promise.all(keys.map(ask));
  entitle(pair.map((item) => item.title).join(" | "));
  const tied = h("input", { type: "checkbox" });
  tied.checked = true;
  const columns = pair.map(() => h("div", { class: "column" }));
  main.replaceChildren(
    h("h1", { class: "unseen" }, "two runs side by side"),
    h("label", { class: "toggle" }, tied, "tie crosshairs, zoom and window"),
    h("div", { class: "columns" }, ...columns),
  );
  const leave: (() => void)[] = [];
  const shown: Awaited<ReturnType<typeof images>>["shown"][] = [];
  for (const [k, item] of pair.entries()) {
    columns[k].append(h("h2", {}, item.title));
    if (item.problem) columns[k].append(h("p", { class: "problem" }, item.problem));
    const place = h("section", { "aria-label": `images of ${item.title}` });
    columns[k].append(place);
    results(columns[k], item);
    if (item.layers.length) {
      const drawn = await images(place, item);
      leave.push(drawn.leave);
      shown.push(drawn.shown);
    }
  }
  if (shown.length === 2) {
    const { tie } = await import("./controls");
    const update = (): void => tie(shown[0], shown[1], tied.checked);
    tied.addEventListener("change", update);
    update();
  }
  return () => leave.forEach((end) => end());
}
