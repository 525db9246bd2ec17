// Which page: `#/` lists, `#/item/KEY` shows one, `#/compare/KEY/KEY` two.

import { h } from "./dom";
import { comparePage, entitle, itemPage } from "./page";
import { startPage } from "./start";
import "./style.css";

let leave: () => void = () => {};
let visits = 0;

async function route(): Promise<void> {
  const visit = (visits += 1);
  leave();
  leave = () => {};
  const main = document.getElementById("main")!;
  const [page, ...keys] = location.hash.replace(/^#\//, "").split("/");
  entitle("");
  try {
    if (page === "item") left(visit, await itemPage(main, keys[0]));
    else if (page === "compare") left(visit, await comparePage(main, keys.slice(0, 2)));
    else await startPage(main);
  } catch (error) {
    const said = error instanceof Error ? error.message : String(error);
    main.replaceChildren(h("p", { class: "problem", role: "alert" }, said));
  }
}

/** What frees a page; at once, if it was left before all of it was there. */
function left(visit: number, free: () => void): void {
  if (visit === visits) leave = free;
  else free();
}

window.addEventListener("hashchange", () => void route());
void route();
