// NiiVue without the work that nothing here shows, which on a machine without a graphics card takes seconds.

import { Niivue } from "@niivue/niivue";

type Shader = NonNullable<Niivue["blurShader"]>;

/** Gives the graphics memory of a canvas back now: browsers allow some sixteen, and collect the others' remains late. */
export function free(nv: Niivue): void {
  nv.cleanup();
  nv.gl.getExtension("WEBGL_lose_context")?.loseContext();
}

/**
 * After every change of window, overlay or frame NiiVue computes the gradient of the whole volume for lit renderings,
 * slice by slice, and waits for each. We light nothing: the two shaders are replaced by one that draws nothing, and the
 * question after each slice is answered without waiting. To be called once the canvas is attached.
 */
export function withoutGradients(nv: Niivue): void {
  const gl = nv.gl;
  const program = gl.createProgram();
  const parts: [number, string][] = [
    [gl.VERTEX_SHADER, "#version 300 es\nvoid main() { gl_Position = vec4(2.0, 2.0, 0.0, 1.0); }"],
    [gl.FRAGMENT_SHADER, "#version 300 es\nprecision highp float; out vec4 c; void main() { c = vec4(0.0); }"],
  ];
  for (const [kind, source] of parts) {
    const shader = gl.createShader(kind)!;
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  const idle = { uniforms: {}, use: () => gl.useProgram(program) } as unknown as Shader;
  nv.blurShader = nv.sobelFirstOrderShader = idle;
  gl.checkFramebufferStatus = () => gl.FRAMEBUFFER_COMPLETE;
}
