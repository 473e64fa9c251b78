"""Puts questions to `policy/examples/oracle.rs`, the program that TOLLGATE_ORACLE names."""

import json
import os
import subprocess


def ask(questions):
    """The answers to `questions`, in order."""
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    answered = subprocess.run(
        [os.environ["TOLLGATE_ORACLE"]], input=lines, capture_output=True, text=True, encoding="utf-8", check=False
    )
    if answered.returncode != 0:
        raise RuntimeError(answered.stderr)
    answers = [json.loads(line) for line in answered.stdout.splitlines()]
    if len(answers) != len(questions):
        raise RuntimeError(f"{len(questions)} questions, {len(answers)} answers")
    return answers
