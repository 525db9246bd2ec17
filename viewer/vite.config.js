import { defineConfig } from "vite";

// The page goes into the Python package, which serves it from `/` and its scripts from `/assets/`.
export default defineConfig({
  base: "./",
  build: { outDir: "../src/scanfield/view/static", emptyOutDir: true, assetsDir: "assets", chunkSizeWarningLimit: 4000 },
});
