// The table of numbers: results beside rivals and references, the best of each column marked.

import { Facts } from "./api";
import { h, short } from "./dom";

export function numbers(table: NonNullable<Facts["table"]>): HTMLElement {
  const rows = table.rows;
  const best = table.columns.map((column) => {
    const values = rows.map((row) => row.values[column.key]).filter((v): v is number => typeof v === "number");
    if (!column.better || values.length < 2) return undefined;
    return column.better === "higher" ? Math.max(...values) : Math.min(...values);
  });
  const head = h(
    "tr",
    {},
    h("th", { scope: "col" }, ""),
    ...table.columns.map((column) => {
      const arrow = column.better === "higher" ? " ↑" : column.better === "lower" ? " ↓" : "";
      const label = column.label + (column.unit && column.unit !== "1" ? ` (${column.unit})` : "") + arrow;
      return h("th", { scope: "col", title: column.note ?? "" }, label);
    }),
  );
  const body = rows.map((row) =>
    h(
      "tr",
      { class: row.kind },
      h("th", { scope: "row" }, row.label),
      ...table.columns.map((column, k) => {
        const value = row.values[column.key];
        if (typeof value !== "number") return h("td", {}, "–");
        return h("td", { class: value === best[k] ? "best" : "" }, short(value, column.digits));
      }),
    ),
  );
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, head), h("tbody", {}, ...body)));
}
