// Which page: `#/` lists, `#/item/KEY` shows one, `#/compare/KEY/KEY` two.

import { h } from "./dom";
import { comparePage, itemPage } from "./page";
import { startPage } from "./start";
import "./style.css";

let leave: () => void = () => {};

async function route(): Promise<void> {
  leave();
  leave = () => {};
  const main = document.getElementById("main")!;
  const [page, ...keys] = location.hash.replace(/^#\//, "").split("/");
  document.getElementById("crumb")!.textContent = "";
  try {
    if (page === "item") leave = await itemPage(main, keys[0]);
    else if (page === "compare") leave = await comparePage(main, keys.slice(0, 2));
    else await startPage(main);
  } catch (error) {
    const said = error instanceof Error ? error.message : String(error);
    main.replaceChildren(h("p", { class: "problem", role: "alert" }, said));
  }
}

window.addEventListener("hashchange", () => void route());
void route();
