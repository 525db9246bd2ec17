// What the local server answers, and how it is asked. The session's cookie carries the token.

export interface Summary {
  key: string;
  kind: "run" | "file";
  title: string;
  method: string;
  task: string;
  created: string;
  status: "complete" | "interrupted" | "running" | "problem" | string;
  problem: string;
  seconds: number | null;
  numbers: string[];
}

export type Colours = "gray" | "viridis" | "determinant" | "labels";

/** One label of a segmentation. */
export interface Class {
  value: number;
  name: string;
  colour: string;
}

export interface Layer {
  name: string;
  label: string;
  kind: "reference" | "method" | "read-out" | "baseline" | "map" | "labels" | "surface" | "file";
  unit: string;
  colours: Colours;
  range: [number, number] | null;
  classes: Class[];
  large: boolean;
}

/** What can be rendered from a field in a box of any size. */
export interface Quantity {
  name: string;
  label: string;
  unit: string;
  colours: Colours;
}

export interface Column {
  key: string;
  label: string;
  unit?: string;
  better?: string;
  note?: string;
  digits?: number | null;
}

export interface Row {
  name: string;
  label: string;
  kind: string;
  values: Record<string, number>;
}

export interface Facts {
  title?: string;
  command?: string;
  table?: { columns: Column[]; rows: Row[] };
  warnings?: string[];
  notes?: string[];
  citation?: string;
}

export interface Item extends Summary {
  facts: Facts;
  layers: Layer[];
  window: [number, number] | null;
  figures: string[];
  report: boolean;
  quantities: Quantity[];
  measured: boolean;
  stoppable: boolean;
}

export interface Step {
  stage: string;
  step: number;
  of: number;
  seconds: number;
  loss: Record<string, number>;
  held_out?: number | null;
}

export const address = (key: string, rest = ""): string => `api/items/${key}${rest}`;
export const layerAddress = (key: string, layer: Layer, coarse = false): string =>
  address(key, `/layers/${encodeURIComponent(layer.name)}${coarse ? "?coarse=1" : ""}`);

async function answer<T>(response: Response): Promise<T> {
  if (response.ok) return (await response.json()) as T;
  const text = await response.text();
  let said = text;
  try {
    said = (JSON.parse(text) as { error: string }).error;
  } catch {
    // plain text already
  }
  throw new Error(said || `the server answered ${response.status}`);
}

export const items = async (): Promise<Summary[]> =>
  (await answer<{ items: Summary[] }>(await fetch("api/items"))).items;
export const item = async (key: string): Promise<Item> => answer<Item>(await fetch(address(key)));
export const stop = async (key: string): Promise<void> => {
  await answer<unknown>(await fetch(address(key, "/stop"), { method: "POST" }));
};

export async function bytes(path: string, signal?: AbortSignal): Promise<ArrayBuffer> {
  const response = await fetch(path, { signal });
  if (!response.ok) await answer(response);
  return response.arrayBuffer();
}

export function detail(
  key: string,
  what: string,
  centre: readonly number[],
  size: number,
  voxels: number,
  signal: AbortSignal,
): Promise<ArrayBuffer> {
  const place = centre.map((v) => v.toFixed(4)).join(",");
  const query = `what=${encodeURIComponent(what)}&centre=${place}&size=${size.toFixed(4)}&voxels=${voxels}`;
  return bytes(address(key, `/detail.nii.gz?${query}`), signal);
}

interface Heard {
  steps: (new_: Step[]) => void;
  status?: (now: string) => void;
  preview?: () => void;
}

/** News of a run: steps in bunches, word of new pictures, its status; returns how to stop listening. */
export function news(key: string, heard: Heard): () => void {
  const source = new EventSource(address(key, "/events"));
  source.addEventListener("steps", (event) => heard.steps(JSON.parse(event.data) as Step[]));
  source.addEventListener("preview", () => heard.preview?.());
  source.addEventListener("status", (event) => {
    const now = JSON.parse(event.data) as string;
    heard.status?.(now);
    if (now !== "running") source.close();
  });
  return () => source.close();
}
