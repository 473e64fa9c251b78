// The module as a page uses it, and beside the command: both say the same about the same files. `cargo xtask test --only checker` runs this
// with the module's folder in CHECKER and the command in TOLLGATE.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const folder = process.env.CHECKER;
const { check, initSync, schema } = await import(pathToFileURL(join(folder, "tollgate_checker.js")));
initSync({ module: readFileSync(join(folder, "tollgate_checker_bg.wasm")) });

const find = (text, strict = false) => JSON.parse(check("policy.yaml", text, strict)).files[0];

test("a policy without mistakes has no findings", () => {
  assert.deepEqual(find("scope: global\nnetwork:\n  allowlist: [api.openai.com]\n"), { path: "policy.yaml", errors: [], warnings: [] });
});

test("every mistake is found at once, at its place", () => {
  const { errors, warnings } = find("scope: nobody\nextra: 1\nbudget:\n  daily_limit_usd: -1\n");
  assert.deepEqual(errors.map(({ code, path, line, column }) => [code, path, line, column]), [
    ["P201", "scope", 1, 8],
    ["P205", "budget.daily_limit_usd", 4, 20],
  ]);
  assert.deepEqual(warnings.map(({ code, line }) => [code, line]), [["P101", 2]]);
  assert.equal(find("scope: global\nextra: 1\n", true).errors[0].code, "P101");
});

test("zones, patterns and conditions are checked too", () => {
  const zone = "scope: global\nschedule:\n  active_hours: {start: '09:00', end: '18:00', timezone: Europe/Berln}\n";
  assert.equal(find(zone).errors[0].code, "P204");
  assert.deepEqual(find(zone.replace("Berln", "Berlin")).errors, []);
  assert.equal(find("scope: global\ndata:\n  sensitive_patterns: ['\\Qa\\E']\n").errors[0].code, "P209");
  const condition = find("scope: global\ntools:\n  bash: {requires_approval_if: 'governance_level >= L4'}\n").errors[0];
  assert.match(condition.message, /`L4` is not a governance level/);
});

test("hostile text is refused quickly, and the module goes on", () => {
  const start = performance.now();
  for (const text of ["&a [*a]", "[".repeat(100_000), "a: 1\n".repeat(200_000), "\u0000", "scope: " + "x".repeat(900_000)]) {
    assert.notEqual(find(text).errors.length, 0);
  }
  assert.ok(performance.now() - start < 5_000);
  assert.deepEqual(find("scope: global\n").errors, []);
});

test("the schema is the command's", () => {
  const printed = spawnSync(process.env.TOLLGATE, ["schema"]);
  assert.deepEqual(JSON.parse(schema()), JSON.parse(String(printed.stdout)));
});

test("the command says the same", () => {
  const home = mkdtempSync(join(tmpdir(), "tollgate-checker-"));
  const texts = ["scope: global\n", "scope: nobody\nextra: 1\n", "", "a: [", "scope: team:x\nscope: team:y\n", "spec: {scope: global}\n"];
  texts.forEach((text, number) => {
    const file = join(home, `policy-${number}.yaml`);
    writeFileSync(file, text);
    const printed = spawnSync(process.env.TOLLGATE, ["check", "--format", "json", file]);
    assert.deepEqual(JSON.parse(check(file, text, false)), JSON.parse(String(printed.stdout)), text);
  });
});
