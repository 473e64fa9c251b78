// Decides a call in this process: decide.js GATE SETTINGS BUNDLE MODEL, secrets in the environment. GATE is the component as `jco transpile` gives it.
import { readFileSync } from "node:fs";
import { resolve } from "node:path";

const [module, settings, bundle, model] = process.argv.slice(2);
const { calls } = await import(resolve(module));
const bytes = (text) => new TextEncoder().encode(text);

const now = BigInt(Date.now()) * 1000n;
const gate = calls.Gate.open(readFileSync(settings), Object.entries(process.env));
gate.install(readFileSync(bundle), now);
const caller = { agent: "00000000-0000-4000-8000-00000000000a", team: "platform", level: "l1", actsFor: [] };
const head = { ":method": "POST", ":path": "/v1/chat/completions", ":authority": "api.openai.com", "content-type": "application/json" };
const headers = Object.entries(head).map(([name, value]) => [bytes(name), bytes(value)]);
const body = bytes(JSON.stringify({ model, max_tokens: 10, messages: [] }));
const decision = calls.decide(gate, caller, headers, body, now);
console.log(decision.outcome, ...decision.reasons.map((reason) => reason.rule));
