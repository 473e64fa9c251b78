"""Decides a call in this process: decide.py COMPONENT SETTINGS BUNDLE MODEL, secrets in the environment."""

import json, os, sys, time
from types import SimpleNamespace
from wasmtime import Engine, Store
from wasmtime.component import Component, Linker

component, settings, bundle, model = sys.argv[1:]
store = Store(Engine())
instance = Linker(store.engine).instantiate(store, Component.from_file(store.engine, component))
calls = instance.get_export_index(store, "tollgate:policy/calls@0.1.0")


def call(name, *arguments):
    return instance.get_func(store, instance.get_export_index(store, name, calls))(store, *arguments)


now = time.time_ns() // 1000
gate = call("[static]gate.open", open(settings, "rb").read(), list(os.environ.items()))
if isinstance(gate, str):  # in place of a gate: what is wrong with the settings
    sys.exit(gate)
if refused := call("[method]gate.install", gate, open(bundle, "rb").read(), now):
    sys.exit(refused.message)
caller = SimpleNamespace(agent="00000000-0000-4000-8000-00000000000a", team="platform", org=None, level="l1", **{"acts-for": []})
head = {":method": "POST", ":path": "/v1/chat/completions", ":authority": "api.openai.com", "content-type": "application/json"}
headers = [(name.encode(), value.encode()) for name, value in head.items()]
body = json.dumps({"model": model, "max_tokens": 10, "messages": []}).encode()
decision = call("decide", gate, caller, headers, body, now)
print(decision.outcome, *(reason.rule for reason in decision.reasons))
