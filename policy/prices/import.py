#!/usr/bin/env python3
"""Writes models.json, the built-in price table, from the price list inside the PyPI wheel `litellm`.

    pip download litellm==1.109.1 --no-deps --dest /tmp/litellm
    policy/prices/import.py /tmp/litellm/litellm-*.whl --date 2026-11-20

Only models whose bill is tokens times price: chat models of OpenAI and Anthropic themselves, without audio, search or
computer use. Numbers are read as decimals and rounded to pico-USD, since the list holds floats with noise
(3.0001999999999996e-07 is 300 020 pico-USD). Of the many price variants these are kept: standard tier, its cache prices, and
its prices above a prompt length. A price this script does not know how to read stops it: nothing is guessed.
"""

import argparse
import datetime
import json
import re
import sys
import zipfile
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

LIST = "litellm/model_prices_and_context_window_backup.json"
PROVIDERS = ("openai", "anthropic")
# Billed by more than tokens, or by tokens of another kind.
SKIPPED = re.compile(r"audio|search|computer-use|container")
DATED = re.compile(r"-(2\d{3}-\d\d-\d\d|2\d{7})$")

# Each price under the names the list has for it; how long a cache entry is kept for more differs by provider.
PRICES = {
    "input": ["input_cost_per_token"],
    "output": ["output_cost_per_token"],
    "cached_input": ["cache_read_input_token_cost"],
    "cache_write": ["cache_creation_input_token_cost"],
    "cache_write_long": [
        "cache_creation_input_token_cost_above_1hr",
        "cache_creation_input_token_cost_above_12hr",
    ],
    "reasoning": ["output_cost_per_reasoning_token"],
}
TIER = re.compile(r"^input_cost_per_token_above_(\d+)k_tokens$")
# Service tiers and modes that a response does not have unless the caller asked for them, and prices per search.
IGNORED = re.compile(r"_(batches|flex|priority|ultrafast|decisions)$|^search_context_cost_per_query$")


def pico(value):
    """Pico-USD of a price in USD."""
    return int((value * 10**12).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def prices(entry, suffix=""):
    found = {}
    for name, keys in PRICES.items():
        for key in keys:
            if entry.get(key + suffix) is not None:
                found[name] = pico(entry[key + suffix])
    return found


def known_keys(suffixes):
    return {key + suffix for keys in PRICES.values() for key in keys for suffix in suffixes}


def price(model, entry):
    row = prices(entry)
    if not row.get("input") or not row.get("output"):
        sys.exit(f"{model}: no input or output price")
    tiers = [int(match[1]) for match in map(TIER.match, entry) if match]
    if len(tiers) > 1:
        sys.exit(f"{model}: more than one price by prompt length: {tiers}")
    suffixes = ["", *(f"_above_{tier}k_tokens" for tier in tiers)]
    for key in entry:
        if "cost" in key and key not in known_keys(suffixes) and not IGNORED.search(key):
            sys.exit(f"{model}: `{key}` is a price this script does not know")
    for tier in tiers:
        long = prices(entry, f"_above_{tier}k_tokens")
        row["long_context"] = {"above_input_tokens": tier * 1000, **long}
    for limit in ("max_input_tokens", "max_output_tokens"):
        if entry.get(limit):
            row[limit] = int(entry[limit])
    if entry.get("supports_reasoning"):
        row["reasons"] = True
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="when the list was read")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "models.json")
    args = parser.parse_args()

    with zipfile.ZipFile(args.wheel) as wheel:
        listed = json.loads(wheel.read(LIST), parse_float=Decimal, parse_int=Decimal)
    version = args.wheel.name.split("-")[1]

    models = {
        model: price(model, entry)
        for model, entry in listed.items()
        if entry.get("litellm_provider") in PROVIDERS and entry.get("mode") == "chat" and not SKIPPED.search(model)
    }
    # A snapshot that costs what its model does is found under the model's name.
    for model in [model for model in models if DATED.search(model)]:
        if models.get(DATED.sub("", model)) == models[model]:
            del models[model]

    rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(models[name])}" for name in sorted(models))
    source = f"PyPI litellm {version}, {LIST.split('/')[1]}: chat models of OpenAI and Anthropic, standard tier"
    head = f'{{\n  "source": {json.dumps(source)},\n  "date": {json.dumps(args.date)},\n  "models": {{\n'
    args.out.write_text(f"{head}{rows}\n  }}\n}}\n")
    print(f"{len(models)} models written to {args.out}")


if __name__ == "__main__":
    main()
