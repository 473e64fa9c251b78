// Conditions against @bufbuild/cel, an implementation of CEL that shares nothing with ours: random conditions of our subset, and CEL's own
// conformance data as far as it lies in the subset.
import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import { join } from "node:path";

// Installed elsewhere: `cargo xtask test --only oracles` says where in TOLLGATE_CEL.
const require = createRequire(join(process.env.TOLLGATE_CEL, "package.json"));
const { isCelError, run } = require("@bufbuild/cel");
const { strings } = require("@bufbuild/cel/ext");
const { getConformanceSuite } = require("@bufbuild/cel-spec/testdata/tests.js");
const { timestampFromMs } = require("@bufbuild/protobuf/wkt");

const CONDITIONS = 20_000;
const SEED = Number(process.argv[2] ?? 20_261_120);

// Not asked: `+` on texts, which joins none here (a condition could make long ones of a short body); and `has` of a member that is null,
// which CEL's definition calls present ("whether the string f is a key in the map") and this implementation absent; and `!(!(x))`, of which
// this implementation makes `x`, whatever that is, where CEL's `!` knows truth values only.

// The call that `policy/examples/oracle.rs` asks about.
const call = {
  agent: "00000000-0000-4000-8000-00000000000a", team: "platform", org: "", tool: "Bash", tools: ["Bash"], model: "",
  method: "POST", host: "tools.example", path: "/mcp", governance_level: 1n, L0: 0n, L1: 1n, L2: 2n, L3: 3n,
  now: timestampFromMs((20_777 * 86_400 + 37_800) * 1000),
};

// mulberry32.
let state = SEED;
const roll = (below) => {
  state = (state + 0x6d2b79f5) | 0;
  let z = Math.imul(state ^ (state >>> 15), 1 | state);
  z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z;
  return Math.floor((((z ^ (z >>> 14)) >>> 0) / 4294967296) * below);
};
const pick = (of) => of[roll(of.length)];

const randomArguments = () => ({
  s: pick(["", "a", "ab", "/tmp/x", "Käse", "😀"]), t: pick(["a", "b", "AB"]), n: pick([0, 1, 2, -3, 9007199254740991]),
  m: pick([0, 1, 7]), yes: pick([true, false]), nothing: null, list: pick([[], ["a"], ["a", "b", 1]]), nums: pick([[], [1, 2, 3]]),
  map: pick([{}, { k: "a" }, { k: 1, deep: { er: "x" } }]),
});

const kinds = {
  text: () => pick([
    () => pick(["team", "org", "tool", "model", "method", "host", "path", "agent"]),
    () => `'${pick(["", "a", "ab", "/tmp", "Bash", "bash", "K", "ä", "\\'", "\\n"])}'`,
    () => `args.${pick(["s", "t"])}`, () => `args['${pick(["s", "t", "missing"])}']`, () => "args.map.k", () => "args.list[0]",
    () => `${text()}.lowerAscii()`,
  ])(),
  number: () => pick([
    () => String(pick([0, 1, 2, 3, 7, 9223372036854775807n])), () => `args.${pick(["n", "m"])}`, () => `args.nums[${roll(4)}]`,
    () => `size(${pick([text, () => "args.list", () => "tools", () => "args.map"])()})`, () => `${text()}.size()`, () => `-${number()}`,
    () => `(${number()} ${pick(["+", "-", "*", "/", "%"])} ${number()})`, () => `now.${pick(["getHours", "getMinutes", "getDayOfWeek"])}()`,
  ])(),
  level: () => pick(["governance_level", "L0", "L1", "L2", "L3"]),
  loose: () => `args.${pick(["s", "n", "yes", "nothing", "missing", "map.k", "map.deep.er", "list[2]", "nothing.x"])}`,
};
const { text, number, level, loose } = kinds;
const order = () => pick(["==", "!=", "<", "<=", ">", ">="]);
const negated = (condition) => (condition.startsWith("!") ? condition : `!(${condition})`);
const condition = (depth) =>
  depth === 0 || roll(4) === 0
    ? pick([
        () => `${text()} ${order()} ${text()}`, () => `${number()} ${order()} ${number()}`, () => `${level()} ${order()} ${level()}`,
        () => `${loose()} ${order()} ${pick([text, number, loose])()}`, () => `${loose()} == ${pick(["true", "false", "null"])}`,
        () => `${text()}.${pick(["startsWith", "endsWith", "contains"])}(${text()})`, () => `${text()} in ['a', 'ab', ${text()}]`,
        () => `${number()} in [1, ${number()}]`, () => `${text()} in ${pick(["tools", "args.list", "args.map", "args"])}`,
        () => `has(args.${pick(["s", "missing", "map.k", "map.deep.er"])})`, () => "args.yes", () => pick(["true", "false"]), loose,
        () => `now ${order()} timestamp('2026-11-20T${pick(["10:30:00Z", "11:30:00+01:00", "12:00:00Z"])}')`,
      ])()
    : pick([
        () => `${condition(depth - 1)} && ${condition(depth - 1)}`, () => `${condition(depth - 1)} || ${condition(depth - 1)}`,
        () => negated(condition(depth - 1)), () => `(${condition(depth - 1)}) ${pick(["==", "!="])} (${condition(depth - 1)})`,
      ])();

// Whole numbers are CEL's `int`, objects its maps, in which a key with null is a key.
const values = (value) => {
  if (typeof value === "number") return BigInt(value);
  if (Array.isArray(value)) return value.map(values);
  if (value && typeof value === "object") return new Map(Object.entries(value).map(([k, v]) => [k, values(v)]));
  return value;
};

const theirs = (source, args) => {
  let value;
  try {
    value = run(source, { ...call, args: values(args) }, { funcs: strings });
  } catch {
    return "unknown";
  }
  return isCelError(value) || typeof value !== "boolean" ? "unknown" : value;
};

const questions = Array.from({ length: CONDITIONS }, () => ({ condition: condition(3), args: randomArguments() }));
// Conformance tests that ask for a truth value and bring nothing of their own.
const conformance = [];
const collect = (suite) => {
  for (const test of suite.tests ?? []) {
    const { expr, resultMatcher } = test.original;
    const kind = resultMatcher?.value?.kind;
    if (kind?.case === "boolValue" && Object.keys(test.original.bindings ?? {}).length === 0) conformance.push([expr, kind.value]);
  }
  (suite.suites ?? []).forEach(collect);
};
collect(getConformanceSuite());
for (const [expr] of conformance) questions.push({ condition: expr, args: {} });

const answered = spawnSync(process.env.TOLLGATE_ORACLE, { input: questions.map((q) => JSON.stringify(q) + "\n").join(""), maxBuffer: 1 << 28 });
if (answered.status !== 0) throw new Error(String(answered.stderr));
const answers = String(answered.stdout).trim().split("\n").map((line) => JSON.parse(line));

const count = { true: 0, false: 0, unknown: 0, refused: 0, conformance: 0, differences: 0 };
questions.forEach(({ condition: source, args }, at) => {
  const answer = answers[at];
  if ("refused" in answer) return void count.refused++;
  const ours = answer.holds ?? "unknown";
  const random = at < CONDITIONS;
  const expected = random ? theirs(source, args) : conformance[at - CONDITIONS][1];
  random ? count[ours]++ : count.conformance++;
  if (ours !== expected) {
    count.differences++;
    if (count.differences <= 20) console.error(`${source} with ${JSON.stringify(args)}: ${ours} (${answer.unknown ?? ""}), expected ${expected}`);
  }
});
console.log(`seed ${SEED}: ${JSON.stringify(count)}`);
const enough = ["true", "false", "unknown"].every((kind) => count[kind] > CONDITIONS / 20) && count.conformance > 100;
process.exit(count.differences === 0 && enough ? 0 : 1);
