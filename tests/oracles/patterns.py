"""Sensitive patterns against RE2 itself: what the policy checker accepts must compile there and be found in the same texts."""

import random
import sys

import re2
from ask import ask

PATTERNS, TEXTS = 6_000, 12
SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 20_261_120

# Pieces that regular expression dialects are known to read differently, and plain ones to put between them.
PIECES = [
    *"ab1_ -.Kké",
    *(r"\d \D \w \W \s \S \b \B \A \z \. \n \t \x41 \x{e9} \x{212a} \pL \C \Q \E \1 \0 \e \Z \< \> \u00e9 \- \_ \# \/".split()),
    *("[a-c] [^a] [[:alpha:]] [[:^digit:]] [\\d\\s] [^\\w] [\\W_] [à-ü] [k] [^k] [a-] [-a] []a] [a&&b] [[a]] [\\x{17f}]".split()),
    *("^ $ . (?i) (?s) (?m) (?U) (?-i) (?x) (?u) | || { } {2} {1,2} {,2} {2,} * + ? *? +? ?? ** ]".split()),
    *("(?:ab) (a|b) (?i:k) (?P<n>a) (?<n>a) (?=a) (?#c) ſ K ß ẞ İ ı Σ ς σ".split()),
]
LETTERS = ["a", "b", "1", "_", " ", "-", ".", "k", "K", "\u212a", "s", "ſ", "é", "É", "ß", "ẞ", "ss", "\n", "\r", "\t", "\v", "\f", "\u0085", "\u00a0", "٧", "σ", "ς", "Σ", "😀", "ı", "İ", "i", "I", "{", "[", "&", "A"]


def pattern(dice):
    return "".join(dice.choice(PIECES) for _ in range(dice.randint(1, 6)))


def text(dice):
    return "".join(dice.choice(LETTERS) for _ in range(dice.randint(0, 6)))


def main():
    dice = random.Random(SEED)
    quiet = re2.Options()
    quiet.log_errors = False
    questions = [{"pattern": pattern(dice), "texts": [text(dice) for _ in range(TEXTS)]} for _ in range(PATTERNS)]
    accepted = found = differences = 0
    for question, answer in zip(questions, ask(questions), strict=True):
        if "refused" in answer:
            continue
        accepted += 1
        try:
            compiled = re2.compile(question["pattern"], options=quiet)
        except re2.error as error:
            differences += 1
            print(f"{question['pattern']!r} is accepted, and RE2 refuses it: {error}", file=sys.stderr)
            continue
        expected = [compiled.search(given) is not None for given in question["texts"]]
        found += sum(expected)
        if answer["found"] != expected:
            differences += 1
            for given, ours, theirs in zip(question["texts"], answer["found"], expected, strict=True):
                if ours != theirs:
                    print(f"{question['pattern']!r} in {given!r}: {ours}, RE2 says {theirs}", file=sys.stderr)
    print(f"seed {SEED}: {PATTERNS} patterns, {accepted} accepted, {accepted * TEXTS} searches, {found} found, {differences} differences")
    return 0 if differences == 0 and accepted > PATTERNS // 6 and found > accepted else 1


sys.exit(main())
