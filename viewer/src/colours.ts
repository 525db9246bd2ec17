// Colour maps and what stands beside them: a ramp with its ends and unit, or the names of labels.

import { Class, Colours } from "./api";
import { h, short } from "./dom";

/** Ends of a colour map, and whether there are folded places. */
export interface Scale {
  range: [number, number];
  folds: boolean;
}

type Rgb = [number, number, number];

const hex = (colour: string): Rgb => [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16)) as Rgb;
const css = ([r, g, b]: Rgb): string => `rgb(${r} ${g} ${b})`;

/** Folded places (a determinant of zero or less) are of a colour of their own. */
export const FOLDED = "#c000c0";
const DETERMINANT = ["#2166ac", "#92c5de", "#f7f7f7", "#f4a582", "#b2182b"];
const VIRIDIS = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"];
const DIFFERENCE = ["#2166ac", "#f7f7f7", "#b2182b"];
/** Okabe and Ito (2008): told apart by colour-blind readers, too. */
const LABELS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999"];

const STOPS: Record<string, string[]> = {
  gray: ["#000000", "#ffffff"],
  viridis: VIRIDIS,
  determinant: DETERMINANT,
  difference: DIFFERENCE,
};

export const ramp = (colours: string): string => `linear-gradient(to right, ${(STOPS[colours] ?? STOPS.gray).join(", ")})`;

/**
 * A colour map as NiiVue takes it; of a determinant the lowest entry alone is for folded places. On top of an image
 * nothing is seen where nothing happens: at the low end of a map, where volume is kept.
 */
export function table(colours: Colours, folds: boolean, onTop: boolean): Record<"R" | "G" | "B" | "A" | "I", number[]> {
  const stops = (STOPS[colours] ?? STOPS.gray).map(hex);
  const at = stops.map((_, k) => Math.round((255 * k) / (stops.length - 1)));
  const seen = stops.map((_, k) => (onTop ? (colours === "determinant" ? [255, 200, 0, 200, 255] : [0, 110, 200, 255, 255])[k] : 255));
  if (colours === "determinant" && folds) {
    stops.unshift(hex(FOLDED));
    at.splice(0, 1, 0, 1);
    seen.unshift(255);
  }
  const part = (k: number): number[] => stops.map((rgb) => rgb[k]);
  return { R: part(0), G: part(1), B: part(2), A: seen, I: at };
}

/** Every label that occurs in an image, with the name and colour that are known, or others. */
export function classesOf(values: ArrayLike<number>, known: Class[]): Class[] {
  const found = new Set<number>();
  for (let k = 0; k < values.length; k++) if (values[k] !== 0) found.add(values[k]);
  return [...found]
    .filter((value) => Number.isInteger(value) && value > 0)
    .sort((a, b) => a - b)
    .map((value) => known.find((one) => one.value === value) ?? unnamed(value, found.size === 1));
}

const unnamed = (value: number, alone: boolean): Class => ({
  value,
  name: alone ? "inside" : `label ${value}`,
  colour: LABELS[(value - 1) % LABELS.length],
});

/** The colours of labels as NiiVue takes them: entry k is value k, nothing where there is no label. */
export function labelTable(classes: Class[]): Record<"R" | "G" | "B" | "A" | "I", number[]> & { labels: string[] } {
  const all = [{ value: 0, name: "", colour: "#000000" }, ...classes];
  const part = (k: number): number[] => all.map((one) => hex(one.colour)[k]);
  return {
    R: part(0),
    G: part(1),
    B: part(2),
    A: all.map((one) => (one.value === 0 ? 0 : 255)),
    I: all.map((one) => one.value),
    labels: all.map((one) => one.name),
  };
}

export const rgb255 = (colour: string): [number, number, number, number] => [...hex(colour), 255];

/** "Jacobian determinant  0.6 [ramp] 1.4", with a word on folds. */
export function rampLegend(layer: { label: string; colours: Colours; unit: string }, { range, folds }: Scale): HTMLElement {
  const { label, colours, unit } = layer;
  const said = unit === "1" ? "no unit" : unit;
  return h(
    "div",
    { class: "legend-item" },
    h("strong", {}, `${label}${said ? ` (${said})` : ""}`),
    h(
      "div",
      { class: "scale" },
      short(range[0]),
      h("span", { class: "ramp", style: `background:${ramp(colours)}` }),
      short(range[1]),
    ),
    colours === "determinant" ? h("span", { class: "quiet" }, "1 keeps its volume; less shrinks, more grows") : null,
    folds ? swatch(FOLDED, "0 or less: folded") : null,
  );
}

export function labelLegend(label: string, classes: Class[]): HTMLElement {
  return h(
    "div",
    { class: "legend-item" },
    h("strong", {}, label),
    h("ul", {}, ...classes.map((one) => h("li", {}, swatch(one.colour, one.name)))),
  );
}

const swatch = (colour: string, text: string): HTMLElement =>
  h("span", { class: "swatch" }, h("i", { style: `background:${css(hex(colour))}` }), text);
