// The start page: the runs and files there are, with pictures; two of them can be opened side by side.

import { address, items, Summary } from "./api";
import { duration, h } from "./dom";

const SAID: Record<string, string> = { running: "running", interrupted: "stopped early", problem: "cannot be shown" };

export async function startPage(main: HTMLElement): Promise<void> {
  const found = await items();
  if (found.length === 1) {
    location.replace(`#/item/${found[0].key}`);
    return;
  }
  const chosen = new Set<string>();
  const compare = h("a", { class: "button", "aria-disabled": "true" }, "choose two to see them side by side");
  const update = (): void => {
    const ready = chosen.size === 2;
    compare.textContent = ready ? "side by side" : "choose two to see them side by side";
    if (ready) compare.setAttribute("href", `#/compare/${[...chosen].join("/")}`);
    else compare.removeAttribute("href");
    compare.setAttribute("aria-disabled", String(!ready));
  };
  const cards = found.map((item) =>
    card(item, (on) => {
      if (on) chosen.add(item.key);
      else chosen.delete(item.key);
      update();
    }),
  );
  main.replaceChildren(
    h("div", { class: "bar" }, h("h1", {}, `${found.length} runs and files`), compare),
    h("div", { class: "cards" }, ...cards),
  );
}

function card(item: Summary, choose: (on: boolean) => void): HTMLElement {
  const picture = h("img", { src: address(item.key, "/thumbnail.png"), alt: "", loading: "lazy" });
  picture.addEventListener("error", () => picture.remove());
  const date = item.created ? new Date(item.created).toLocaleString() : "";
  const facts = [item.method, SAID[item.status] ?? "", date, item.seconds == null ? "" : duration(item.seconds)];
  const box = h("input", { type: "checkbox", "aria-label": `choose ${item.title} for a comparison` });
  box.addEventListener("change", () => choose(box.checked));
  return h(
    "article",
    { class: `card ${item.status}` },
    h("a", { href: `#/item/${item.key}`, class: "thumb", "aria-label": item.title }, picture),
    h(
      "div",
      {},
      h("h2", {}, h("a", { href: `#/item/${item.key}` }, item.title)),
      h("p", { class: "quiet" }, facts.filter(Boolean).join(" · ")),
      h("p", {}, item.problem || item.numbers.join(" · ")),
    ),
    item.problem ? null : box,
  );
}
