// What Cloudflare calls: the worker's own exports, behind a guard.
//
// A panic in wasm leaves its instance unusable. The next call gets a fresh one, and the Durable Object is made anew from its storage. Every other
// call of that isolate is lost with it, which is why the gate does not panic; this is for when it does.
import * as worker from "./index.js";

const instance = worker.__worker_init_state();

function renew() {
  if (instance.criticalError) {
    worker.__wbg_reset_state();
    instance.criticalError = false;
    instance.instanceId++;
  }
}

async function guard(call) {
  renew();
  try {
    return await call();
  } catch (error) {
    if (error instanceof WebAssembly.RuntimeError) instance.criticalError = true;
    throw error;
  }
}

addEventListener("error", (event) => {
  if (event.error instanceof WebAssembly.RuntimeError) instance.criticalError = true;
});

export default {
  fetch(request, env, context) {
    const answer = guard(() => worker.fetch(request, env, context));
    // A caller who leaves before it takes nothing along.
    context.waitUntil(answer);
    return answer;
  },
};

export class Keeper {
  #arguments;
  #keeper;
  #instanceId;

  constructor(state, env) {
    this.#arguments = [state, env];
    this.#make();
  }

  #make() {
    renew();
    this.#keeper = new worker.Keeper(...this.#arguments);
    this.#instanceId = instance.instanceId;
  }

  #call(method, ...values) {
    if (this.#instanceId !== instance.instanceId || instance.criticalError) this.#make();
    return guard(() => this.#keeper[method](...values));
  }

  fetch(request) {
    return this.#call("fetch", request);
  }

  alarm() {
    return this.#call("alarm");
  }
}
